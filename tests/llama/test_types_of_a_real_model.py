"""A real model served under the series' own types: it answers as under f16, and a saved slot comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from assets.real_files import fetched
from kvquant.assets.find import model_path
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.architectures import read_shape
from kvquant.policy import parse_policy
from llama.proof import PATCHED, needs_patched

pytestmark = needs_patched

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def model() -> Path:
    return fetched(lambda: model_path("smollm2-135m"))


@pytest.mark.parametrize("policy", ["*:k=q4_0/v=tq3", "*:tq3"])
def test_it_answers_and_restores(policy: str, model: Path) -> None:
    assert PATCHED is not None
    options = ServerOptions(model, n_ctx=512, n_threads=1, kv_layers=policy)
    with LlamaServer(PATCHED, options) as server:
        answer = server.completion(PROMPT, 6)
        saved = server.save_slot(name="first").read_bytes()
        assert answer["content"].startswith(" Paris")
        assert server.restore_slot(name="first")["n_restored"] >= 5
        assert server.save_slot(name="again").read_bytes() == saved
        resolved = parse_policy(policy).resolve(read_shape(model))
        expected = memory_of(read_shape(model), resolved, ContextOptions(512, 1)).kv_bytes
        assert server.kv_log().n_bytes == expected
