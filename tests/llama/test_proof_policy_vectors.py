"""The patch's policy parser is held to the package's vectors, by the program the patch adds for that."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from llama.proof import PATCHED, needs_patched

VECTORS = Path(__file__).parents[1] / "vectors" / "policy.json"


def run(vectors: Path) -> subprocess.CompletedProcess[str]:
    program = (PATCHED or Path()) / "llama-kv-layers-test"
    return subprocess.run([program, vectors], capture_output=True, text=True, timeout=60, check=False)


@needs_patched
def test_every_vector_holds() -> None:
    done = run(VECTORS)
    assert (done.returncode, done.stderr) == (0, "")


@needs_patched
@pytest.mark.parametrize("part", ["parse", "resolve"])
def test_a_wrong_vector_is_found(tmp_path: Path, part: str) -> None:
    vectors = json.loads(VECTORS.read_text())
    first = vectors[part][0]
    key = next(key for key in ("canonical", "error", "k") if key in first)
    first[key] = "something else"
    (tmp_path / "vectors.json").write_text(json.dumps(vectors))
    done = run(tmp_path / "vectors.json")
    assert done.returncode == 1
    assert done.stderr
