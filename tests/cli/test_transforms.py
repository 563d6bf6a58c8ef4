"""--transform FILE where no model has to run: memory, llama serve, and the plan of a validation."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result

from kvquant.cli import llama as llama_command
from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError, TransformError, UsageError
from kvquant.evals.suite import load_suite
from kvquant.evals.validation.diverge import request_for
from kvquant.evals.validation.engine import start_of
from kvquant.evals.validation.plan import Plan, Settings, Texts, make_plan
from kvquant.evals.validation.records import Folder
from kvquant.evals.validation.served import Served
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.transform import (
    KVTransform,
    LayerTransform,
    loaded_bytes,
    model_id,
    open_transform,
    write_transform,
)

FILE = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
MODEL = open_model(FILE)
SHAPE = shape_of(MODEL)
HEADS = (SHAPE.layers[0].n_head_kv, SHAPE.layers[0].head_dim_k)


def transform(n_ctx: int = 512) -> KVTransform:
    centre, diagonal = (
        LayerTransform(0, np.ones(HEADS)),
        LayerTransform(2, np.ones(HEADS), np.full(HEADS, 2.0)),
    )
    matrix = LayerTransform(3, np.zeros(HEADS), np.stack([np.eye(HEADS[1])] * HEADS[0]))
    return KVTransform(model_id(MODEL), (centre, diagonal, matrix), {"n_ctx": n_ctx})


@pytest.fixture
def sidecar(tmp_path: Path) -> Path:
    path = tmp_path / "t.gguf"
    write_transform(transform(), path)
    return path


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(kvquant, [str(word) for word in words])


def failure(result: Result, kind: type[KVQuantError] = TransformError) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_memory_counts_it(sidecar: Path) -> None:
    words = ("memory", "--model", FILE, "--ctx", "512", "--policy", "q4_0")
    plain = json.loads(run(*words, "--json").stdout)
    found = json.loads(run(*words, "--transform", sidecar, "--json").stdout)
    assert (plain["transform"], plain["transform_bytes"]) == (None, 0)
    assert found["total"] == plain["total"]
    assert found["transform"]["digest"] == transform().digest
    n, width = HEADS[0] * HEADS[1], HEADS[1]
    in_memory = 4 * (3 * n + 2 * n + SHAPE.layers[2].n_head * width + 3 * n * width)
    assert found["transform_bytes"] == loaded_bytes(transform(), SHAPE) == in_memory
    done = run(*words, "--transform", sidecar)
    last = done.stdout.splitlines()[-1]
    assert last.startswith("transform t.gguf: 3 layers, ") and transform().digest[:16] in last
    assert last.endswith("in memory") and done.stderr == ""


def test_depth_is_warned_of_and_another_model_refused(sidecar: Path, tmp_path: Path) -> None:
    words = ("memory", "--model", FILE, "--policy", "q4_0", "--transform")
    assert "calibrated to 512 tokens and is used at 1024" in run(*words, sidecar, "--ctx", "1024").stderr
    by_shape = run(
        "memory", "--shape", "llama-3.1-8b", "--ctx", "512", "--policy", "q4_0", *words[-1:], sidecar
    )
    assert f"is for {HEADS[0]} KV heads of {HEADS[1]} values" in failure(by_shape)
    other = replace(transform(), model=replace(model_id(MODEL), n_layer=99))
    write_transform(other, tmp_path / "other.gguf")
    assert "made for another model" in failure(run(*words, tmp_path / "other.gguf", "--ctx", "512"))
    (tmp_path / "cut.gguf").write_bytes(sidecar.read_bytes()[:300])
    assert "not a whole GGUF file" in failure(run(*words, tmp_path / "cut.gguf", "--ctx", "512"))
    assert "No such file" in failure(run(*words, tmp_path / "none.gguf", "--ctx", "512"))


def test_serve_hands_it_on(sidecar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    done = SimpleNamespace(program=lambda name: tmp_path / name)
    monkeypatch.setattr(llama_command, "_default_build", lambda: done)
    monkeypatch.setattr(os, "execv", lambda _, argv: started.append(argv))
    words = ("llama", "serve", "-m", FILE, "--policy", "q4_0", "--transform", sidecar)
    result = run(*words, "-c", "512")
    assert result.exception is None, result.output
    assert started[0][-2:] == ["--kv-transform", str(sidecar)]
    assert "with transform t.gguf: 3 layers" in result.stderr and "warning" not in result.stderr
    assert "is used at 4096" in run(*words, "-c", "4096").stderr
    assert f"is used at {SHAPE.n_ctx_train}" in run(*words).stderr


def plan(tmp_path: Path, sidecar: Path | None, *policies: str) -> Plan:
    for name in ("llama-server", "llama-bench", "llama-kv-divergence"):
        (tmp_path / name).touch()
    suite = load_suite("kld")
    used = None if sidecar is None else open_transform(sidecar, MODEL, SHAPE)
    settings = Settings(suite.n, 0, suite.parts.n_ctx, None, 60.0)
    return make_plan(tmp_path, MODEL, SHAPE, suite, policies, settings, used)


def test_a_validation_keeps_with_and_without_apart(sidecar: Path, tmp_path: Path) -> None:
    found = plan(tmp_path, sidecar, "f16", "q4_0", "q4_0@no-transform")
    key = f"*:q4_0@{transform().digest[:16]}"
    assert [policy.text for policy in found.policies] == ["*:f16", key, "*:q4_0"]
    assert [policy.label for policy in found.policies] == ["f16", "q4_0@t", "q4_0"]
    start = start_of(found, [])
    assert [named.policy for named in start.policies] == ["*:f16", key, "*:q4_0"]
    assert [named.transform is not None for named in start.policies] == [False, True, False]
    f16, calibrated, plain = (
        Served(found, policy, Folder(tmp_path), ()).options for policy in found.policies
    )
    assert (f16.kv_transform, calibrated.kv_transform, plain.kv_transform) == (None, sidecar, None)
    assert calibrated.kv_layers == "*:q4_0"
    assert "--kv-transform" in calibrated.arguments(tmp_path) and "--kv-transform" not in plain.arguments(
        tmp_path
    )
    part = found.suite.parts.divergence
    assert part is not None
    request = request_for(found, part, Texts((), False), found.policies, "prefill")
    assert [setup.transform is not None for setup in request.policies] == [False, True, False]
    assert [setup.policy for setup in request.policies] == ["*:f16", "*:q4_0", "*:q4_0"]


def test_a_validation_refuses_the_same_twice_and_other_variations(sidecar: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="given twice"):
        plan(tmp_path, sidecar, "q4_0", "*:q4_0")
    with pytest.raises(UsageError, match="given twice"):
        plan(tmp_path, None, "q4_0", "q4_0@no-transform")
    with pytest.raises(UsageError, match="a server always rotates"):
        plan(tmp_path, None, "q4_0@no-rotation")
