"""Plans: what is refused before anything runs, and the order of what is run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import KVQuantError, PolicyError, UsageError
from kvquant.results.sweep import Setting
from kvquant.sweep.plan import Measure, Probe, SweepPlan, Task, check_plan, counts, listed, read_plan, tasks

PLAN = SweepPlan(models=("a", "b"), policies=("f16", "q8_0", "k8v4"), threads=(1, 2), ctx=("4k",), rounds=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modles = ['a']", "unknown key 'modles'"),
        ("models = ['a']\n[measure]\nn_promt = 1", r"plan.toml.measure: unknown key 'n_promt'"),
        ("models = ['a']\n[[endpoint]]\nname = 'x'\nbase_url = 'u'\nport = 1", "unknown key 'port'"),
        ("policies = ['f16']", "neither models nor an endpoint"),
        ("models = ['a']\nthreads = [0]", "threads"),
        ("models = ['a', 'a']", "models has a value twice"),
        ("models = ['a']\npolicies = ['q8_0', '*:q8_0']", r"the policy \*:q8_0 is given twice"),
        ("models = ['a']\npolicies = ['tq_mse_3b']", "tq_mse_3b"),
        ("models = ['a']\npolicies = []", "policies, cpus, flash_attn and ctx each need at least one"),
        ("models = ['a']\nctx = ['4q']", "not a number of tokens"),
        ("models = ['a']\nctx = [4096, '4k']", "contexts has a value twice"),
        ("models = ['a']\nctx = [512]", "has no room for n_prompt"),
        ("models = ['a']\ncpus = ['7-4']", "write numbers such as 4-7"),
        ("models = ['a']\nflash_attn = ['auto']", "flash_attn"),
        ("models = ['a']\n[measure]\ndepths = [100]", "depth 100 is not a multiple of n_prompt"),
        ("models = ['a']\n[probe]\nmax_ctx = 512", "max_ctx is below its start"),
        ("models = ['a']\nreserve = 'much'", "is not a byte count"),
        ("models = ['a']\nram = ['4.5']", "has no unit"),
        ("models = ['a']\n[[endpoint]]\nname = 'a'\nbase_url = 'u'", "have the same name"),
        ("models = ['a']\n[transforms]\nb = 'x'", "names 'b', which is not a model of the plan"),
        ("models = ['a']\npolicies = ['q8_0@no-rotation']", "a sweep measures what is served"),
        ("models = [", "is not TOML"),
    ],
)
def test_a_bad_plan_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(KVQuantError, match=says) as error:
        read_plan(path)
    assert error.value.exit_code == 2
    # A policy's error shows the place below itself.
    assert "\n" not in str(error.value) or isinstance(error.value, PolicyError)


def test_a_plan_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(Path("no-such-plan.toml"))


def complaints(order: list[Task], plan: SweepPlan) -> list[str]:
    """What is wrong with an order of tasks."""
    found = []
    cells = [task for task in order if task.kind == "cell"]
    wanted = (
        len(plan.models) * len(plan.policies) * len(plan.threads or (1,)) * len(plan.cpus)
        * len(plan.flash_attn) * len(plan.ctx) * plan.rounds
    )  # fmt: skip
    if len({task.key for task in order}) != len(order):
        found.append("a key is there twice")
    if len(cells) != wanted:
        found.append(f"{len(cells)} cells, expected {wanted}")
    for index, (first, second) in enumerate(pairwise(cells)):
        before = {task.block for task in cells[:index]}
        if first.block != second.block and second.block in before:
            found.append(f"block {second.block} is torn apart")
    plain = [
        [replace(task, round=0, block=0) for task in cells if task.round == i] for i in range(plan.rounds)
    ]
    if any(one != plain[0][:: 1 if i % 2 == 0 else -1] for i, one in enumerate(plain)):
        found.append("a round does not run the way it should")
    return found


values = st.sets(st.integers(1, 8), min_size=1, max_size=3).map(lambda found: tuple(sorted(found)))


@given(values, values, values, st.integers(1, 4), st.booleans())
def test_every_setting_once_a_round_and_every_second_round_backwards(
    models: tuple[int, ...], threads: tuple[int, ...], ctx: tuple[int, ...], rounds: int, probed: bool
) -> None:
    plan = SweepPlan(
        models=tuple(f"m{i}" for i in models),
        policies=("f16", "q8_0"),
        threads=threads,
        ctx=tuple(1024 * i for i in ctx),
        flash_attn=("on", "off"),
        rounds=rounds,
        probe=Probe(max_ctx=2048) if probed else None,
    )
    order = tasks(check_plan(plan))
    assert complaints(order, plan) == []
    n_probes = sum(task.kind == "probe" for task in order[-2 * len(models) :])
    assert n_probes == (2 * len(models) if probed else 0)


def test_the_check_of_the_order_sees_each_fault() -> None:
    order = tasks(PLAN)
    assert complaints(order, PLAN) == []
    assert "a key is there twice" in complaints([*order[1:], order[1]], PLAN)[0]
    assert complaints(order[:-1], PLAN)
    assert any("torn apart" in what for what in complaints([order[0], *order[3:], *order[1:3]], PLAN))
    half = len(order) // 2
    assert "a round does not run the way it should" in complaints([*order[:half], *order[half:][::-1]], PLAN)


def test_policies_of_a_block_follow_each_other() -> None:
    first = tasks(PLAN)[:3]
    assert [task.setting.policy for task in first] == ["*:f16", "*:q8_0", "*:k=q8_0/v=q4_0"]
    assert len({task.block for task in first}) == 1
    assert first[0].setting == Setting("a", "*:f16", 1, "all", "on", 4096)


def test_a_transform_comes_with_every_policy_that_does_not_refuse_it() -> None:
    plan = SweepPlan(
        models=("a", "b"), policies=("q4_0", "q4_0@no-transform"), rounds=1, transforms={"a": "a.gguf"}
    )
    found = [(task.setting.model, task.setting.transform) for task in tasks(check_plan(plan))[:2]]
    assert found == [("a", "a.gguf"), ("a", None)]
    assert len({task.key for task in tasks(plan)[:2]}) == 2


@pytest.mark.parametrize(
    ("text", "says"), [("2,,4", "empty entry"), ("", "empty entry"), ("two", "whole numbers")]
)
def test_lists_of_options(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        counts(text, "--threads")


def test_lists_are_read() -> None:
    assert counts("2, 4", "--threads") == (2, 4)
    assert listed("4-7,0-7") == ("4-7", "0-7")


def test_the_committed_plan_is_one() -> None:
    plan = read_plan(Path(__file__).parents[2] / "eval/sweep/here.toml")
    found: Any = {
        "models": len(plan.models), "policies": len(plan.policies), "threads": plan.threads,
        "flash_attn": len(plan.flash_attn), "ctx": len(plan.ctx),
    }  # fmt: skip
    assert found == {"models": 2, "policies": 3, "threads": (1, 2), "flash_attn": 2, "ctx": 2}
    assert Measure().depths[0] == 0
