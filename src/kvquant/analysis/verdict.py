"""What a person should take from an analysis, in one line, by rules that can be read here one by one.

The limits of the grades are this project's choice, made so that a uniform q8_0 cache has a small error on the
default data and a uniform q4_0 cache a large one. They order policies; they do not promise quality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from kvquant.analysis.captures import REFERENCE_CAPTURE
from kvquant.analysis.result import LayerResult, Summary
from kvquant.analysis.sample import SourceInfo
from kvquant.policy import policy_from_layers
from kvquant.tables import short_percent
from kvquant.units import format_n_bytes

GRADES = (
    (0.02, 0.001, "a small error"),
    (0.10, 0.01, "a moderate error"),
    (0.30, 0.10, "a large error"),
)
"""(attention-output error at most, KL in nats at most, what it is called)."""

BEYOND = "a severe error"
"""What is worse than the last grade."""

EQUAL = 0.01
"""Bytes or errors within this share of each other count as equal."""

CONCENTRATION = 0.4
"""Layers that carry this share of the squared error are named, if they are few."""

FEW_LAYERS = 0.125
"""At most this share of the layers (and at least 2) is few."""

ONE_SIDE = 4.0
"""A side carries the error of a layer when its squared error is this many times the other's."""

UPGRADES = {"k8v4": ("q8_0", "q4_0"), "q8_0": ("q8_0", "q8_0")}
"""What is suggested for the layers that carry the error: the baseline they are measured in, its K and V
types. Keys alone where nearly all of the error comes through K and V has that type already.
"""

REFERENCES = ("q8_0", "q4_0")
"""Baselines whose numbers stand beside the policy's."""

STEP_UP = 2.0
"""A clear step up has the error divided by at least this."""

CONFIRM = "confirm on the model with kvquant divergence"
"""What to do next, whatever the data."""

_ROUNDING = 1e-9
"""What sums of equal errors may differ by."""

_LONGEST_POLICY = 100
"""A longer policy is described instead of written out."""


def verdict(
    layers: Sequence[LayerResult],
    total: Summary,
    baselines: Mapping[str, Summary],
    n_ctx: int,
    source: SourceInfo,
) -> str:
    """Return the verdict on the policy: cost and grade, standing, what to change, how far to trust it."""
    parts = [_cost(total, baselines, n_ctx)]
    error = total.attn_output_rel_error
    if error is None:
        parts.append("a type overflows on this data, so its error is unknown; choose another type")
    elif error > 0:
        parts += [_standing(total, baselines), _advice(layers, total, baselines)]
    parts.append(_trust(source))
    return "; ".join(part for part in parts if part) + "."


def grade(error: float, kl: float) -> str:
    """Name the size of an attention-output error and a KL divergence, the worse of the two deciding."""
    return next((name for most, most_kl, name in GRADES if error <= most and kl <= most_kl), BEYOND)


def dominating(total: Summary, baselines: Mapping[str, Summary]) -> str | None:
    """Return the runnable baseline with the least output error among those better and worse in nothing."""
    better = [
        (other.attn_output_rel_error, name)
        for name, other in baselines.items()
        if other.runnable and _is_better(other, total)
    ]
    return min((pair for pair in better if pair[0] is not None), default=(None, None))[1]


def carriers(layers: Sequence[LayerResult]) -> tuple[tuple[int, ...], float]:
    """Return the fewest layers with CONCENTRATION of the squared output error, and their share of it.

    Layers are positions in ``layers``, ascending.
    """
    squared = [(layer.attn_output_rel_error or 0.0) ** 2 for layer in layers]
    everything = sum(squared)
    taken: list[int] = []
    carried = 0.0
    for index in sorted(range(len(layers)), key=lambda index: -squared[index]):
        if carried >= CONCENTRATION * everything * (1 - _ROUNDING):
            break
        taken.append(index)
        carried += squared[index]
    return tuple(sorted(taken)), carried / everything if everything else 0.0


@dataclass(frozen=True)
class Suggestion:
    """The policy with its worst layers in an upgrade, and what that costs: measured, not guessed."""

    policy: str
    upgrade: str
    kv_bytes: int
    error: float


def suggestion(
    layers: Sequence[LayerResult], total: Summary, worst: Sequence[int], baselines: Mapping[str, Summary]
) -> Suggestion | None:
    """Return the policy with the layers at positions ``worst`` upgraded, None where that would not help."""
    chosen = [layers[index] for index in worst]
    keys_alone = _carrier(chosen) == "K" and all(layer.v.type == UPGRADES["k8v4"][1] for layer in chosen)
    names = tuple(UPGRADES) if keys_alone else ("q8_0",)
    found = (_upgraded(layers, total, worst, name, baselines.get(name)) for name in names)
    return next((better for better in found if better is not None), None)


def _upgraded(
    layers: Sequence[LayerResult], total: Summary, worst: Sequence[int], name: str, upgraded: Summary | None
) -> Suggestion | None:
    if (
        upgraded is None
        or None in total.layer_attn_output_rel_error
        or None in upgraded.layer_attn_output_rel_error
    ):
        return None
    errors = [
        (upgraded if index in worst else total).layer_attn_output_rel_error[index] or 0.0
        for index in range(len(layers))
    ]
    error = (sum(e * e for e in errors) / len(errors)) ** 0.5
    before = total.attn_output_rel_error
    if before is None or error > before * (1 - EQUAL):
        return None
    n_bytes = sum((upgraded if index in worst else total).layer_bytes[index] for index in range(len(layers)))
    types = [
        (layer.layer, *(UPGRADES[name] if index in worst else (layer.k.type, layer.v.type)))
        for index, layer in enumerate(layers)
    ]
    return Suggestion(str(policy_from_layers(types)), name, n_bytes, error)


def _is_better(one: Summary, other: Summary) -> bool:
    """Whether ``one`` is better in bytes, output error or attention's KL and worse in none of them.

    The output error alone forgives K too much: by it q5_0 beats q8_0 keys with q4_0 values, which every real
    model measured contradicts (docs/claims.md).
    """
    pairs = [
        (getattr(one, name), getattr(other, name))
        for name in ("kv_bytes", "attn_output_rel_error", "attn_kl")
    ]
    if any(None in pair for pair in pairs):
        return False
    no_worse = all(mine <= its * (1 + EQUAL) for mine, its in pairs)
    return no_worse and any(mine < its * (1 - EQUAL) for mine, its in pairs)


def _cost(total: Summary, baselines: Mapping[str, Summary], n_ctx: int) -> str:
    name = total.policy if len(total.policy) <= _LONGEST_POLICY else "This policy"
    saving = (
        f"{name} takes {total.ratio_vs_f16:.2f}x of f16's bytes "
        f"({format_n_bytes(total.kv_bytes)}, not {format_n_bytes(total.kv_bytes_f16)}, at {n_ctx} tokens)"
    )
    error, kl = total.attn_output_rel_error, total.attn_kl
    if error is None or kl is None:
        return saving
    if error == 0:
        return f"{saving} with no error at all"
    others = [
        f"{name} {short_percent(other.attn_output_rel_error)} at {other.ratio_vs_f16:.2f}x"
        for name, other in baselines.items()
        if name in REFERENCES and other.policy != total.policy and other.attn_output_rel_error
    ]
    compared = f" ({', '.join(others)})" if others else ""
    return f"{saving} with {grade(error, kl)}: attention output off by {short_percent(error)}{compared}"


def _standing(total: Summary, baselines: Mapping[str, Summary]) -> str:
    winner = dominating(total, baselines)
    if winner is not None:
        return f"use {_described(winner, baselines)} instead, which is no larger and no less accurate"
    runnable = {name: other for name, other in baselines.items() if other.runnable}
    beaten = [name for name, other in runnable.items() if _is_better(total, other)]
    steps = [
        (other.kv_bytes, name)
        for name, other in runnable.items()
        if (other.attn_output_rel_error or 0.0) * STEP_UP < (total.attn_output_rel_error or 0.0)
    ]
    parts = [f"it is better than {_listed(beaten)} in bytes or error and worse in neither"] if beaten else []
    if steps:
        parts.append(f"the next clear step up is {_described(min(steps)[1], baselines)}")
    return "; ".join(parts)


def _advice(layers: Sequence[LayerResult], total: Summary, baselines: Mapping[str, Summary]) -> str:
    worst, share = carriers(layers)
    if not worst or len(worst) > max(2, int(FEW_LAYERS * len(layers))) or len(worst) == len(layers):
        return f"the error is spread over the layers{_side(layers)}"
    side = _side([layers[index] for index in worst])
    numbers = [layers[index].layer for index in worst]
    noun = "layer" if len(numbers) == 1 else "layers"
    verb = "carries" if len(numbers) == 1 else "carry"
    found = f"{noun} {_listed(_spans(numbers))} {verb} {short_percent(share)} of the squared error{side}"
    better = suggestion(layers, total, worst, baselines)
    if better is None:
        return found
    what = better.policy if len(better.policy) <= _LONGEST_POLICY else f"{better.upgrade} there"
    ratio = better.kv_bytes / total.kv_bytes_f16
    return f"{found}: try {what} ({ratio:.2f}x, {short_percent(better.error)})"


def _side(layers: Sequence[LayerResult]) -> str:
    """Say which side carries the error of ``layers``, nothing when both have a part."""
    carrier = _carrier(layers)
    return f", nearly all of it through {carrier}" if carrier else ""


def _carrier(layers: Sequence[LayerResult]) -> str:
    """K or V, whichever carries the error of ``layers``; empty when both have a part."""
    k, v = (
        sum((getattr(layer, side).attn_output_rel_error or 0.0) ** 2 for layer in layers) for side in "kv"
    )
    if k >= ONE_SIDE * v and k > 0:
        return "K"
    return "V" if v >= ONE_SIDE * k and v > 0 else ""


def _trust(source: SourceInfo) -> str:
    if source.kind == "profile":
        return f"synthetic K/V can rank policies, not predict quality: {CONFIRM}"
    if source.name == REFERENCE_CAPTURE:
        return f"this is the reference model, and models differ: {CONFIRM}"
    return f"one capture is one text: {CONFIRM}"


def _described(name: str, baselines: Mapping[str, Summary]) -> str:
    other = baselines[name]
    error = other.attn_output_rel_error
    return f"{name} ({other.ratio_vs_f16:.2f}x{'' if error is None else ', ' + short_percent(error)})"


def _spans(numbers: Sequence[int]) -> list[str]:
    """Ascending numbers as spans: 1, 2, 3, 7 gives 1-3 and 7."""
    groups = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
