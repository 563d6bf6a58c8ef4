"""A search as a terminal shows it: one table and one sentence."""

from __future__ import annotations

from collections.abc import Iterator

from kvquant.results.search import Kl, MeasuredPolicy, SearchResult
from kvquant.tables import NONE, UNKNOWN, Table, printable, small, text, with_interval
from kvquant.units import format_n_bytes

CHOSEN = "the search"


def search_text(result: SearchResult, width: int | None = None) -> str:
    """Return the policy, the table of it and its rivals, and the sentence. width: of the terminal."""
    start = result.start
    tokens = 0 if result.kl_held_out is None else result.kl_held_out.n_tokens
    head = (
        f"{start.model.name}: KL divergence from a float16 cache, nats a token, on {tokens} tokens of "
        f"{start.held_out.name}, chosen on {start.fit.name}; floor {small(result.floor.mean)}"
    )
    return "\n".join(
        [
            result.policy,
            "",
            printable(head),
            text(comparison_table(result), width),
            "",
            *([speeds_title(result), text(speed_table(result), width), ""] if result.speeds else []),
            result.command,
            result.sentence,
        ]
    )


def comparison_table(result: SearchResult) -> Table:
    """The policy, its rivals and random policies, by KL on the held-out text."""
    rows = [
        *([] if result.simple is not None else [_chosen(result)]),
        *(_row(rival.name, rival) for rival in result.rivals),
    ]
    return Table(
        ("policy", "cache", "of f16", "KL, held out", "KL, fitted on", "predicted"),
        tuple(row for _, row in sorted(rows, key=lambda entry: entry[0])) + tuple(_random(result)),
    )


def speeds_title(result: SearchResult) -> str:
    """What the table of speeds shows."""
    depth = result.speeds[0].decode.depth
    return f"Decode at depth {depth}; types below {result.min_speed:g} of f16's rate were left out"


def speed_table(result: SearchResult) -> Table:
    """How fast each type decodes, and whether the search could use it."""
    return Table(
        ("type", "tokens/s", "of f16", "used"),
        tuple(
            (
                one.type,
                UNKNOWN if one.decode.tokens_per_second is None else f"{one.decode.tokens_per_second:.1f}",
                UNKNOWN
                if one.decode.ratio is None
                else with_interval(f"{one.decode.ratio:.3f}", one.decode.interval, "{:.3f}".format),
                "yes" if one.type in result.types else "no",
            )
            for one in result.speeds
        ),
    )


_Row = tuple[float, tuple[str, ...]]


def _chosen(result: SearchResult) -> _Row:
    found = next((entry for entry in result.candidates if entry.policy == result.policy), None)
    predicted = None if found is None else found.predicted
    return _mean(result.kl_held_out), (
        CHOSEN,
        format_n_bytes(result.kv_bytes),
        f"{result.of_f16:.3f}",
        kl_words(result.kl_held_out),
        small(None if result.kl_fit is None else result.kl_fit.mean),
        small(predicted),
    )


def _row(name: str, policy: MeasuredPolicy) -> _Row:
    return _mean(policy.kl_held_out), (
        name,
        format_n_bytes(policy.kv_bytes),
        f"{policy.of_f16:.3f}",
        kl_words(policy.kl_held_out),
        small(None if policy.kl_fit is None else policy.kl_fit.mean),
        small(policy.predicted),
    )


def _random(result: SearchResult) -> Iterator[tuple[str, ...]]:
    found = result.random
    if found is not None:
        for name, value in (("mean of", found.mean), ("best of", found.best)):
            yield (f"{name} {found.n} random", NONE, NONE, small(value), NONE, NONE)


def _mean(kl: Kl | None) -> float:
    return float("inf") if kl is None else kl.mean


def kl_words(kl: Kl | None) -> str:
    """A KL with its interval."""
    return UNKNOWN if kl is None else with_interval(small(kl.mean), kl.interval, small)
