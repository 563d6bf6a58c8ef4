"""Does a policy that `kvquant search` found hold elsewhere: on other text, in longer contexts, in a sibling?

    python tools/carry_over.py measure --programs "$(kvquant llama build)" --record smollm2-135m-0.35x.json
    python tools/carry_over.py page

`measure` takes a committed search (eval/results/search) and measures its policy and the best rival that it
was compared with on the same tokens of each place of PLACES; chunks are kept under runs/carry-over, results
under eval/results/search/carry-over. `page` writes the table of docs/search.md; a test holds it to them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from kvquant.assets.find import model_path
from kvquant.cli.names import fetched_text
from kvquant.documents import read_json, write_json
from kvquant.evals.search_meter import MeterPlan, open_meter
from kvquant.files import write_atomic
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.report.search import kl_words
from kvquant.results.comparison import Interval
from kvquant.results.search import Kl, SearchResult
from kvquant.search.sides import Assignment, Side, assignment_of, policy_of, sides_of
from kvquant.tables import Table, markdown, small, with_interval
from marked_page import filled
from write_search_records import PAGE, RECORDS, model_name

CARRIED = RECORDS / "carry-over"
RUNS = Path(__file__).resolve().parent.parent / "runs/carry-over"

SIBLINGS = {"qwen2.5-coder-0.5b": "qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b": "qwen2.5-coder-0.5b"}


@dataclass(frozen=True)
class Place:
    """Somewhere else. text: by name, its held-out part. n_ctx: of a chunk, whose second half is scored.

    n_chunks: how many. sibling: in the model's sibling instead of the model.
    """

    name: str
    text: str
    n_ctx: int
    n_chunks: int
    sibling: bool = False


PLACES = (
    Place("prose", "prose", 512, 2),
    Place("code", "code", 512, 2),
    Place("code-4k", "code", 4096, 1),
    Place("code-16k", "code", 16384, 1),
    Place("sibling", "code", 512, 1, sibling=True),
)


@dataclass(frozen=True)
class Carried:
    """A policy of a search and its best rival, both measured at another place.

    record: the search's file. model, text: where they were measured, by name. difference: KL of the policy
    minus that of the rival on the same tokens, nats a token, with its 95 % interval.
    """

    record: str
    place: str
    model: str
    text: str
    n_ctx: int
    policy: str
    rival: str
    rival_policy: str
    kl: Kl
    rival_kl: Kl
    difference: float
    interval: Interval | None

    @property
    def verdict(self) -> str:
        """better, level (the interval holds 0, or is unknown) or worse."""
        if self.interval is None or self.interval.low <= 0 <= self.interval.high:
            return "level"
        return "better" if self.interval.high < 0 else "worse"


def stretched(policy: str, shape: ModelShape, other: ModelShape) -> str:
    """Return a policy for another shape: each layer has the types of the one as far up in the first."""
    types = assignment_of(parse_policy(policy), shape)
    n, n_other = shape.n_layer, other.n_layer
    found: Assignment = {
        place: types[Side(place.layer * n // n_other, place.side)] for place in sides_of(other)
    }
    return str(policy_of(found))


def measure(record: Path, place: Place, programs: Path, n_threads: int) -> Carried:
    """Measure what is missing of a place and write its result."""
    result = read_json(SearchResult, record)
    if result.against is None:
        raise SystemExit(f"{record.name} has no rival to compare with")
    rival = next(entry for entry in result.rivals if entry.name == result.against.rival)
    policies = (result.policy, rival.policy)
    name = model_name(result)
    model = _open(name)
    if place.sibling:
        shape, name = shape_of(model), SIBLINGS[name]
        model = _open(name)
        policies = tuple(stretched(policy, shape, shape_of(model)) for policy in policies)
    text = fetched_text(place.text)
    plan = MeterPlan(
        programs=programs,
        model=model,
        # Nothing is fitted here; a folder of measurements has two texts.
        texts={"fit": fetched_text(f"{place.text}:calibration"), "held-out": text},
        n_ctx=place.n_ctx,
        score_from=place.n_ctx // 2,
        n_threads=n_threads,
    )
    with open_meter(plan, RUNS / f"{record.stem}.{place.name}") as meter:
        found = meter.measure("held-out", policies, place.n_chunks)
        difference, interval = meter.difference("held-out", *policies)
    carried = Carried(
        record=record.name,
        place=place.name,
        model=name,
        text=place.text,
        n_ctx=place.n_ctx,
        policy=policies[0],
        rival=rival.name,
        rival_policy=policies[1],
        kl=found[policies[0]],
        rival_kl=found[policies[1]],
        difference=difference,
        interval=interval,
    )
    CARRIED.mkdir(parents=True, exist_ok=True)
    write_json(CARRIED / f"{record.stem}.{place.name}.json", carried)
    return carried


def _open(name: str) -> GgufModel:
    return open_model(model_path(name, say=lambda line: print(line, file=sys.stderr)))


def carried() -> list[Carried]:
    """Return the committed results by record, then in the order of PLACES."""
    order = [place.name for place in PLACES]
    found = [read_json(Carried, path) for path in CARRIED.glob("*.json")]
    return sorted(found, key=lambda one: (one.record, order.index(one.place)))


def table() -> Table:
    """What held where."""
    return Table(
        (
            "search",
            "measured on",
            "context",
            "KL of its policy",
            "best rival then",
            "its KL",
            "difference",
            "policy is",
        ),
        tuple(
            (
                one.record.removesuffix(".json"),
                f"{one.model}, {one.text}",
                str(one.n_ctx),
                kl_words(one.kl),
                one.rival,
                kl_words(one.rival_kl),
                with_interval(small(one.difference), one.interval, small),
                one.verdict,
            )
            for one in carried()
        ),
        words=(0, 1, 4, 7),
    )


def page() -> str:
    """Return docs/search.md with the table."""
    return filled(PAGE.read_text(encoding="utf-8"), {"carried": markdown(table())})


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure what is missing of a search")
    measuring.add_argument("--programs", type=Path, required=True, help="folder of llama-kv-divergence")
    measuring.add_argument("--record", required=True, help="a file of eval/results/search")
    measuring.add_argument("--place", action="append", help="places by name (all)")
    measuring.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    commands.add_parser("page", help="write the table from the results")
    options = parser.parse_args()
    if options.command == "measure":
        record = RECORDS / options.record
        has_sibling = model_name(read_json(SearchResult, record)) in SIBLINGS
        for place in PLACES:
            if place.name in (options.place or [place.name]) and (has_sibling or not place.sibling):
                one = measure(record, place, options.programs, options.threads)
                print(f"{one.record} at {one.place}: {one.verdict}", file=sys.stderr)
    write_atomic(PAGE, page())


if __name__ == "__main__":
    main()
