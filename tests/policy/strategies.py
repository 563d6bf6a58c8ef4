"""Hypothesis strategies for policies: rules that never clash, their spellings, texts near the grammar."""

from __future__ import annotations

from hypothesis import strategies as st

from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy import MAX_INDEX, Counting, Policy, Rule

types = st.sampled_from(CACHE_TYPES)
sides = st.one_of(
    types.map(lambda name: (name, name)),
    st.tuples(types, types),
    st.tuples(types, st.none()),
    st.tuples(st.none(), types),
)
numbers = st.one_of(
    st.integers(0, 12), st.sampled_from([MAX_INDEX - 1, MAX_INDEX]), st.integers(0, MAX_INDEX)
)


@st.composite
def rules_of_one_kind(draw: st.DrawFn, counting: Counting) -> list[Rule]:
    """Rules that name each number at most once: sorted cut points, taken two by two."""
    cuts = sorted(draw(st.lists(numbers, max_size=8, unique=True)))
    cuts = [cut for cut in cuts if cut or not counting.from_end]
    rules = []
    while cuts:
        first = cuts.pop(0)
        last = cuts.pop(0) if cuts and draw(st.booleans()) else first
        open_end = not cuts and not counting.from_end and draw(st.booleans())
        rules.append(Rule(counting, first, None if open_end else last, *draw(sides)))
    return rules


@st.composite
def rule_lists(draw: st.DrawFn) -> list[Rule]:
    """Rules of a valid policy in any order, in some of the ways of counting."""
    layers, last, cached, last_cached = (
        draw(rules_of_one_kind(counting)) if draw(st.booleans()) else []
        for counting in (Counting.LAYERS, Counting.LAST, Counting.CACHED, Counting.LAST_CACHED)
    )
    rest = [Rule(Counting.REST, 0, None, *draw(sides))] if draw(st.booleans()) else []
    if _names_all(layers) and (last or cached or last_cached or rest):
        layers = [Rule(Counting.LAYERS, 3, 5, "q8_0", "q8_0")]
    if _names_all(cached) and (last_cached or rest):
        cached = []
    rules = layers + last + cached + last_cached + rest
    return draw(st.permutations(rules or [Rule(Counting.LAYERS, 3, 5, "q8_0", "q8_0")]))


def _names_all(rules: list[Rule]) -> bool:
    return sum(rule.end - rule.first + 1 for rule in rules) == MAX_INDEX + 2


policies = rule_lists().map(lambda rules: Policy(tuple(rules)))


@st.composite
def spellings(draw: st.DrawFn, rules: list[Rule]) -> str:
    """One of the texts that mean ``rules``: zeros, case, blanks, the order of sides, N for N-N."""

    def number(value: int) -> str:
        return "0" * draw(st.integers(0, 3)) + str(value)

    def any_case(text: str) -> str:
        return "".join(c.upper() if draw(st.booleans()) else c for c in text)

    def spelled(rule: Rule) -> str:
        prefix = rule.counting.value
        selector = prefix + number(rule.first)
        if rule.counting is Counting.REST:
            selector = prefix
        elif rule.counting.from_end:
            selector = prefix + number(rule.end)
            if rule.first > 1 or draw(st.booleans()):
                selector += f"-{prefix}{number(rule.first)}"
        elif rule.first == 0 and rule.end < MAX_INDEX and draw(st.booleans()):
            selector = f"{prefix}first{number(rule.end + 1)}"
        elif rule.last is None:
            star = rule.first == 0 and rule.counting is Counting.LAYERS and draw(st.booleans())
            selector = "*" if star else selector + "-"
        elif rule.last != rule.first or draw(st.booleans()):
            selector += f"-{prefix}{number(rule.last)}"
        pairs = [f"{side}={name}" for side, name in (("k", rule.k_type), ("v", rule.v_type)) if name]
        types = "/".join(draw(st.permutations(pairs)))
        if rule.k_type == rule.v_type and draw(st.booleans()):
            types = str(rule.k_type)
        blanks = st.one_of(st.text(" \t\r\n", max_size=2), st.just("# 1:q9, \u00e9\n"))
        return f"{draw(blanks)}{any_case(selector)}:{any_case(types)}{draw(blanks)}"

    return ",".join(spelled(rule) for rule in rules)


near_policies = st.one_of(
    st.text(max_size=40),
    st.text("0123456789kvKVlast*-:,/= \tq_fb#\r\n\u212a\u0660", max_size=30),
    st.lists(
        st.sampled_from(
            [
                "*",
                "0",
                "7",
                "65535",
                "65536",
                "0" * 20,
                "9" * 5000,
                "-",
                "kv",
                "first",
                "last",
                "rest",
                "#",
                "\n",
                "\r\n",
                "k8v4",
                ":",
                ",",
                "/",
                "k=",
                "v=",
                "q8_0",
                "F16",
                "q9",
                " ",
                "\t",
                "\u00e9",
                "\x00",
            ]
        ),
        max_size=14,
    ).map("".join),
)
