"""Fractional bits: a few outlier channels coded with one bit more than the rest, as two independent formats.

Source: arXiv 2504.19874, section 4.3. With n of d channels at b+1 bits and the others at b the codes take b +
n/d bits a value: (32·3 + 96·2)/128 is 2.25, where the paper writes 2.5; 2.5 needs 64 channels of 128.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvquant.errors import FormatError
from kvquant.formats.base import UnitFormat
from kvquant.formats.ops import Ops
from kvquant.formats.turboquant.base import TurboQuant
from kvquant.formats.turboquant.codebook import MAX_BITS


@dataclass(frozen=True)
class OutlierSplit(UnitFormat):
    """``rest`` for most channels, the same format with one bit more for ``channels``; each part has its own
    length.

    channels: ascending channel numbers, part of the format and of its name (a hexadecimal bit mask, bit c for
    channel c). Bytes: the outlier channels' row, then the others'.
    """

    name: str = field(init=False)
    source: str = field(init=False)
    rest: TurboQuant
    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.channels, self.channels[1:], strict=False))
        if not self.channels or self.channels[0] < 0 or not ascending:
            raise FormatError(f"outlier channels {self.channels} are not ascending numbers from 0; sort them")
        if self.rest.bits == MAX_BITS:
            raise FormatError(f"{self.rest.name} leaves no bit to add for outlier channels; take fewer bits")
        mask = sum(1 << channel for channel in self.channels)
        object.__setattr__(self, "name", f"{self.rest.name}-x{mask:x}")
        object.__setattr__(self, "source", f"{self.rest.source}, outlier channels as in section 4.3")

    @property
    def outlier(self) -> TurboQuant:
        """The format of the outlier channels."""
        return replace(self.rest, bits=self.rest.bits + 1)

    def unit(self, width: int) -> tuple[int, int]:
        n_outliers = len(self.channels)
        if self.channels[-1] >= width:
            raise FormatError(
                f"outlier channel {self.channels[-1]} is past the last channel of {width}; choose lower ones"
            )
        return width, self.outlier.n_bytes(n_outliers) + self.rest.n_bytes(width - n_outliers)

    def _encode(self, _ops: Ops, x: Any, out: Any) -> None:
        outliers, others = self._channel_lists(x.shape[1])
        n_bytes = self.outlier.n_bytes(len(outliers))
        out[:, :n_bytes] = self.outlier.quantize(x[:, outliers])
        out[:, n_bytes:] = self.rest.quantize(x[:, others])

    def _decode(self, _ops: Ops, packed: Any, out: Any) -> None:
        outliers, others = self._channel_lists(out.shape[1])
        n_bytes = self.outlier.n_bytes(len(outliers))
        out[:, outliers] = self.outlier.dequantize(packed[:, :n_bytes], len(outliers))
        out[:, others] = self.rest.dequantize(packed[:, n_bytes:], len(others))

    def _channel_lists(self, width: int) -> tuple[list[int], list[int]]:
        chosen = set(self.channels)
        return list(self.channels), [channel for channel in range(width) if channel not in chosen]


def loudest_channels(x: npt.ArrayLike, n_channels: int) -> tuple[int, ...]:
    """Return the ``n_channels`` channels of ``x``, (..., width), with the largest mean square, ascending.

    Ties go to the lower channel. Raises FormatError unless 0 < n_channels < width.
    """
    rows = np.asarray(x)
    width = rows.shape[-1]
    if not 0 < n_channels < width:
        raise FormatError(f"cannot take {n_channels} outlier channels of {width}; choose 1 to {width - 1}")
    energy = np.mean(np.square(rows, dtype=np.float64), axis=tuple(range(rows.ndim - 1)))
    order = np.argsort(-energy, kind="stable")
    return tuple(sorted(int(channel) for channel in order[:n_channels]))
