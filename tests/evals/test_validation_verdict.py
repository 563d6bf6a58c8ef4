"""Verdicts and results from records written by hand: every rule, its limits, and what is not known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.validations import POLICIES, RIGHT, RULES, START, kl, memory, records, rounds_of, run_of
from kvquant.documents import to_json, write_json
from kvquant.errors import KVQuantError
from kvquant.evals.validation.assemble import assemble
from kvquant.evals.validation.records import Records
from kvquant.evals.validation.verdict import judge_speed
from kvquant.report.validation_text import validation_text
from kvquant.results.comparison import Interval, Verdict
from kvquant.results.validation import (
    Failure,
    PolicyResult,
    Speed,
    ValidationResult,
    parse_result,
    read_result,
)

BROKEN = "1" * 280 + "0" * 120
COSTS = "1" * 380 + "0" * 20


def policy(found: ValidationResult, label: str) -> PolicyResult:
    return next(policy for policy in found.policies if policy.label == label)


def verdict(made: Records, label: str = "q4_0") -> Verdict:
    return policy(assemble(made), label).verdict


def reasons(made: Records, label: str = "q4_0") -> str:
    return "\n".join(policy(assemble(made), label).reasons)


def test_nothing_lost_is_safe_and_every_number_is_said() -> None:
    found = assemble(records())
    assert [entry.verdict for entry in found.policies] == [Verdict.BASELINE, Verdict.SAFE, Verdict.SAFE]
    said = "\n".join(policy(found, "q4_0").reasons)
    assert "0 of 400 lost and 0 gained" in said and "p 1 adjusted for 2 policies" in said
    assert "would have been detected, 5 points do not matter" in said
    assert "mean KL 0.002 nats above the floor (0.0015 to 0.0025)" in said
    assert "450 B, 0.281 of the baseline; log, arithmetic and slot file agree" in said
    assert "asked twice: 0 of 400 answers changed" in policy(found, "f16").reasons[0]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (records(q4_0=COSTS), Verdict.COSTS),
        (records(q4_0=BROKEN), Verdict.BROKEN),
        (records(kl_of={"*:q4_0": 0.02}), Verdict.COSTS),
        (records(kl_of={"*:q4_0": 0.011}), Verdict.CANNOT_TELL),
        (records(kl_of={"*:q4_0": 0.8}), Verdict.BROKEN),
        # The worst part decides.
        (records(q4_0=BROKEN, kl_of={"*:q4_0": 0.02}), Verdict.BROKEN),
    ],
)
def test_answers_and_divergence_decide(made: Records, expected: Verdict) -> None:
    assert verdict(made) is expected
    assert verdict(made, "q8_0") is Verdict.SAFE


def test_the_floor_is_taken_off() -> None:
    noisy = records(kl_of={"*:f16": 0.02, "*:q8_0": 0.021, "*:q4_0": 0.05})
    assert verdict(noisy, "q8_0") is Verdict.SAFE
    assert verdict(noisy, "q4_0") is Verdict.COSTS


def test_one_category_is_enough_to_break_a_policy() -> None:
    made = records()
    runs = {"*:f16": run_of(RIGHT, "1" * 40), "*:q4_0": run_of(RIGHT, "1" * 20 + "0" * 20)}
    found = assemble(replace(made, runs={**made.runs, **runs, "*:q8_0": run_of(RIGHT, "1" * 40)}))
    assert policy(found, "q4_0").verdict is Verdict.BROKEN
    assert policy(found, "q4_0").reasons[0].startswith("code: 20 of 40 lost and 0 gained, -50.0 points")
    assert policy(found, "q8_0").verdict is Verdict.SAFE


def test_few_samples_cannot_tell() -> None:
    made = records()
    few = {name: run_of("1" * 20) for name in made.runs}
    assert verdict(replace(made, runs=few)) is Verdict.CANNOT_TELL
    assert "safe needs 5 points" in reasons(replace(made, runs=few))


NOTHING = "0" * 400


def nothing_right(**changes: Any) -> Records:
    """A baseline that is never right, and policies that therefore lose nothing."""
    made = records(**changes)
    return replace(made, runs={name: run_of(NOTHING) for name in made.runs}, repeat=run_of(NOTHING))


def test_answers_that_are_never_right_clear_nothing() -> None:
    """Only divergence speaks then, and without it nothing does."""
    start = replace(START, parts={**START.parts, "divergence": None})
    without = [(policy.policy, "divergence prefill") for policy in POLICIES]
    blind = nothing_right(start=start, dropped=without)
    assert verdict(blind) is Verdict.CANNOT_TELL
    assert "all answers say nothing: the baseline has 0 of 400 right" in reasons(blind)
    assert "neither answers nor divergence compare it" in reasons(blind)
    assert "easier suite" in validation_text(assemble(blind))
    assert verdict(nothing_right()) is Verdict.SAFE
    assert "all answers say nothing" in reasons(nothing_right())
    assert verdict(nothing_right(kl_of={"*:q4_0": 0.02})) is Verdict.COSTS


def test_a_category_that_is_never_right_is_named() -> None:
    made = records()
    runs = {name: run_of(RIGHT, "0" * 40) for name in made.runs}
    found = replace(made, runs=runs)
    assert verdict(found) is Verdict.SAFE
    assert "; code says nothing, the baseline has 0 of 40 right" in reasons(found)


def test_a_part_that_is_missing_cannot_clear_a_policy() -> None:
    made = records(dropped=[("*:q4_0", "divergence prefill")])
    assert verdict(made) is Verdict.CANNOT_TELL
    assert "not finished: divergence prefill" in reasons(made)
    assert verdict(made, "q8_0") is Verdict.SAFE
    # But what is broken stays broken.
    assert verdict(records(q4_0=BROKEN, dropped=[("*:q4_0", "divergence prefill")])) is Verdict.BROKEN


def test_without_quality_nothing_is_safe() -> None:
    start = replace(START, n=0, parts={**START.parts, "divergence": None})
    made = records(start=start)
    keys = [key for key in made.journal.measured if key[1] != "memory"]
    bare = replace(records(start=start, dropped=keys), runs={}, repeat=None)
    assert verdict(bare) is Verdict.CANNOT_TELL
    assert "neither answers nor divergence" in reasons(bare)


def test_a_failure_is_a_verdict_of_its_policy_alone() -> None:
    failure = Failure("tasks", "llama-server ended with status 137: killed", "logs/q4_0.server.log")
    made = records(failures={("*:q4_0", "tasks"): failure}, dropped=[("*:q4_0", "tasks")])
    assert verdict(made) is Verdict.FAILED
    assert policy(assemble(made), "q4_0").failures == (failure,)
    assert "tasks failed: llama-server ended with status 137" in reasons(made)
    assert verdict(made, "q8_0") is Verdict.SAFE


def test_a_cache_that_is_not_what_was_asked_for_is_a_failure() -> None:
    odd = memory(450, ("log, layer 3, K: f16 with 128 B, computed q4_0 with 36 B",))
    made = records(measured={("*:q4_0", "memory"): odd})
    assert verdict(made) is Verdict.FAILED
    assert "the cache is not the requested one: log, layer 3" in reasons(made)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ([0.5, 0.52, 0.51, 0.5, 0.49, 0.5], Verdict.COSTS),
        ([0.5, 1.1, 0.9, 1.0, 0.95, 1.2], Verdict.SAFE),
        # Too few rounds for an interval: said, not judged.
        ([0.5, 0.5], Verdict.SAFE),
    ],
)
def test_only_a_sure_slowdown_costs(factors: list[float], expected: Verdict) -> None:
    speeds = {"*:f16": [100.0] * len(factors), "*:q4_0": [100.0 * factor for factor in factors]}
    made = records(rounds=rounds_of(speeds))
    assert verdict(made) is expected
    assert "decode at depth 64" in reasons(made)


def test_one_slow_depth_of_several_may_be_chance() -> None:
    def point(depth: int, high: float) -> Speed:
        return Speed("decode", depth, 100.0, 0.5, Interval(0.4, high), 6)

    for highs, expected in (((0.6, 1.2), Verdict.SAFE), ((0.6, 0.7), Verdict.COSTS)):
        (found,) = judge_speed([point(0, highs[0]), point(64, highs[1])], RULES)
        assert found.verdict is expected


def test_no_baseline_no_comparison() -> None:
    made = records()
    runs = {name: run for name, run in made.runs.items() if name != "*:f16"}
    lonely = replace(records(dropped=[("*:f16", "divergence prefill")]), runs=runs, repeat=None)
    assert policy(assemble(lonely), "q4_0").tasks == ()
    assert policy(assemble(lonely), "q4_0").divergence[0].floor is None


def test_other_rules_give_other_verdicts() -> None:
    made = records(q4_0=COSTS)
    assert policy(assemble(made, replace(RULES, broken_loss=0.04)), "q4_0").verdict is Verdict.BROKEN


def test_the_document_is_read_back_as_it_was(tmp_path: Path) -> None:
    found = assemble(records(q4_0=COSTS, rounds=rounds_of({"*:f16": [1.0], "*:q4_0": [2.0]})))
    write_json(tmp_path / "results.json", found)
    assert read_result(tmp_path / "results.json") == found
    assert parse_result(json.loads(to_json(found)), "x") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=2), "schema version 2, this kvquant reads 1"),
        (lambda d: d.pop("model"), "x: object missing required field `model`"),
        (
            lambda d: d["policies"][0].update(verdict="fine"),
            r"policies\[0\].verdict: invalid enum value 'fine'",
        ),
        (
            lambda d: d["policies"][1]["memory"].update(ratio="0.5"),
            r"\[1\].memory.ratio: expected `float . nu",
        ),
        (
            lambda d: d["policies"][1]["divergence"][0].update(interval=[1]),
            r"interval: expected `array` of le",
        ),
        (lambda d: d.update(policies={}), "x.policies: expected `array`, got `object`"),
    ],
)
def test_a_damaged_document_names_the_place(change: Any, message: str) -> None:
    document = json.loads(to_json(assemble(records())))
    change(document)
    with pytest.raises(KVQuantError, match=message):
        parse_result(document, "x")


def test_the_table_aligns_and_shows_what_is_unknown() -> None:
    made = records(q4_0=BROKEN, dropped=[("*:q8_0", "memory")])
    text = validation_text(assemble(made))
    head, *rows = text.splitlines()[2:6]
    names = ("KV cache", "of baseline", "right", "change, points", "KL, nats", "KL floor", "decode")
    ends = {head.index(name) + len(name) for name in names}
    for row in rows:
        padded = row.ljust(len(head))
        assert all(padded[end : end + 1].strip() == "" and padded[end - 1] != " " for end in ends), row
    assert [row[len("policy  ") :].split("  ")[0] for row in rows] == ["baseline", "safe", "broken"]
    assert rows[1].split()[2:4] == ["?", "?"]
    assert "rules: alpha 0.05" in text


def test_labels_and_policies_are_those_of_the_start() -> None:
    assert [(p.label, p.policy) for p in assemble(records()).policies] == [
        (named.label, named.policy) for named in POLICIES
    ]


def test_kl_helper_is_what_the_journal_holds() -> None:
    made = records(measured={("*:q4_0", "divergence prefill"): kl(0.8)})
    assert policy(assemble(made), "q4_0").divergence[0].mean == 0.8
