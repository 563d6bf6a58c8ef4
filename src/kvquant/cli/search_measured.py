"""The measured half of `kvquant search`: hands what `evals` measures to `search`, and prints the result."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import click

from kvquant.cli.names import fetched_text
from kvquant.cli.options import programs_folder, shape_from_options
from kvquant.cli.progress import counted
from kvquant.cli.transforms import checked_transform
from kvquant.documents import to_document, to_json, write_json
from kvquant.errors import UsageError
from kvquant.evals.divergence_run import check_programs
from kvquant.evals.doctor.key_bias import key_bias_norms, layers_that_stand_out
from kvquant.evals.machine import read_machine
from kvquant.evals.search_meter import MeterPlan, open_meter
from kvquant.evals.type_speed import MAX_DEPTH, SpeedPlan, fast_enough, slow_types, type_speeds
from kvquant.evals.weight_norms import projection_norms
from kvquant.files import write_atomic
from kvquant.formats.registry import CACHE_TYPES
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.gguf_header import Array
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.report.search import search_text
from kvquant.results.provenance import command_line
from kvquant.results.search import SearchResult, TypeSpeed
from kvquant.search.outcome import compare, document
from kvquant.search.problem import Problem
from kvquant.search.proxy import side_errors
from kvquant.search.rivals import Hints, rivals_within
from kvquant.search.sides import EXACT, Side
from kvquant.search.staged import Search
from kvquant.shipped import VERSION
from kvquant.tables import clock, terminal_width
from kvquant.units import format_n_bytes

RESULT = "search.json"
PAGE = "search.html"
KINDS = {"prose": "code", "prose2": "code", "code": "prose"}
"""For a fitting text of one kind, the known text of another."""

N_UBATCH = 512
"""Tokens of llama.cpp's physical batch, whose logits stand beside the cache."""


@dataclass(frozen=True)
class Asked:
    """The options of the command, as `kvquant search --help` describes them."""

    budget: int | float | None
    max_kl: float | None
    ram: int | None
    n_ctx: int
    types: tuple[str, ...]
    min_speed: float | None
    model: Path | None
    shape: str | None
    text: str
    held_out: str | None
    chunk: int
    tokens: int
    side_tokens: int
    held_out_tokens: int
    n_random: int
    quick: bool
    reverse: bool
    capture: str | None
    seed: int
    out: Path | None
    preset_file: Path | None
    transform: Path | None
    llama_bin: Path | None
    threads: int | None
    jobs: int
    as_json: bool


def measured_search(asked: Asked) -> None:
    """Search, keep what was found, print it."""
    if asked.model is None:
        raise UsageError("--text measures a model; give --model NAME|FILE")
    if asked.quick and asked.capture is None:
        raise UsageError("--quick chooses from a capture; give --capture FILE (kvquant capture)")
    if asked.quick and asked.reverse:
        raise UsageError("--quick measures no side, --reverse measures every side; give only one of them")
    unknown = [name for name in asked.types if name not in CACHE_TYPES]
    if unknown:
        raise UsageError(
            f"--types {', '.join(unknown)}: not a cache type of llama.cpp; known: {', '.join(CACHE_TYPES)}"
        )
    programs = programs_folder(asked.llama_bin)
    check_programs(programs)
    model = open_model(asked.model)
    model.require_loadable()
    shape = shape_from_options(asked.model, asked.shape)
    fit, held_out = _texts(asked)
    options = ContextOptions(asked.n_ctx, 1)
    types = (EXACT, *(name for name in asked.types if name != EXACT))
    speeds = _speeds(asked, programs, types)
    if asked.min_speed is not None:
        types = fast_enough(speeds, asked.min_speed, EXACT)
    plan = MeterPlan(
        programs=programs,
        model=model,
        texts={"fit": fit, "held-out": held_out},
        n_ctx=asked.chunk,
        score_from=asked.chunk // 4,
        transform=(
            None
            if asked.transform is None
            else checked_transform(asked.transform, model, shape, asked.chunk, digest=True)
        ),
        n_threads=asked.threads,
        n_jobs=asked.jobs,
    )
    problem = Problem(
        shape=shape,
        types=types,
        options=options,
        budget=_budget(asked, model, shape, options),
        max_kl=asked.max_kl,
        n_side_chunks=plan.n_chunks(asked.side_tokens),
        n_chunks=plan.n_chunks(asked.tokens),
        n_held_out_chunks=plan.n_chunks(asked.held_out_tokens),
        proxy=asked.quick,
        reverse=asked.reverse,
        seed=asked.seed,
    )
    result = _run(asked, problem, plan, _hints(asked, model, shape, types), speeds)
    if asked.preset_file is not None:
        write_atomic(asked.preset_file, router_preset(asked, model, result))
        click.echo(f"kvquant: wrote {asked.preset_file}", err=True)
    click.echo(to_json(result) if asked.as_json else search_text(result, terminal_width()))


def _speeds(asked: Asked, programs: Path, types: tuple[str, ...]) -> tuple[TypeSpeed, ...]:
    """How fast the types decode, where that matters."""
    if asked.min_speed is None or asked.model is None:
        return ()
    plan = SpeedPlan(programs, asked.model, min(MAX_DEPTH, asked.n_ctx // 2), asked.threads)
    click.echo(
        f"kvquant: timing {len(types)} types at depth {plan.depth}; other programs running now "
        "will spoil the result",
        err=True,
    )
    with ExitStack() as stack:
        folder = asked.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvquant-")))
        progress = stack.enter_context(counted("timings"))
        speeds = type_speeds(plan, types, EXACT, folder, progress)
    for name in slow_types(speeds, asked.min_speed):
        click.echo(f"kvquant: {name} is left out: slower than {asked.min_speed:g} times f16", err=True)
    return speeds


def _run(
    asked: Asked, problem: Problem, plan: MeterPlan, hints: Hints, speeds: tuple[TypeSpeed, ...]
) -> SearchResult:
    begun, started = time.monotonic(), datetime.now(UTC)
    stage = ""

    def say(what: str) -> None:
        nonlocal stage
        stage = what

    def on_run(n: int, seconds: float | None) -> None:
        about = "" if seconds is None else f", about {clock(seconds)}"
        progress.say(f"{stage}: {n} measurements of {plan.n_scored} tokens{about}")

    with ExitStack() as stack:
        folder = asked.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvquant-")))
        progress = stack.enter_context(counted("measurements"))
        meter = stack.enter_context(open_meter(plan, folder, on_chunk=progress, on_run=on_run))
        say("float16 against itself")
        search = Search(problem, meter, hints, say)
        costs = search.costs()
        room = (
            search.smallest_within(costs, problem.max_kl)
            if problem.max_kl is not None
            else search.room(problem.budget or 0)
        )
        rivals, left_out = rivals_within(room, hints, problem.shape.n_layer)
        outcome = compare(search, meter, costs, room, rivals, left_out, n_random=asked.n_random)
        provenance = {
            "argv": command_line("kvquant", sys.argv[1:]),
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - begun, 1),
            "seconds_measuring": round(meter.seconds, 1),
            "kvquant_version": VERSION,
            "n_threads": plan.n_threads,
            "n_jobs": plan.n_jobs,
            "machine": to_document(read_machine()),
        }
        result = replace(
            document(search, meter, outcome, hints, plan.start(), provenance),
            min_speed=asked.min_speed,
            speeds=speeds,
        )
        if asked.out is not None:
            from kvquant.report.search_page import search_page  # only here: it draws

            write_json(folder / RESULT, result)
            write_atomic(folder / PAGE, search_page(result))
            click.echo(f"kvquant: wrote {folder / RESULT} and {folder / PAGE}", err=True)
    return result


def _texts(asked: Asked) -> tuple[Path, Path]:
    """The fitting text, of a known one the part for calibration, and the text to compare on."""
    name = asked.text
    known = name in KINDS and not Path(name).exists()
    fit = fetched_text(f"{name}:calibration" if known else name)
    held_out = fetched_text(asked.held_out or KINDS.get(name.partition(":")[0], "prose"))
    for option, path in (("--text", fit), ("--held-out", held_out)):
        if not path.is_file():
            raise UsageError(f"{option} {path}: no such file; give a UTF-8 text")
    if fit.resolve() == held_out.resolve():
        raise UsageError(f"--held-out {held_out} is also the fitting text; give another")
    return fit, held_out


def _budget(asked: Asked, model: GgufModel, shape: ModelShape, options: ContextOptions) -> int | None:
    """Bytes for K and V, None for a limit of KL."""
    if asked.budget is None and asked.ram is None:
        return None
    in_f16 = memory_of(shape, parse_policy(f"*:{EXACT}").resolve(shape), options)
    if isinstance(asked.budget, float):
        return int(asked.budget * in_f16.kv_bytes)
    states = in_f16.recurrent_bytes or 0
    if asked.budget is not None:
        return asked.budget - states
    tokens = model.header.values.get("tokenizer.ggml.tokens")
    logits = 4 * (tokens.n if isinstance(tokens, Array) else 0) * N_UBATCH
    left = (asked.ram or 0) - model.n_bytes - states - logits
    if left <= 0:
        raise UsageError(
            f"--ram {format_n_bytes(asked.ram or 0)} leaves nothing beside weights of "
            f"{format_n_bytes(model.n_bytes)} and logits of {format_n_bytes(logits)}; give more"
        )
    return left


def _hints(asked: Asked, model: GgufModel, shape: ModelShape, types: tuple[str, ...]) -> Hints:
    norms = key_bias_norms(model)
    proxy = None if asked.capture is None else side_errors(shape, asked.capture, types)
    return Hints(
        k_bias_layers=layers_that_stand_out(norms) if norms else None,
        weight_norms={Side(*place): norm for place, norm in projection_norms(model).items()} or None,
        proxy=proxy,
    )


def router_preset(asked: Asked, model: GgufModel, result: SearchResult) -> str:
    """Return the policy as a section of the file that llama-server's --models-preset reads."""
    transform = "" if asked.transform is None else f"kv-transform = {asked.transform.resolve()}\n"
    return (
        f"; {result.sentence}\n"
        f"[{model.path.stem}]\n"
        f"model = {model.path.resolve()}\n"
        f"ctx-size = {result.n_ctx}\n"
        "flash-attn = on\n"
        f"kv-layers = {result.policy}\n{transform}"
    )
