"""How numbers are written in tables and figures; one that is not known is a question mark, never 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvquant.report.tables import UNKNOWN
from kvquant.units import format_n_bytes


def points(value: float | None) -> str:
    """A change of a share in percentage points, with its sign."""
    return UNKNOWN if value is None else f"{100 * value:+.1f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in percent."""
    return UNKNOWN if value is None else f"{100 * value:.1f} %"


def times(value: float | None) -> str:
    """A ratio."""
    return UNKNOWN if value is None else f"{value:.2f}x"


def number(value: float | None) -> str:
    """A speed, three significant digits."""
    return UNKNOWN if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A time, in milliseconds below a second."""
    return UNKNOWN if value is None else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def n_bytes(value: int | None) -> str:
    """A size."""
    return UNKNOWN if value is None else format_n_bytes(value)


def with_interval(text: str, interval: Sequence[float] | None, write: Callable[[float | None], str]) -> str:
    """A number with its interval behind it, alone where that is unknown."""
    return text if interval is None else f"{text} ({write(interval[0])} to {write(interval[1])})"
