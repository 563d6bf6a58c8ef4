"""The rules of every architecture against what llama.cpp allocates for headers alone (memory.headers).

KVQUANT_LLAMA_BIN names the folder of llama-kv-layers-memory; `make test` sets it. The record of all headers
is benchmarks/results/kv-memory.json.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kvquant.model.architectures import REFUSED, RULES
from memory import headers as proof

PROGRAM = Path(os.environ.get("KVQUANT_LLAMA_BIN", "")) / "llama-kv-layers-memory"
RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "kv-memory.json"

needs_program = pytest.mark.skipif(
    not PROGRAM.is_file(), reason="KVQUANT_LLAMA_BIN does not name a folder with llama-kv-layers-memory"
)


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headers")
    proof.write_headers(PROGRAM, folder)
    return folder


def test_the_record_is_of_these_rules() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert set(record["n_headers"]) | set(proof.NO_HEADER) == set(RULES)
    assert all(record["n_headers"].values())
    assert record["differences"] == []
    assert record["refused"] == REFUSED


@needs_program
@pytest.mark.parametrize("arch", sorted(set(RULES) - set(proof.NO_HEADER)))
def test_every_architecture(arch: str, headers: Path, tmp_path: Path) -> None:
    for name in ("as it is", "nine layers", "listed layers"):
        path = proof.changed(headers / f"{arch}.gguf", tmp_path / "header.gguf", arch, proof.CHANGES[name])
        assert not proof.differences(PROGRAM, path), name


@needs_program
def test_a_wrong_rule_would_be_seen(headers: Path, tmp_path: Path) -> None:
    """The comparison is not blind: a window that only llama.cpp sees makes another cache."""
    path = proof.changed(headers / "gemma3.gguf", tmp_path / "header.gguf", "gemma3", {})
    log = proof.logs(PROGRAM, path)
    assert log is not None
    path.write_bytes(path.read_bytes().replace(b"sliding_window\x04", b"sliding_windoX\x04"))
    narrow = proof.logs(PROGRAM, path)
    assert narrow is not None and narrow != log
