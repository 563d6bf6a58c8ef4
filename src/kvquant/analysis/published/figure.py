"""One published number, measured again, and what the measurements are made on.

The verdict on a number is computed, never written down.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from kvquant.formats.base import Float32Array, Format

Float64Array = npt.NDArray[np.float64]


class Verdict(StrEnum):
    """What a new measurement says about a printed number."""

    REPRODUCED = "reproduced"
    UNDER_CONVENTION = "reproduced under its convention"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True)
class Reading:
    """A value and how it was obtained. standard_error: of a sampled mean, 0 where the value is exact."""

    value: float
    how: str
    standard_error: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A printed number and two readings of it.

    key: a short unique name. source: where it was published. claim: what it is said to be. published: as
    printed, unit included ("7.3e-05", "6.4x", "140.00 MiB"). convention: measured the way that explains the
    number best. actual: what the claim means for llama.cpp's formats against fp16. note: what a reader should
    know besides.
    """

    key: str
    source: str
    claim: str
    published: str
    convention: Reading
    actual: Reading
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Reproduced if the actual value prints as published, under its convention if only that one does."""
        if agrees(self.published, self.actual):
            return Verdict.REPRODUCED
        if agrees(self.published, self.convention):
            return Verdict.UNDER_CONVENTION
        return Verdict.CONTRADICTED

    @property
    def sentence(self) -> str:
        """The verdict in words; the right value is added wherever it differs from the printed one."""
        if self.verdict is Verdict.REPRODUCED:
            return str(self.verdict)
        return f"{self.verdict}; the right value is {printed_like(self.published, self.actual.value)}"


def agrees(published: str, reading: Reading) -> bool:
    """Return whether ``reading``, within three standard errors, rounds or cuts off to ``published``."""
    value, unit_in_last_place = _parse(published)
    low = value - unit_in_last_place / 2
    high = value + unit_in_last_place
    slack = 3 * reading.standard_error + 1e-9 * abs(value)
    return low - slack <= reading.value < high + slack


def printed_like(published: str, value: float) -> str:
    """Return ``value`` in the notation and unit of ``published``, one place more if the unit is none or x."""
    number, unit = _split(published)
    digits = Decimal(number).as_tuple().digits
    if "e" in number:
        return f"{value:.{len(digits)}e}{unit}"
    n_decimals = max(0, -_exponent(number)) + (unit in ("", "x"))
    return f"{value:.{n_decimals}f}{unit}"


def _parse(published: str) -> tuple[float, float]:
    """Return the number in ``published`` and the value of one unit in its last printed place."""
    number, _ = _split(published)
    return float(number), 10.0 ** _exponent(number)


def _exponent(number: str) -> int:
    exponent = Decimal(number).as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError(f"{number} is not a finite number")
    return exponent


def _split(published: str) -> tuple[str, str]:
    match = re.match(r"([0-9.]+(?:e[+-]?[0-9]+)?)(.*)", published)
    if match is None:
        raise ValueError(f"{published!r} does not start with a number")
    return match[1], match[2]


def unit_vectors(n: int, width: int, seed: int) -> Float32Array:
    """Return ``n`` vectors uniform on the sphere, float32 (n, width)."""
    x = np.random.default_rng(seed).standard_normal((n, width))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), dtype=np.float32)


def squared_errors(x: Float32Array, restored: npt.NDArray[np.floating]) -> Float64Array:
    """Return ‖x - x̃‖² of every row, float64 (n,)."""
    difference = x.astype(np.float64) - restored
    return np.asarray(np.einsum("ij,ij->i", difference, difference))


def round_trip_errors(x: Float32Array, fmt: Format) -> Float64Array:
    """Return ‖x - x̃‖² of every row stored as ``fmt``."""
    return squared_errors(x, fmt.dequantize(fmt.quantize(x), x.shape[1]))


def mean_reading(errors: Float64Array, how: str, divisor: int = 1) -> Reading:
    """Return the mean of per-vector ``errors`` over ``divisor``, with its standard error."""
    standard_error = float(errors.std(ddof=1)) / len(errors) ** 0.5
    return Reading(float(errors.mean()) / divisor, how, standard_error / divisor)
