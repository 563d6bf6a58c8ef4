"""The stages of a search on a meter that knows the truth: costs that add up, or do not."""

from __future__ import annotations

import pytest

from kvquant.errors import UsageError
from kvquant.policy import parse_policy
from kvquant.search.costs import format_noise
from kvquant.search.outcome import compare, document
from kvquant.search.rivals import Hints, random_policies, rivals_within
from kvquant.search.sides import Side, assignment_of
from kvquant.search.staged import N_PROBES, Search
from search.true_meter import FLOOR, HEAVY, SHAPE, SIDES, START, TYPES, TrueMeter, problem

PROBED = {f"{layer}:v" for layer in (0, 6, 12, 17, 23)}


def types_of(policy: str) -> dict[Side, str]:
    return assignment_of(parse_policy(policy), SHAPE)


def test_the_sides_that_cost_get_the_bytes() -> None:
    meter = TrueMeter()
    search = Search(problem(), meter, Hints())
    costs = search.costs()
    room = search.room(search.problem.budget or 0)
    rivals, _ = rivals_within(room, Hints(), SHAPE.n_layer)
    best = search.verify(costs, room, rivals).best
    assert room.n_bytes(types_of(best.policy)) <= room.budget
    assert {types_of(best.policy)[side] for side in HEAVY} == {"q8_0"}
    assert all(meter.truth(rival.policy) > 2 * meter.truth(best.policy) for rival in rivals)


def test_finer_types_are_measured_only_where_the_coarsest_shows() -> None:
    meter = TrueMeter()
    Search(problem(), meter, Hints()).costs()
    asked = {policy for _, policy, _ in meter.asked}
    # q5_0 shows at a quarter of q4_0's cost; q8_0, at a 260th, where a side costs a hundred times the noise.
    assert {f"{side.layer}:{side.side}=q5_0" for side in SIDES} <= asked
    q8_0 = {policy for policy in asked if "q8_0" in policy}
    assert {f"{side.layer}:{side.side}=q8_0" for side in HEAVY} <= q8_0
    assert len(q8_0) == len({f"{side.layer}:{side.side}" for side in HEAVY} | PROBED)
    hidden = TrueMeter()
    hidden.truth = lambda _policy: FLOOR + 1e-5  # type: ignore[method-assign]
    Search(problem(), hidden, Hints()).costs()
    assert len(hidden.asked) == len(SIDES) + N_PROBES


def test_a_swap_finds_what_single_costs_do_not_show() -> None:
    """Two sides that are cheap by themselves and dear together: only measuring whole policies can tell."""
    single = TrueMeter()
    search = Search(problem(), single, Hints())
    costs = search.costs()
    room = search.room(search.problem.budget or 0)
    blind = search.verify(costs, room, ()).best.policy
    coarse = [side for side, name in types_of(blind).items() if name == "q4_0"]
    pair = frozenset({next(side for side in coarse if side.side == "v"), coarse[-1]})
    meter = TrueMeter({pair: 0.01})
    sighted = Search(problem(), meter, Hints())
    best = sighted.verify(sighted.costs(), room, ()).best.policy
    assert meter.truth(best) <= meter.truth(blind)


def test_in_reverse_interactions_count_where_they_are() -> None:
    """Sides that cost nothing alone and much among coarse ones: only the reverse question sees them."""
    pairs = {frozenset({Side(layer, "k"), Side(20, "v")}): 0.02 for layer in range(8, 20)}
    meter = TrueMeter(pairs)
    forward, reverse = Search(problem(), meter, Hints()), Search(problem(reverse=True), meter, Hints())
    hub = Side(20, "v")
    assert forward.costs().costs[hub, "q4_0"].nats < 0.01 < reverse.costs().costs[hub, "q4_0"].nats
    costs, room = reverse.costs(), reverse.room(reverse.problem.budget or 0)
    best = reverse.verify(costs, room, ()).best.policy
    assert types_of(best)[hub] == "q8_0"
    everywhere = dict.fromkeys(SIDES, "q4_0")
    assert costs.predict(everywhere) == pytest.approx(meter.truth("*:q4_0"), rel=0.01)


def test_more_text_is_for_those_that_can_still_be_best() -> None:
    meter = TrueMeter()
    search = Search(problem(n_chunks=4), meter, Hints())
    costs, room = search.costs(), search.room(search.problem.budget or 0)
    rivals, _ = rivals_within(room, Hints(), SHAPE.n_layer)
    meter.asked.clear()
    best = search.verify(costs, room, rivals).best
    first = {policy for _, policy, n_chunks in meter.asked if n_chunks == 1}
    last = {policy for _, policy, n_chunks in meter.asked if n_chunks == 4}
    assert {rival.policy for rival in rivals} <= first and best.policy in last
    assert not last & {rival.policy for rival in rivals if meter.truth(rival.policy) > 0.1}


def test_a_rule_that_is_best_is_what_is_returned_and_said() -> None:
    class Flat(TrueMeter):
        def truth(self, policy: str) -> float:
            return FLOOR + (0.001 if policy == "0-23:q4_0" else 0.5)

    meter = Flat()
    search = Search(problem(0.3), meter, Hints())
    costs, room = search.costs(), search.room(search.problem.budget or 0)
    rivals, out = rivals_within(room, Hints(), SHAPE.n_layer)
    found = compare(search, meter, costs, room, rivals, out, n_random=0)
    result = document(search, meter, found, Hints(), START, {})
    assert result.simple == "q4_0" and result.random is None
    assert "it is a simple rule, q4_0: the search found nothing better" in result.sentence


def test_the_document_compares_on_the_held_out_text_only() -> None:
    meter = TrueMeter()
    hints = Hints(k_bias_layers=[0], weight_norms={side: float(side.layer) for side in SIDES})
    search = Search(problem(0.35, n_held_out_chunks=3), meter, hints)
    costs, room = search.costs(), search.room(search.problem.budget or 0)
    rivals, out = rivals_within(room, hints, SHAPE.n_layer)
    result = document(
        search, meter, compare(search, meter, costs, room, rivals, out, n_random=5), hints, START, {}
    )
    held_out = {policy for part, policy, _ in meter.asked if part == "held-out"}
    assert {rival.policy for rival in result.rivals} | {result.policy} <= held_out
    assert result.against is not None and result.against.verdict == "better"
    assert [rival.kl_held_out.mean for rival in result.rivals if rival.kl_held_out] == sorted(
        rival.kl_held_out.mean for rival in result.rivals if rival.kl_held_out
    )
    assert {"q5_0", "weight norms", "K bias"} <= {rival.name for rival in result.rivals}
    assert result.additivity.ratio == pytest.approx(1, abs=0.2)
    assert result.additivity.rank_correlation == pytest.approx(1, abs=0.1)
    assert result.random is not None and result.random.n == 5 and result.random.n_tokens == 191
    assert result.kv_bytes <= (result.budget_bytes or 0)


def test_the_fewest_bytes_under_a_loss() -> None:
    meter = TrueMeter()
    search = Search(problem(None, max_kl=0.05), meter, Hints())
    costs = search.costs()
    room = search.smallest_within(costs, 0.05)
    assert meter.truth(search.verify(costs, room, ()).best.policy) <= 0.05
    larger = search.smallest_within(costs, 0.01)
    assert larger.budget > room.budget
    with pytest.raises(
        UsageError, match=r"--max-kl 0\.002 is below 0\.003, the difference of a float16 cache"
    ):
        search.smallest_within(costs, 0.002)


def test_too_little_is_refused_before_anything_is_measured() -> None:
    meter = TrueMeter()
    with pytest.raises(UsageError, match=r"budget of .* is below .*, the smallest size with these types"):
        Search(problem(0.25), meter, Hints())
    assert not meter.asked


def test_quick_measures_no_side_and_says_what_its_order_is_worth() -> None:
    low = format_noise("q4_0")
    proxy = {
        (side, name): HEAVY.get(side, 0.0005) * format_noise(name) / low for side in SIDES for name in TYPES
    }
    meter, hints = TrueMeter(), Hints(proxy=proxy)
    search = Search(problem(proxy=True), meter, hints)
    costs, room = search.costs(), search.room(search.problem.budget or 0)
    assert len(meter.asked) == 1
    rivals, out = rivals_within(room, hints, SHAPE.n_layer)
    result = document(
        search, meter, compare(search, meter, costs, room, rivals, out, n_random=0), hints, START, {}
    )
    assert result.costs_from == "capture" and all(side.kl is None for side in result.sides)
    assert result.proxy_rank_correlation == pytest.approx(1, abs=0.1)
    with pytest.raises(UsageError, match="give --capture FILE"):
        Search(problem(proxy=True), meter, Hints()).costs()


@pytest.mark.parametrize("share", [0.3, 0.35, 0.5])
def test_rules_and_random_policies_fill_the_same_bytes(share: float) -> None:
    search = Search(problem(share), TrueMeter(), Hints())
    room = search.room(search.problem.budget or 0)
    rivals, left_out = rivals_within(room, Hints(k_bias_layers=[0, 5]), SHAPE.n_layer)
    assert len({rival.policy for rival in rivals}) == len(rivals) > 2
    for rival in rivals:
        assert room.fits(types_of(rival.policy)), rival
    assert all(entry.why for entry in left_out)
    drawn = random_policies(room, n=10)
    assert drawn == random_policies(room, n=10) and drawn != random_policies(room, seed=1, n=10)
    smallest = min(room.sizes[SIDES[0], name] for name in ("q4_0",))
    for policy in drawn:
        left = room.budget - room.n_bytes(types_of(policy))
        assert 0 <= left < smallest
    grown = next(rival for rival in rivals if rival.name.startswith("first ") and "and" not in rival.name)
    n = int(grown.name.split()[1])
    assert not room.fits(room.fine_layers(room.layers[: n + 1]))
