"""Properties of the policy language as functions, so that a meta test can show that each can fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvquant.errors import PolicyError
from kvquant.policy import Counting, Policy, ResolvedPolicy

ORDER = (Counting.LAYERS, Counting.LAST, Counting.CACHED, Counting.LAST_CACHED, Counting.REST)


@dataclass(frozen=True)
class LayerKinds:
    """The part of a model shape that resolving needs: "attn", "none" or "shared" for each layer."""

    kinds: tuple[str, ...]
    name: str = "test-model"

    @property
    def n_layer(self) -> int:
        return len(self.kinds)

    @property
    def kv_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer, kind in enumerate(self.kinds) if kind == "attn")


def check_print_parse_is_identity(parse: Callable[[str], Policy], policy: Policy) -> None:
    printed = str(policy)
    again = parse(printed)
    assert again == policy, f"{printed!r} reads back as {again}"
    assert str(again) == printed, f"{printed!r} is printed again as {str(again)!r}"


def check_normal_form(policy: Policy) -> None:
    """Rules ascend, do not touch an equal neighbour, and a side is never given as the other one's double."""
    for left, right in zip(policy.rules, policy.rules[1:], strict=False):
        if left.counting is not right.counting:
            assert ORDER.index(left.counting) < ORDER.index(right.counting)
            continue
        near, far = (right, left) if left.counting.from_end else (left, right)
        assert near.end < far.first, f"'{left}' and '{right}' are not in order"
        assert not (left.types == right.types and near.end + 1 == far.first), (
            f"'{left}', '{right}' are one rule"
        )
    countings = {rule.counting for rule in policy.rules}
    if Counting.REST in countings and len(countings) <= 2:
        assert any(counting.from_end for counting in countings), f"'{policy}' can name the layers of the rest"
        *others, rest = policy.rules
        assert all(rule.types != rest.types for rule in others), f"'{policy}' names a part of the rest"
    text = str(policy)
    assert text == text.lower() and not set(text) & set(" \t")


def check_policy_or_pointed_error(parse: Callable[[str], Policy], text: str) -> None:
    """Any text gives a policy or a PolicyError whose column lies in the text or just behind it."""
    try:
        policy = parse(text)
    except PolicyError as error:
        lines = text.split("\n")
        assert error.line is not None and 1 <= error.line <= len(lines), f"{text!r}: line {error.line}"
        room = len(lines[error.line - 1]) + 1
        assert error.column is not None and 1 <= error.column <= room, f"{text!r}: column {error.column}"
        assert error.code in {"empty", "preset", "syntax", "number", "type", "range", "overlap"}
        first, _, caret = str(error).partition("\n")
        assert first and caret.rstrip().endswith("^"), f"{text!r}: {error}"
        return
    assert re.sub("#[^\n]*", "", text).isascii(), f"{text!r} is read as {policy}"
    check_normal_form(policy)


def check_resolve_covers_every_cached_layer_once(resolved: ResolvedPolicy, shape: LayerKinds) -> None:
    assert tuple(layer.layer for layer in resolved.layers) == shape.kv_layers
    assert [layer.kv_index for layer in resolved.layers] == list(range(len(shape.kv_layers)))


def check_resolved_types(
    resolved: ResolvedPolicy,
    rules: Sequence[tuple[Counting, int, int, str | None, str | None]],
    shape: LayerKinds,
    default: str,
) -> None:
    """Every layer's types are those of the one rule (counting, first, end, k, v) that names it."""
    for layer in resolved.layers:
        numbers = {
            Counting.LAYERS: layer.layer,
            Counting.LAST: shape.n_layer - layer.layer,
            Counting.CACHED: layer.kv_index,
            Counting.LAST_CACHED: len(shape.kv_layers) - layer.kv_index,
        }
        naming = [rule for rule in rules if rule[0] in numbers and rule[1] <= numbers[rule[0]] <= rule[2]]
        naming = naming or [rule for rule in rules if rule[0] is Counting.REST]
        assert len(naming) <= 1, f"layer {layer.layer} is named by {naming}"
        expected = (naming[0][3] or default, naming[0][4] or default) if naming else (default, default)
        assert (layer.k_type, layer.v_type) == expected, f"layer {layer.layer}: {layer}, expected {expected}"
