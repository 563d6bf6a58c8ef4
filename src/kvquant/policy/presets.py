"""Policies that a committed search found for a model, with their numbers (`kvquant policy --list`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from kvquant.documents import from_document
from kvquant.errors import PolicyError

FILE = "presets.json"


@dataclass(frozen=True)
class MeasuredPreset:
    """A policy for one model file.

    model: a name of `kvquant models`. of_f16: its share of the bytes of f16 at n_ctx tokens. kl: mean KL
    divergence from f16 on the text held out, nats a token, on n_tokens of it; low to high its 95 % interval.
    rival: the best simple rule in these bytes, with its KL. record: the committed file it is from.
    """

    model: str
    policy: str
    of_f16: float
    n_ctx: int
    kl: float
    low: float | None
    high: float | None
    held_out: str
    n_tokens: int
    rival: str | None
    rival_kl: float | None
    record: str

    @property
    def measured(self) -> str:
        """The numbers in words."""
        said = f"KL {self.kl:.2g} on {self.n_tokens} tokens of {self.held_out}"
        return said if self.rival is None else f"{said}, {self.rival} {self.rival_kl:.2g} in the same bytes"


def measured_presets() -> tuple[MeasuredPreset, ...]:
    """Return the presets of the package, ordered by model and size."""
    text = resources.files(__package__ or "kvquant.policy").joinpath(FILE).read_text(encoding="utf-8")
    return from_document(tuple[MeasuredPreset, ...], json.loads(text), FILE, error=PolicyError)
