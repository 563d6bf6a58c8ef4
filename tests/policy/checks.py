"""Properties of the policy language as functions, so that a meta test can show that each can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvquant.errors import PolicyError
from kvquant.policy import Counting, Policy, ResolvedPolicy


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
            assert (left.counting, right.counting) == (Counting.LAYERS, Counting.CACHED)
            continue
        assert left.end < right.first, f"'{left}' and '{right}' are not in order"
        same_types = (left.k_type, left.v_type) == (right.k_type, right.v_type)
        assert not (same_types and left.end + 1 == right.first), f"'{left}' and '{right}' should be one rule"
    text = str(policy)
    assert text == text.lower() and not set(text) & set(" \t")


def check_policy_or_pointed_error(parse: Callable[[str], Policy], text: str) -> None:
    """Any text gives a policy or a PolicyError whose column lies in the text or just behind it."""
    try:
        policy = parse(text)
    except PolicyError as error:
        assert error.column is not None and 1 <= error.column <= len(text) + 1, f"{text!r}: {error.column}"
        assert error.code in {"empty", "syntax", "number", "type", "range", "overlap"}
        first, _, caret = str(error).partition("\n")
        assert first and caret.rstrip().endswith("^"), f"{text!r}: {error}"
        return
    assert text.isascii(), f"{text!r} is read as {policy}"
    check_normal_form(policy)


def check_resolve_covers_every_cached_layer_once(resolved: ResolvedPolicy, shape: LayerKinds) -> None:
    assert tuple(layer.layer for layer in resolved.layers) == shape.kv_layers
    assert [layer.kv_index for layer in resolved.layers] == list(range(len(shape.kv_layers)))


def check_resolved_types(
    resolved: ResolvedPolicy, rules: Sequence[tuple[Counting, int, int, str | None, str | None]], default: str
) -> None:
    """Every layer's types are those of the one rule (counting, first, end, k, v) that names it."""
    for layer in resolved.layers:
        expected = (default, default)
        for counting, first, end, k_type, v_type in rules:
            number = layer.layer if counting is Counting.LAYERS else layer.kv_index
            if first <= number <= end:
                expected = (k_type or default, v_type or default)
        assert (layer.k_type, layer.v_type) == expected, f"layer {layer.layer}: {layer}, expected {expected}"
