"""A tiny network with the reference model's vocabulary, untrained."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny_model():
    pytest.importorskip("torch")
    from kvquant.reference.growth import new_model
    from kvquant.reference.model import ReferenceConfig
    from kvquant.reference.vocabulary import TOKENS

    return new_model(ReferenceConfig(n_vocab=len(TOKENS), n_layer=2, n_ff=32), seed=3)
