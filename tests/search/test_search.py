"""The search against trying everything, and the command on top of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from math import isclose

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from analysis.strategies import HYBRID, SMALL
from kvquant.analysis import Sampling, analyze
from kvquant.cli.main import kvquant
from kvquant.errors import UsageError
from kvquant.search import Choice, choose, knapsack, search

Layers = Sequence[Sequence[tuple[int, float]]]
FEW = Sampling(n_tokens=32, n_query=4)

options = st.tuples(st.integers(0, 12), st.sampled_from((0.0, 1e-9, 0.5, 1.0, 1.0, 3.0)))
problems = st.tuples(
    st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 50)
)


def check_choice_is_the_best(solve: Callable[[Layers, int], Choice], layers: Layers, budget: int) -> None:
    """Compare with trying every combination."""
    fitting = [
        (sum(error for _, error in taken), sum(n_bytes for n_bytes, _ in taken))
        for taken in product(*layers)
        if sum(n_bytes for n_bytes, _ in taken) <= budget
    ]
    if not fitting:
        with pytest.raises(UsageError, match="is below"):
            solve(layers, budget)
        return
    found = solve(layers, budget)
    taken = [options[index] for options, index in zip(layers, found.options, strict=True)]
    assert found.n_bytes == sum(n_bytes for n_bytes, _ in taken) <= budget
    assert isclose(found.error, sum(error for _, error in taken), abs_tol=1e-12)
    assert isclose(found.error, min(fitting)[0], abs_tol=1e-12), (found, min(fitting))
    assert found.exact


@given(problems)
def test_the_choice_is_the_best(problem: tuple[Layers, int]) -> None:
    check_choice_is_the_best(choose, *problem)


def greedy(layers: Layers, budget: int) -> Choice:
    """Each layer in turn takes the least error that still leaves room for the rest: not the best."""
    left = budget - sum(min(options)[0] for options in layers)
    taken = []
    for layer in layers:
        least = min(layer)[0]
        index = min(
            (i for i in range(len(layer)) if layer[i][0] - least <= left),
            key=lambda i, layer=layer: layer[i][1],
        )
        left -= layer[index][0] - least
        taken.append(index)
    chosen = [options[i] for options, i in zip(layers, taken, strict=True)]
    return Choice(tuple(taken), sum(b for b, _ in chosen), sum(e for _, e in chosen), True)


def test_the_check_notices_a_choice_that_is_only_good() -> None:
    layers = [[(0, 2.0), (5, 1.0)], [(0, 9.0), (5, 0.0)]]
    check_choice_is_the_best(choose, layers, 5)
    with pytest.raises(AssertionError):
        check_choice_is_the_best(greedy, layers, 5)


def test_a_thinned_front_stays_within_the_budget_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    layers = [
        [(int(b), float(e)) for b, e in zip(rng.integers(1, 10**6, 6), rng.random(6), strict=True)]
        for _ in range(12)
    ]
    best = choose(layers, 4 * 10**6)
    monkeypatch.setattr(knapsack, "MAX_FRONT", 8)
    found = choose(layers, 4 * 10**6)
    assert best.exact and not found.exact
    assert found.n_bytes <= 4 * 10**6 and best.error <= found.error <= 1.5 * best.error


@pytest.mark.parametrize("shape", [SMALL, HYBRID], ids=lambda shape: shape.name)
def test_what_is_found_is_what_analyze_measures(shape: object) -> None:
    found = search(0.4, shape=shape, sampling=FEW)  # type: ignore[arg-type]
    measured = analyze(found.policy, shape=shape, baselines=(), rotation="on", sampling=FEW)  # type: ignore[arg-type]
    assert measured.total.kv_bytes == found.kv_bytes <= 0.4 * found.kv_bytes_f16
    assert measured.total.kv_bytes_f16 == found.kv_bytes_f16
    assert measured.total.errors.attn_output_rel_error == pytest.approx(found.error, rel=1e-9)


def test_a_search_is_no_worse_than_any_uniform_type_and_better_with_more_bytes() -> None:
    found = [search(share, shape=SMALL, sampling=FEW) for share in (0.3, 0.4, 0.6, 1.0)]
    assert [entry.uniform[0] for entry in found if entry.uniform] == ["q4_0", "q5_0", "q8_0", "f16"]
    for entry in found:
        assert entry.uniform is not None and entry.error <= entry.uniform[1] * (1 + 1e-12)
    assert [entry.error for entry in found] == sorted((entry.error for entry in found), reverse=True)
    assert str(found[-1].policy) == "0-3:f16"


def test_too_small_a_budget_says_what_would_do() -> None:
    with pytest.raises(UsageError, match=r"budget of 1.00 KiB is below 2\.25 MiB") as caught:
        search(1024, shape=SMALL, sampling=FEW)
    assert "\n" not in str(caught.value)


def test_the_command_prints_a_policy_and_nothing_else() -> None:
    result = CliRunner().invoke(
        kvquant, ["search", "--budget", "0.3x", "--types", "q8_0,q4_0", "--shape", "qwen3.5-2b"]
    )
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert {part.partition(":")[0] for part in line.split(",")} <= {"3", "7", "11", "15", "19", "23"}
    assert "x of f16, attention output off by" in result.stderr


def test_the_command_as_json() -> None:
    result = CliRunner().invoke(
        kvquant, ["search", "--budget", "4MiB", "--shape", "qwen3.5-2b", "--ctx", "256", "--json"]
    )
    document = json.loads(result.stdout)
    assert document["total"]["kv_bytes"] <= 4 * 2**20 and document["exact"] is True
    assert document["n_ctx"] == 256 and document["policy"]


@pytest.mark.parametrize("budget", ["", "much", "-3x", "0..3x"])
def test_a_budget_that_is_none(budget: str) -> None:
    error = CliRunner().invoke(kvquant, ["search", "--budget", budget]).exception
    assert isinstance(error, UsageError) and "or a share of f16 such as 0.35x" in str(error)
