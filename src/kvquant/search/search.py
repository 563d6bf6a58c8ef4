"""The policy with the least attention-output error within a number of bytes, from measured errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from kvquant.analysis import DEFAULT_N_CTX, LayerErrors, Sampling, open_source
from kvquant.analysis.analyze import map_layers
from kvquant.analysis.measure import LayerMeter
from kvquant.errors import UsageError
from kvquant.memory import kv_bytes
from kvquant.model.capture import KVCapture
from kvquant.model.shape import ModelShape
from kvquant.policy import Policy, parse_policy, policy_from_layers
from kvquant.search.knapsack import choose
from kvquant.tables import short_percent
from kvquant.units import format_n_bytes

TYPES = ("f16", "q8_0", "q5_0", "q4_0")
"""The types a search combines when none are named."""


@dataclass(frozen=True)
class FoundBytes:
    """The bytes of what was found, and the root mean square over layers of its attention-output error."""

    kv_bytes: int
    kv_bytes_f16: int
    ratio_vs_f16: float
    attn_output_rel_error: float


@dataclass(frozen=True)
class Uniform:
    """One type in every layer, with its attention-output error."""

    type: str
    attn_output_rel_error: float


@dataclass(frozen=True)
class SearchDocument:
    """`kvquant search --json`. policy: canonical text. best_uniform: the most accurate single type that fits
    too, None where none does. exact: nothing within the budget has a smaller error on this data.
    """

    policy: str
    n_ctx: int
    total: FoundBytes
    best_uniform: Uniform | None
    exact: bool


@dataclass(frozen=True)
class Found:
    """What a search found.

    policy: names every layer that keeps a cache. kv_bytes: at the context asked for. kv_bytes_f16: all f16.
    error: root mean square over layers of the attention-output error, as in `Analysis.total`.
    uniform: the most accurate uniform policy of the same types that fits too, with its error, or None.
    exact: nothing within the budget has a smaller error on this data.
    """

    policy: Policy
    kv_bytes: int
    kv_bytes_f16: int
    error: float
    uniform: tuple[str, float] | None
    exact: bool

    def document(self, n_ctx: int) -> SearchDocument:
        """Return what is printed of it. n_ctx: tokens that bytes were counted for."""
        return SearchDocument(
            policy=str(self.policy),
            n_ctx=n_ctx,
            total=FoundBytes(self.kv_bytes, self.kv_bytes_f16, self.kv_bytes / self.kv_bytes_f16, self.error),
            best_uniform=None if self.uniform is None else Uniform(*self.uniform),
            exact=self.exact,
        )

    @property
    def sentence(self) -> str:
        """What it takes and costs, and what the best single type would."""
        said = (
            f"{format_n_bytes(self.kv_bytes)}, {self.kv_bytes / self.kv_bytes_f16:.3f}x of f16, "
            f"attention output off by {short_percent(self.error)}"
        )
        if self.uniform is not None:
            name, error = self.uniform
            said += f"; the best single type that fits is {name} with {short_percent(error)}"
        return said if self.exact else f"{said}; too many combinations to be sure that none is better"


def search(
    budget: int | float,
    *,
    types: Sequence[str] = TYPES,
    shape: ModelShape | None = None,
    profile: str | None = None,
    capture: KVCapture | str | Path | None = None,
    n_ctx: int = DEFAULT_N_CTX,
    rotation: bool = True,
    seed: int = 0,
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Return the best policy within ``budget``: bytes if an int, a share of an f16 cache if a float.

    Each layer's K and V get one of ``types`` each. The error of every pair in every layer is measured and the
    sum of their squares minimised, as if the errors of layers did not depend on each other. The other
    arguments are those of `analyze`. Raises what that raises, and UsageError when nothing fits the budget.
    """
    source = open_source(shape, profile, capture, seed, sampling)
    pairs = [(k_type, v_type) for k_type in dict.fromkeys(types) for v_type in dict.fromkeys(types)]
    sizes = {pair: _layer_bytes(source.shape, *pair, n_ctx) for pair in pairs}
    in_f16 = sum(_layer_bytes(source.shape, "f16", "f16", n_ctx))
    limit = budget if isinstance(budget, int) else int(budget * in_f16)

    filled = source.shape.filled_kv_indices
    measured = map_layers(source, lambda meter, _: _errors(meter, pairs, rotation), progress)
    layers = [
        [
            (sizes[pair][kv_index], errors.attn_output_rel_error**2, pair)
            for pair, errors in zip(pairs, of_layer, strict=True)
            if errors.attn_output_rel_error is not None
        ]
        for kv_index, of_layer in zip(filled, measured, strict=True)
    ]
    if not all(layers):
        raise UsageError(
            f"every one of {', '.join(types)} overflows in some layer; allow a type with more range"
        )
    choice = choose([[(n_bytes, error) for n_bytes, error, _ in options] for options in layers], limit)
    chosen = [options[taken][2] for options, taken in zip(layers, choice.options, strict=True)]
    return Found(
        policy=policy_from_layers(
            (source.shape.kv_layers[kv_index], k_type, v_type)
            for kv_index, (k_type, v_type) in zip(filled, chosen, strict=True)
        ),
        kv_bytes=choice.n_bytes,
        kv_bytes_f16=in_f16,
        error=sqrt(choice.error / len(layers)),
        uniform=_best_uniform(
            types, sizes, dict(zip(pairs, zip(*measured, strict=True), strict=True)), limit
        ),
        exact=choice.exact,
    )


def _layer_bytes(shape: ModelShape, k_type: str, v_type: str, n_ctx: int) -> list[int]:
    """Bytes of each cached layer with all layers in one pair of types."""
    resolved = parse_policy(f"*:k={k_type}/v={v_type}").resolve(shape)
    return [layer.n_bytes for layer in kv_bytes(shape, resolved, n_ctx=n_ctx).layers]


def _errors(meter: LayerMeter, pairs: Sequence[tuple[str, str]], rotation: bool) -> list[LayerErrors]:
    return [meter.errors(k_type, v_type, rotation) for k_type, v_type in pairs]


def _best_uniform(
    types: Sequence[str],
    sizes: dict[tuple[str, str], list[int]],
    errors: dict[tuple[str, str], Sequence[LayerErrors]],
    limit: int,
) -> tuple[str, float] | None:
    """The most accurate single type for everything within ``limit`` bytes, and its error over all layers."""
    fitting = []
    for name in types:
        values = [layer.attn_output_rel_error for layer in errors[name, name]]
        if sum(sizes[name, name]) <= limit and None not in values:
            fitting.append((sqrt(sum((value or 0.0) ** 2 for value in values) / len(values)), name))
    return (min(fitting)[1], min(fitting)[0]) if fitting else None
