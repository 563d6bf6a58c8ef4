"""What a model multiplies q·k by before the softmax."""

from __future__ import annotations

import math

from kvquant.model.gguf_header import GgufHeader, Scalar
from kvquant.model.hparams import Keys

_UNSCALED = ("gemma3n", "gemma4")
"""Architectures that normalise q and k and use 1; src/models/gemma3n.cpp, gemma4.cpp at the pin."""

_SCALED_BY_EMBEDDING = {"gemma2": 46, "gemma3": 62}
"""Architecture to the layers of its 27B, which scales by the embedding per head; gemma2.cpp, gemma3.cpp."""


def logit_scale(header: GgufHeader, head_dim_k: int) -> float:
    """Return the scale of a layer whose K heads hold ``head_dim_k`` values.

    1/sqrt(head_dim_k) unless the header or the architecture says otherwise. Not for multi-head latent
    attention, whose scale depends on its RoPE scaling.
    """
    keys = Keys(header)
    if keys.arch in _UNSCALED:
        return 1.0
    given = header.values.get(f"{keys.arch}.attention.scale")
    if isinstance(given, Scalar) and isinstance(given.value, float) and given.value > 0:
        return given.value
    if keys.arch in _SCALED_BY_EMBEDDING and keys.u32("block_count") == _SCALED_BY_EMBEDDING[keys.arch]:
        return 1.0 / math.sqrt(keys.u32("embedding_length") / keys.u32("attention.head_count"))
    return 1.0 / math.sqrt(head_dim_k)
