"""What holds for every policy, and that each of these checks notices a broken implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy import Counting, Policy, ResolvedPolicy, Rule, parse_policy
from policy.checks import (
    LayerKinds,
    check_normal_form,
    check_policy_or_pointed_error,
    check_print_parse_is_identity,
    check_resolve_covers_every_cached_layer_once,
    check_resolved_types,
)
from policy.strategies import near_policies, policies, rule_lists, spellings

shapes = st.lists(st.sampled_from(["attn", "none", "shared"]), min_size=1, max_size=16).map(
    lambda kinds: LayerKinds(tuple(kinds))
)


def _parse(text: str) -> Policy:
    return parse_policy(text, CACHE_TYPES)


@given(policies)
def test_print_parse_is_identity(policy: Policy) -> None:
    check_print_parse_is_identity(_parse, policy)
    check_normal_form(policy)


@given(st.data(), rule_lists())
def test_every_spelling_means_the_same(data: st.DataObject, rules: list[Rule]) -> None:
    assert _parse(data.draw(spellings(rules))) == Policy(tuple(rules))


@given(near_policies)
def test_any_text_is_a_policy_or_a_pointed_error(text: str) -> None:
    check_policy_or_pointed_error(_parse, text)


@given(rule_lists(), shapes)
def test_resolve_covers_every_cached_layer_once(rules: list[Rule], shape: LayerKinds) -> None:
    try:
        resolved = Policy(tuple(rules)).resolve(shape, "bf16", "bf16")
    except PolicyError as error:
        assert error.code == "overlap" and len({rule.counting for rule in rules}) > 1
        return
    check_resolve_covers_every_cached_layer_once(resolved, shape)
    written = [(rule.counting, rule.first, rule.end, rule.k_type, rule.v_type) for rule in rules]
    check_resolved_types(resolved, written, shape, "bf16")


def _forgets_the_last_rule(text: str) -> Policy:
    return Policy(_parse(text).rules[:-1])


def _swaps_k_and_v(text: str) -> Policy:
    return Policy(tuple(replace(rule, k_type=rule.v_type, v_type=rule.k_type) for rule in _parse(text).rules))


@pytest.mark.parametrize("broken", [_forgets_the_last_rule, _swaps_k_and_v])
def test_meta_print_parse_check_can_fail(broken: Callable[[str], Policy]) -> None:
    with pytest.raises(AssertionError):
        check_print_parse_is_identity(broken, _parse("0-3:k=q8_0/v=q4_0,kv9-:k=f16"))


def _unmerged(*rules: Rule) -> Policy:
    policy = Policy(rules[:1])
    object.__setattr__(policy, "rules", rules)
    return policy


@pytest.mark.parametrize(
    "rules",
    [
        [Rule(Counting.LAYERS, 4, 4, "f16", "f16"), Rule(Counting.LAYERS, 0, 0, "f16", "f16")],
        [Rule(Counting.LAYERS, 0, 0, "f16", "f16"), Rule(Counting.LAYERS, 1, 1, "f16", "f16")],
        [Rule(Counting.CACHED, 0, 0, "f16", "f16"), Rule(Counting.LAYERS, 1, 1, "f16", "f16")],
        [Rule(Counting.LAYERS, 0, 0, "F16", "F16")],
        [Rule(Counting.LAST, 1, 2, "f16", "f16"), Rule(Counting.LAST, 4, 4, "f16", "f16")],
        [Rule(Counting.LAST, 3, 4, "f16", "f16"), Rule(Counting.LAST, 1, 2, "f16", "f16")],
        [Rule(Counting.REST, 0, None, "f16", "f16")],
        [Rule(Counting.LAST, 1, 2, "f16", "f16"), Rule(Counting.REST, 0, None, "f16", "f16")],
    ],
    ids=["order", "merging", "kinds", "case", "end order", "end merging", "only rest", "part of the rest"],
)
def test_meta_normal_form_check_can_fail(rules: list[Rule]) -> None:
    with pytest.raises(AssertionError):
        check_normal_form(_unmerged(*rules))


def test_meta_pointed_error_check_can_fail() -> None:
    def accepts_everything(_: str) -> Policy:
        return _parse("*:q8_0")

    def points_past_the_end(text: str) -> Policy:
        raise PolicyError("policy, column 99: bad\n  x\n  ^", code="syntax", column=len(text) + 2, line=1)

    def points_at_no_line(_: str) -> Policy:
        raise PolicyError("policy, column 1: bad\n  x\n  ^", code="syntax", column=1, line=2)

    def points_nowhere(_: str) -> Policy:
        raise PolicyError("bad", code="syntax")

    def has_no_caret(_: str) -> Policy:
        raise PolicyError("bad", code="syntax", column=1, line=1)

    broken_readers = (
        accepts_everything,
        points_past_the_end,
        points_at_no_line,
        points_nowhere,
        has_no_caret,
    )
    for broken in broken_readers:
        with pytest.raises(AssertionError):
            check_policy_or_pointed_error(broken, "\u0663:q8_0")


def test_meta_resolve_checks_can_fail() -> None:
    shape = LayerKinds(("attn", "none", "attn"))
    good = _parse("0:q8_0").resolve(shape)
    check_resolve_covers_every_cached_layer_once(good, shape)
    first, second = good.layers
    for layers in ((first,), (first, second, first), (first, replace(second, kv_index=2))):
        with pytest.raises(AssertionError):
            check_resolve_covers_every_cached_layer_once(ResolvedPolicy(layers, ()), shape)
    rules = [(Counting.LAYERS, 0, 0, "q8_0", "q8_0")]
    check_resolved_types(good, rules, shape, "f16")
    swapped = ResolvedPolicy((replace(good.layers[0], v_type="q4_0"), good.layers[1]), ())
    with pytest.raises(AssertionError):
        check_resolved_types(swapped, rules, shape, "f16")
