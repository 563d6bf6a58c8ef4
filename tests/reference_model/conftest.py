"""A tiny network with the reference model's vocabulary, untrained."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny_config():
    pytest.importorskip("torch")
    from kvquant.reference.vocabulary import TOKENS
    from reference_model.network import ReferenceConfig

    return ReferenceConfig(
        n_vocab=len(TOKENS), n_layer=2, n_embd=128, n_head=4, n_head_kv=2, head_dim=64, n_ff=32
    )


@pytest.fixture
def tiny_model(tiny_config):
    from reference_model.growth import new_model

    return new_model(tiny_config, seed=3)
