"""What a capture says of each side by itself: the squared attention-output error, the proxy of KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from kvquant.analysis import open_source
from kvquant.analysis.analyze import map_layers
from kvquant.analysis.measure import LayerMeter
from kvquant.model.capture import KVCapture
from kvquant.model.shape import ModelShape
from kvquant.search.sides import EXACT, Side, sides_of


def side_errors(
    shape: ModelShape,
    capture: KVCapture | str | Path,
    types: Sequence[str],
    *,
    rotation: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[Side, str], float]:
    """Return the squared relative error of the attention output for each type on each side, the rest in f16.

    A type that overflows somewhere costs infinity there. Raises CaptureError for a capture of another model.
    """
    source = open_source(shape, None, capture, 0, None)
    sides = sides_of(source.shape)

    def measured(meter: LayerMeter, kv_index: int) -> dict[tuple[Side, str], float]:
        layer = source.shape.kv_layers[kv_index]
        found = {}
        for place in (place for place in sides if place.layer == layer):
            for name in types:
                k, v = (name if side in place.side else EXACT for side in "kv")
                error = meter.errors(k, v, rotation).attn_output_rel_error
                found[place, name] = math.inf if error is None else error**2
        return found

    return {key: value for layer in map_layers(source, measured, progress) for key, value in layer.items()}
