"""A calibration as a whole, in a folder that can be resumed.

start.json               what is calibrated, on what; another calibration is refused the folder
fitting.txt, choosing.txt, judging.txt   the parts of the text
moments-N.npz            what was summed over chunks of N tokens, and how far that got
candidates/DIGEST.gguf   transforms that were tried
choosing/, judging/      every scored token of each of them, a line a chunk
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kvquant.documents import read_json, to_document, write_json
from kvquant.errors import UsageError
from kvquant.evals.append_only import alone_in
from kvquant.evals.calibration.bench import Bench, Progress, by_depth
from kvquant.evals.calibration.plan import CalibrationPlan, check_plan, sees_logits, write_parts
from kvquant.evals.calibration.recipes import (
    FLOOR,
    SHRINK,
    Assignment,
    Fitted,
    Recipe,
    fit_recipes,
    possible,
    recipe_of,
    transform_of,
    uniform,
)
from kvquant.evals.calibration.search import Choice, Measured, choose, measured_of
from kvquant.evals.machine import read_machine
from kvquant.llama.build import read_info
from kvquant.llama.moments import Moments, MomentsRequest, load_moments, measure_moments, save_moments
from kvquant.results.calibration import CalibrationResult, Judgement, LayerCalibration
from kvquant.results.divergence import FileUsed
from kvquant.shipped import VERSION
from kvquant.transform import ModelId, model_id, transform_file, write_transform
from kvquant.transform.order import BLOCK, PROVENANCE_KEY

PART_TOKENS = 4096
"""About so many tokens are summed before what there is goes to the disk."""


@dataclass(frozen=True)
class _Start:
    """What a folder is for."""

    model: FileUsed
    text: FileUsed
    build: tuple[str | None, str | None] | None
    n_ctx: int
    n_fit: int
    n_chunks: int
    policy: str
    kind: str
    centred: bool
    n_rounds: int


def calibrate(
    plan: CalibrationPlan,
    output: Path,
    work: Path,
    argv: Sequence[str],
    progress: Progress,
    *,
    anyway: bool = False,
) -> CalibrationResult:
    """Fit, choose and judge; write the sidecar where the judgement is that it helps, or ``anyway``.

    Goes on with what ``work`` holds. Raises UsageError for a text that is too short or a folder of another
    calibration, LlamaError when a program fails, KVQuantError when something cannot be written; what was
    finished is kept.
    """
    check_plan(plan)
    started, clock = datetime.now(UTC), _Clock()
    with alone_in(work):
        own = model_id(plan.model)
        start = _start_of(plan, own)
        _check_same(work, start)
        fitting, choosing, judging = write_parts(plan, work)
        with clock("fitting"):
            moments = _moments(plan, fitting, work, progress)
        centred = plan.centred and sees_logits(plan.model) is None
        recipes = possible(centred=centred)
        wanted = frozenset(plan.layers)
        fitted = fit_recipes(
            [layer for layer in moments.layers if layer.layer in wanted], recipes, ordered=plan.ordered
        )
        provenance = _provenance(plan, start, moments)
        bench = Bench(plan, work, fitted, own, provenance, progress)
        with clock("choosing"):
            choice = _choice(plan, centred, recipes, lambda given: bench.measure("choosing", choosing, given))
        with clock("judging"):
            judgement = _judge(plan, choice.assignment, bench, judging)
        used = None
        if judgement.better or anyway:
            numbers = {"kl_without": judgement.kl_without, "kl_with": judgement.kl_with}
            chosen = transform_of(choice.assignment, fitted, own, {**provenance, **numbers})
            write_transform(chosen, output)
            used = transform_file(output, chosen).used
    return CalibrationResult(
        model=start.model,
        text=start.text,
        build=start.build,
        n_ctx=plan.n_ctx,
        contexts={str(n_ctx): n_tokens for n_ctx, n_tokens in plan.contexts.items()},
        policy=plan.policy,
        kind=plan.kind,
        layers=tuple(_layers(choice.assignment, fitted)),
        trials=choice.trials,
        judgement=judgement,
        transform=used,
        seconds=clock.seconds,
        provenance={
            "argv": list(argv),
            "started": started.isoformat(timespec="seconds"),
            "kvquant_version": VERSION,
            "n_threads": plan.n_threads,
            "machine": to_document(read_machine()),
        },
    )


@dataclass
class _Clock:
    """How long each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - begun, 1)


def _choice(
    plan: CalibrationPlan,
    centred: bool,
    recipes: Sequence[Recipe],
    measure: Callable[[Sequence[Assignment]], Sequence[Measured]],
) -> Choice:
    if plan.kind == "auto":
        return choose(plan.layers, recipes, plan.n_rounds, measure)
    return Choice(uniform(plan.layers, recipe_of(plan.kind, centred=centred)), ())


def _judge(plan: CalibrationPlan, assignment: Assignment, bench: Bench, text: Path) -> Judgement:
    nothing = uniform(plan.layers, "none")
    without, found = bench.tokens("judging", text, [nothing, assignment], 2 * plan.n_chunks)
    one, other = measured_of(without), measured_of(found)
    change = other.change_from(one)
    return Judgement(
        n_tokens=len(without),
        kl_without=one.mean,
        kl_with=other.mean,
        change=change,
        by_depth=by_depth(without, found),
        better=other.surely_better(one),
    )


def _moments(plan: CalibrationPlan, text: Path, work: Path, progress: Progress) -> Moments:
    """Return the moments over chunks of every context, a part at a time, each kept."""
    found: Moments | None = None
    for n_ctx, n_tokens in plan.contexts.items():
        if n_tokens:
            summed = _moments_at(plan, text, n_ctx, n_tokens, work / f"moments-{n_ctx}.npz", progress)
            found = summed if found is None else found + summed
    if found is None:
        raise UsageError("--tokens: there is nothing to fit on")
    return found


def _moments_at(
    plan: CalibrationPlan, text: Path, n_ctx: int, n_tokens: int, kept: Path, progress: Progress
) -> Moments:
    found = load_moments(kept) if kept.exists() else None
    part = max(1, PART_TOKENS // n_ctx) * n_ctx
    with progress(f"fitting, chunks of {n_ctx}") as told:
        while found is None or found.n_tokens < min(n_tokens, found.n_text_tokens):
            n_done = 0 if found is None else found.n_tokens

            def tell(done: int, _all: int, before: int = n_done) -> None:
                told(before + done, n_tokens)

            n_next = min(part, n_tokens - n_done)
            request = MomentsRequest(
                plan.programs, plan.model.path, text, n_ctx, n_next, plan.n_threads, n_skipped=n_done
            )
            summed = measure_moments(request, tell)
            if summed.n_text_tokens < plan.n_ctx:
                raise UsageError(
                    f"--text {plan.text}: its part for fitting has {summed.n_text_tokens} tokens, fewer than "
                    f"--ctx {plan.n_ctx}; give a longer text"
                )
            found = summed if found is None else found + summed
            save_moments(found, kept)
    return found


def _layers(assignment: Assignment, fitted: Fitted) -> list[LayerCalibration]:
    gains: dict[int, dict[str, float]] = {layer: {} for layer, _ in assignment}
    for (layer, recipe), transform in fitted.items():
        if transform.gain_db is not None:
            gains[layer][recipe] = transform.gain_db
    return [LayerCalibration(layer, recipe, gains[layer]) for layer, recipe in assignment]


def _provenance(plan: CalibrationPlan, start: _Start, moments: Moments) -> dict[str, str | int | float]:
    build = start.build or (None, None)
    return {
        "n_ctx": plan.n_ctx,
        "contexts": " ".join(f"{n_ctx}:{n_tokens}" for n_ctx, n_tokens in plan.contexts.items()),
        "n_tokens": moments.n_tokens,
        "text": start.text.name,
        "text_sha256": start.text.sha256,
        "kind": plan.kind,
        "policy": plan.policy,
        "floor": FLOOR,
        "shrink": SHRINK,
        "llama_cpp": build[0] or "",
        "series": build[1] or "",
        "kvquant_version": VERSION,
        **({PROVENANCE_KEY: BLOCK} if plan.ordered else {}),
    }


def _start_of(plan: CalibrationPlan, model: ModelId) -> _Start:
    build = read_info(plan.programs.parent)
    try:
        with plan.text.open("rb") as file:
            text = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"--text {plan.text}: cannot be read: {error.strerror}") from error
    return _Start(
        model=FileUsed(plan.model.path.name, model.sha256),
        text=FileUsed(plan.text.name, text),
        build=None if build is None else (build.commit, build.series_digest),
        n_ctx=plan.n_ctx,
        n_fit=plan.n_fit,
        n_chunks=plan.n_chunks,
        policy=plan.policy,
        kind=plan.kind,
        centred=plan.centred,
        n_rounds=plan.n_rounds,
    )


def _check_same(work: Path, start: _Start) -> None:
    path = work / "start.json"
    if not path.exists():
        write_json(path, start)
        return
    old, new = to_document(read_json(_Start, path)), to_document(start)
    for name, value in old.items():
        if value != new[name]:
            raise UsageError(
                f"{work} contains an unfinished calibration with another {name.replace('_', ' ')}; remove it "
                "or give another --work"
            )
