"""KL of many policies on two texts, kept on disk: one load and one baseline for all asked for at once.

What a search measures with. It asks in stages, each for what the last one made worth knowing; what a journal
already holds costs nothing, so a search that was cut off goes through its stages again and on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvquant.documents import read_json, to_document, write_json
from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.evals.append_only import alone_in
from kvquant.evals.divergence import CacheSetup, DivergenceRequest, TokenDivergence, measure_divergence
from kvquant.evals.divergence_run import file_used
from kvquant.evals.divergence_summary import LEAST_BLOCKS
from kvquant.evals.search_journal import BLOCK_TOKENS, ChunkSums, Journal, open_journal
from kvquant.evals.statistics import bootstrap_blocks
from kvquant.llama.build import read_info
from kvquant.model.gguf_file import GgufModel
from kvquant.results.comparison import Interval
from kvquant.results.search import SCHEMA_VERSION, Kl, SearchStart
from kvquant.transform import TransformFile

START = "start.json"
PROGRAM_LOG = "program.log"

Part = Literal["fit", "held-out"]
"""Which text: the one that policies are chosen on, or the one that they are compared on."""

MOST_FLOOR = 0.1
"""Nats between a float16 cache and itself above which nothing that is measured means anything."""


@dataclass(frozen=True)
class MeterPlan:
    """What everything is measured with. texts: UTF-8 files. n_ctx, score_from: of a chunk."""

    programs: Path
    model: GgufModel
    texts: Mapping[Part, Path]
    n_ctx: int
    score_from: int
    rotation: bool = True
    transform: TransformFile | None = None
    n_threads: int | None = None
    n_jobs: int = 1

    @property
    def n_scored(self) -> int:
        """Scored tokens of a whole chunk: the last one's successor is in the next."""
        return self.n_ctx - 1 - self.score_from

    def n_chunks(self, n_tokens: int) -> int:
        """Return how many chunks score at least so many tokens."""
        return -(-n_tokens // self.n_scored)

    def start(self) -> SearchStart:
        """Describe it. Raises KVQuantError for a file that cannot be read."""
        build = read_info(self.programs.parent)
        return SearchStart(
            SCHEMA_VERSION,
            file_used(self.model.path, self.model.sha256()),
            file_used(self.texts["fit"]),
            file_used(self.texts["held-out"]),
            self.n_ctx,
            self.score_from,
            self.rotation,
            None if self.transform is None else self.transform.used,
            None if build is None else (build.commit, build.series_digest),
        )


class Meter:
    """Measures policies, given as canonical text; see `open_meter`.

    seconds: spent in the program so far. n_measured: chunks of policies that it has measured in them.
    """

    def __init__(
        self,
        plan: MeterPlan,
        folder: Path,
        journals: Mapping[Part, Journal],
        on_chunk: Callable[[int, int], None],
        on_run: Callable[[int, float | None], None],
    ) -> None:
        self._plan = plan
        self._log = folder / PROGRAM_LOG
        self._journals = journals
        self._on_chunk = on_chunk
        self._on_run = on_run
        self.seconds = 0.0
        self.n_measured = 0

    def floor(self) -> Kl:
        """Return how far the float16 cache is from itself on the first chunk, fed one token at a time.

        Raises LlamaError for a model that is so far from itself that no difference of caches shows.
        """
        setup = self._baseline.on_the_other_path()
        self._fill("fit", [setup], 1)
        found = self._kl("fit", setup, 1)
        if found.mean > MOST_FLOOR:
            raise LlamaError(
                f"{self._plan.model.shown} is {found.mean:.2g} nats a token from itself with a float16 "
                "cache, tokens fed in batches against one by one; no smaller difference shows on it"
            )
        return found

    def measure(self, part: Part, policies: Sequence[str], n_chunks: int) -> dict[str, Kl]:
        """Return the KL of each policy on the first n_chunks of a text, measuring what is not known yet.

        Raises UsageError for a text of fewer chunks, LlamaError when the program or a policy fails,
        KVQuantError when a journal cannot be written; what was measured by then is kept.
        """
        setups = [self._setup(policy) for policy in dict.fromkeys(policies)]
        self._fill(part, setups, n_chunks)
        return {setup.policy: self._kl(part, setup, n_chunks) for setup in setups}

    def difference(self, part: Part, policy: str, other: str) -> tuple[float, Interval | None]:
        """Return KL of one policy minus KL of the other, and its interval, on the chunks both are known on.

        Paired: blocks of the same tokens are drawn together, so that what is hard for both cancels out.
        """
        journal = self._journals[part]
        mine, others = journal.chunks(self._setup(policy)), journal.chunks(self._setup(other))
        sums: list[float] = []
        counts: list[int] = []
        for a, b in zip(mine, others, strict=False):
            sums += [x - y for x, y in zip(a.sums, b.sums, strict=True)]
            counts += a.counts
        if not counts:
            raise UsageError(f"{policy} and {other} were not measured on the same text")
        return math.fsum(sums) / sum(counts), bootstrap_blocks(sums, counts)

    @property
    def _baseline(self) -> CacheSetup:
        return CacheSetup(rotation=self._plan.rotation)

    def _setup(self, policy: str) -> CacheSetup:
        return CacheSetup(policy, rotation=self._plan.rotation, transform=self._plan.transform)

    def _fill(self, part: Part, setups: Sequence[CacheSetup], n_chunks: int) -> None:
        journal = self._journals[part]
        missing = [setup for setup in setups if len(journal.chunks(setup)) < n_chunks]
        # What a kill left behind by a chunk goes on there; the rest starts at the beginning.
        for n_done in sorted({len(journal.chunks(setup)) for setup in missing}):
            group = [setup for setup in missing if len(journal.chunks(setup)) == n_done]
            self._run(part, group, n_done, n_chunks)

    def _run(self, part: Part, group: Sequence[CacheSetup], n_done: int, n_chunks: int) -> None:
        plan, journal = self._plan, self._journals[part]
        failures: dict[int, str] = {}
        begun, n_here = time.monotonic(), 0
        n_planned = len(group) * (n_chunks - n_done)
        self._on_run(n_planned, self.seconds / self.n_measured * n_planned if self.n_measured else None)

        def append(index: int, chunk: Sequence[TokenDivergence]) -> None:
            nonlocal n_here
            journal.append(group[index], ChunkSums.of(chunk))
            n_here += 1
            self.n_measured += 1
            self._on_chunk(n_here, n_planned)

        request = DivergenceRequest(
            model=plan.model.path,
            texts=(plan.texts[part],),
            policies=tuple(replace(setup, n_chunks=n_chunks) for setup in group),
            baseline=self._baseline,
            n_ctx=plan.n_ctx,
            n_ubatch=min(512, plan.n_ctx),
            score_from=plan.score_from,
            n_tokens=n_chunks * plan.n_scored,
            n_threads=plan.n_threads,
            n_jobs=plan.n_jobs,
            # Hundreds of contexts would not fit the memory; one that is made for each chunk costs little.
            n_contexts=0,
        )
        try:
            measure_divergence(
                plan.programs,
                request,
                self._log,
                append,
                on_start=lambda n_there: self._check_length(part, n_there, n_chunks),
                on_failure=failures.__setitem__,
                skip_chunks=n_done,
            )
        finally:
            self.seconds += time.monotonic() - begun
        for index, what in failures.items():
            raise LlamaError(f"{group[index].policy} cannot be measured: {what}")

    def _check_length(self, part: Part, n_there: int, n_chunks: int) -> None:
        if n_there < n_chunks:
            raise UsageError(
                f"{self._plan.texts[part]} has {n_there} of the {n_chunks} chunks of "
                f"{self._plan.n_ctx} tokens that are to be scored; give a longer text, or fewer tokens"
            )

    def _kl(self, part: Part, setup: CacheSetup, n_chunks: int) -> Kl:
        chunks = self._journals[part].chunks(setup)[:n_chunks]
        sums = [value for chunk in chunks for value in chunk.sums]
        counts = [count for chunk in chunks for count in chunk.counts]
        interval = bootstrap_blocks(sums, counts) if len(sums) >= LEAST_BLOCKS else None
        return Kl(math.fsum(sums) / sum(counts), interval, sum(counts))


@contextmanager
def open_meter(
    plan: MeterPlan,
    folder: Path,
    *,
    on_chunk: Callable[[int, int], None] = lambda _done, _all: None,
    on_run: Callable[[int, float | None], None] = lambda _n, _seconds: None,
) -> Iterator[Meter]:
    """Start or resume a folder of measurements, for this process alone.

    on_run: told, before the program starts, how many chunks of policies it will measure and about how many
    seconds that takes, None where nothing was measured yet. on_chunk: told how many of these are done.
    Raises UsageError when the folder holds measurements of something else, or a chunk is too short for an
    interval; KVQuantError when it cannot be written.
    """
    if plan.n_scored // BLOCK_TOKENS < LEAST_BLOCKS:
        raise UsageError(
            f"chunks of {plan.n_ctx} tokens score {plan.n_scored} of them, too few for an interval, which "
            f"takes {LEAST_BLOCKS * BLOCK_TOKENS}"
        )
    with alone_in(folder):
        try:
            _check_same(folder / START, plan.start())
            with (
                open_journal(folder / "fit.jsonl") as fit,
                open_journal(folder / "held-out.jsonl") as held_out,
            ):
                yield Meter(plan, folder, {"fit": fit, "held-out": held_out}, on_chunk, on_run)
        except OSError as error:
            raise KVQuantError(
                f"cannot work in {folder}: {error.strerror or error}; measurements are kept"
            ) from error
    (folder / PROGRAM_LOG).unlink(missing_ok=True)


def _check_same(path: Path, start: SearchStart) -> None:
    if not path.exists():
        write_json(path, start)
        return
    old = to_document(read_json(SearchStart, path))
    for name, value in to_document(start).items():
        if old[name] != value:
            words = {
                "n_ctx": "chunk",
                "held_out": "held-out text",
                "fit": "text",
                "build": "build of llama.cpp",
            }
            raise UsageError(
                f"{path.parent} contains measurements with another {words.get(name, name)}; "
                "give another --out"
            )
