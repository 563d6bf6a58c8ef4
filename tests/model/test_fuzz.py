"""A part of the mutations of `make fuzz`, and that they would find something."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import fuzz


@pytest.mark.parametrize("seed", range(4))
def test_no_traceback_and_no_advice_that_cannot_be_followed(seed: int, tmp_path: Path) -> None:
    kinds = fuzz.run(500, seed, tmp_path)
    assert min(kinds["done"], kinds["refused"]) > 5


def test_a_traceback_and_bad_advice_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken, pytest.raises(TypeError):
        broken.setattr(fuzz, "memory_of", None)
        fuzz.run(5000, 0, tmp_path)
    monkeypatch.setattr(fuzz, "OPTIONS", set())
    with pytest.raises(AssertionError, match="advises"):
        fuzz.run(5000, 0, tmp_path)
