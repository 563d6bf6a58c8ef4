"""The last stage of a search, on text that nothing was chosen on, and the document of it all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from scipy.stats import spearmanr

from kvquant.policy import parse_policy
from kvquant.results.search import (
    SCHEMA_VERSION,
    Additivity,
    Against,
    Kl,
    LeftOut,
    MeasuredPolicy,
    RandomPolicies,
    SearchResult,
    SearchStart,
    SideCost,
)
from kvquant.search.costs import coarsest
from kvquant.search.problem import Costs, Meter, Problem, Verified
from kvquant.search.rivals import Hints, Rival, Room, random_policies
from kvquant.search.sides import EXACT, assignment_of
from kvquant.search.staged import Search
from kvquant.tables import small
from kvquant.units import format_n_bytes


@dataclass(frozen=True)
class Found:
    """Everything that the stages gave."""

    costs: Costs
    room: Room
    verified: Verified
    rivals: Sequence[Rival]
    left_out: Sequence[LeftOut]
    front: Sequence[str]
    random: Sequence[str]
    held_out: Mapping[str, Kl]
    held_out_random: Mapping[str, Kl]


def compare(
    search: Search,
    meter: Meter,
    costs: Costs,
    room: Room,
    rivals: Sequence[Rival],
    left_out: Sequence[LeftOut],
    *,
    n_random: int,
) -> Found:
    """Verify on the fitting text, then measure the best, every rival, the front and random policies on the
    held-out one; random policies on its first chunk only.
    """
    problem = search.problem
    verified = search.verify(costs, room, rivals)
    front = search.front(costs)
    wanted = [verified.best.policy, *(rival.policy for rival in rivals), *front]
    search.say("policies on the held-out text")
    held_out = meter.measure("held-out", wanted, problem.n_held_out_chunks)
    drawn = random_policies(room, problem.seed, n_random) if n_random else []
    found: Mapping[str, Kl] = {}
    if drawn:
        search.say("random policies on the held-out text")
        found = meter.measure("held-out", drawn, 1)
    return Found(costs, room, verified, rivals, left_out, front, drawn, held_out, found)


def document(
    search: Search, meter: Meter, found: Found, hints: Hints, start: SearchStart, provenance: dict[str, Any]
) -> SearchResult:
    """Return the result document."""
    problem, best = search.problem, found.verified.best
    of_rules = {rival.policy: rival for rival in found.rivals}
    against = _against(meter, found)
    result = SearchResult(
        schema_version=SCHEMA_VERSION,
        start=start,
        types=problem.types,
        policy=best.policy,
        simple=of_rules[best.policy].name if best.policy in of_rules else None,
        n_ctx=problem.options.n_ctx,
        budget_bytes=problem.budget,
        max_kl=problem.max_kl,
        kv_bytes=search.n_bytes(best.policy),
        kv_bytes_f16=search.kv_bytes_f16,
        of_f16=search.n_bytes(best.policy) / search.kv_bytes_f16,
        kl_fit=found.verified.kl[best.policy],
        kl_held_out=found.held_out[best.policy],
        against=against,
        floor=found.costs.floor.whole,
        floor_line=(found.costs.floor.base, found.costs.floor.slope),
        costs_from="capture" if problem.proxy else "reverse" if problem.reverse else "measurement",
        proxy_rank_correlation=_proxy_correlation(search, found, hints),
        sides=tuple(_side_costs(search, found.costs)),
        additivity=_additivity(search, found),
        front=tuple(
            _measured(search, found, "front", "front", policy, "the least sum of costs in its bytes")
            for policy in found.front
        ),
        candidates=tuple(
            _measured(search, found, "candidate", entry.name, entry.policy, entry.how)
            for entry in found.verified.candidates
            if entry.policy not in of_rules
        ),
        rivals=tuple(
            _measured(search, found, "rival", rival.name, rival.policy, rival.how)
            for rival in sorted(found.rivals, key=lambda rival: found.held_out[rival.policy].mean)
        ),
        left_out=tuple(found.left_out),
        random=_random(found),
        sentence="",
        command=_server_command(problem, start, best.policy),
        provenance=provenance,
    )
    return _with_sentence(result)


def _measured(search: Search, found: Found, kind: str, name: str, policy: str, how: str) -> MeasuredPolicy:
    n_bytes = search.n_bytes(policy)
    return MeasuredPolicy(
        kind,
        name,
        policy,
        how,
        n_bytes,
        n_bytes / search.kv_bytes_f16,
        _predicted(search, found.costs, policy),
        found.verified.kl.get(policy),
        found.held_out.get(policy),
    )


def _predicted(search: Search, costs: Costs, policy: str) -> float | None:
    types = assignment_of(parse_policy(policy), search.problem.shape)
    return (
        costs.predict(types) if all((place, name) in costs.costs for place, name in types.items()) else None
    )


def _side_costs(search: Search, costs: Costs) -> list[SideCost]:
    return [
        SideCost(
            place.layer, place.side, name, costs.measured.get((place, name)), costs.costs[place, name].nats
        )
        for place in search.sides
        for name in search.problem.types
        if name != EXACT
    ]


def _additivity(search: Search, found: Found) -> Additivity:
    pairs = [
        (predicted, kl.mean)
        for policy, kl in found.verified.kl.items()
        if (predicted := _predicted(search, found.costs, policy)) is not None
    ]
    ratios = [measured / predicted for predicted, measured in pairs if predicted > 0]
    return Additivity(len(pairs), median(ratios) if ratios else None, _rank_correlation(pairs))


def _proxy_correlation(search: Search, found: Found, hints: Hints) -> float | None:
    if hints.proxy is None:
        return None
    if found.costs.measured and not search.problem.reverse:
        low = coarsest(search.problem.types)
        return _rank_correlation(
            [(hints.proxy[place, low], found.costs.measured[place, low].mean) for place in search.sides]
        )
    return _additivity(search, found).rank_correlation


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, None for fewer than three pairs or where one side does not vary."""
    columns = list(zip(*pairs, strict=True))
    if len(pairs) < 3 or any(len(set(column)) < 2 for column in columns):
        return None
    return float(spearmanr(*columns).statistic)


def _against(meter: Meter, found: Found) -> Against | None:
    """The chosen policy and the best of the rules, on the same tokens."""
    best = found.verified.best.policy
    others = [rival for rival in found.rivals if rival.policy != best]
    if not others:
        return None
    rival = min(others, key=lambda rival: found.held_out[rival.policy].mean)
    difference, interval = meter.difference("held-out", best, rival.policy)
    verdict = "level"
    if interval is not None and interval.high < 0:
        verdict = "better"
    elif interval is not None and interval.low > 0:
        verdict = "worse"
    return Against(rival.name, difference, interval, verdict)


def _random(found: Found) -> RandomPolicies | None:
    means = [kl.mean for kl in found.held_out_random.values()]
    if not means:
        return None
    n_tokens = next(iter(found.held_out_random.values())).n_tokens
    return RandomPolicies(len(means), fmean(means), min(means), n_tokens)


def _server_command(problem: Problem, start: SearchStart, policy: str) -> str:
    words = [
        "llama-server",
        "-m",
        start.model.name,
        "-c",
        str(problem.options.n_ctx),
        "-np",
        "1",
        "-fa",
        "on",
    ]
    words += ["--kv-layers", policy]
    if start.transform is not None:
        words += ["--kv-transform", start.transform.name]
    return shlex.join(words)


def _with_sentence(result: SearchResult) -> SearchResult:
    fit, held_out = result.kl_fit, result.kl_held_out
    said = (
        f"{format_n_bytes(result.kv_bytes)}, {result.of_f16:.3f}x of f16, "
        f"{small(None if held_out is None else held_out.mean)} nats a token on held-out text "
        f"({small(None if fit is None else fit.mean)} on the text it was chosen on)"
    )
    if result.simple is not None:
        said += f"; it is a simple rule, {result.simple}: the search found nothing better"
    if result.against is not None:
        words = {"better": "better than", "level": "level with", "worse": "worse than"}
        rival = next(entry for entry in result.rivals if entry.name == result.against.rival)
        said += (
            f"; {words[result.against.verdict]} the best rival in these bytes, {rival.name} with "
            f"{small(None if rival.kl_held_out is None else rival.kl_held_out.mean)}"
        )
    return replace(result, sentence=said)
