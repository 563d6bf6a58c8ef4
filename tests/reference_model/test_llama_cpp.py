"""The committed model in llama-server: the same tokens, the same logits, recall over the chat endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from check_reference_model import agrees, chat_answers, logits_agreement, token_agreement  # noqa: E402
from kvquant.llama.server import LlamaServer, ServerOptions  # noqa: E402
from kvquant.reference.tasks import Size, Split, held_out_documents  # noqa: E402
from llama.proof import PATCHED, STOCK  # noqa: E402
from reference_model.gguf_file import load_gguf  # noqa: E402
from train_reference_model import ROOT  # noqa: E402

GGUF = ROOT / "eval/reference-model/kvquant-reference-f16.gguf"
PROGRAMS = STOCK or PATCHED

pytestmark = pytest.mark.skipif(
    PROGRAMS is None, reason="KVQUANT_STOCK_BIN and KVQUANT_LLAMA_BIN name no build"
)


@pytest.fixture(scope="module")
def server() -> Iterator[LlamaServer]:
    with LlamaServer(PROGRAMS, ServerOptions(model=GGUF, n_ctx=2048, n_threads=1)) as running:
        yield running


def test_tokens_and_logits_agree(server):
    texts = [document.text for document in held_out_documents(7, Split.TEST, 16, Size(80, 16))]
    texts += ["", "\n", "\x00\x01\\n", "été \U0001f600", " babo=1000->kobu", "<|im_start|>user\n"]
    record = {
        "tokens": token_agreement(server, texts),
        "logits": logits_agreement(server, load_gguf(GGUF), [1, 40, 160, 320], seed=7),
    }
    assert agrees(record), record
    assert record["logits"]["same_top"] == record["logits"]["prompts"]


def test_the_check_of_agreement_can_fail():
    good = {"tokens": {"texts": 2, "same": 2}, "logits": {"largest_difference": 0.001}}
    assert agrees(good)
    assert not agrees({**good, "tokens": {"texts": 2, "same": 1}})
    assert not agrees({**good, "logits": {"largest_difference": 0.5}})
    assert not agrees({**good, "logits": {"largest_difference": float("nan")}})


def test_it_recalls_over_the_chat_endpoint(server):
    answers = chat_answers(server, n=4, n_pairs=8, n_tokens=100, seed=7)
    assert answers["pair"]["n_right"] >= 3, answers
