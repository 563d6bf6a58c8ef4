"""The random models of the proofs, written once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama.proof import MODELS
from write_random_gguf import write_random_gguf


@pytest.fixture(scope="session")
def proof_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the model file of an architecture in `MODELS`."""
    folder = tmp_path_factory.mktemp("proof-models")

    def written(arch: str) -> Path:
        path = folder / f"{arch}.gguf"
        return path if path.exists() else write_random_gguf(path, MODELS[arch])

    return written
