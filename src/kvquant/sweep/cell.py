"""One cell: start the server under a setting, measure, end it; whatever goes wrong is a result."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from kvquant.errors import EndpointError, KVQuantError, LlamaError, UsageError
from kvquant.evals.endpoint import ApiKey, Endpoint, EndpointTimeout
from kvquant.llama.logs import parse_buffers
from kvquant.llama.router import Router
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.results.sweep import ALL_CPUS, Buffers, CellRecord, Ending, Setting, SpeedAt
from kvquant.sweep.ask import Answer, chat, complete, filler
from kvquant.sweep.conditions import MemoryLow, Watcher, cool_down, drop_page_cache, read_conditions
from kvquant.sweep.cores import parse_cores
from kvquant.sweep.plan import EndpointPlan, Measure, SweepPlan, Task
from kvquant.sweep.survey import Host, check_threads, needed_bytes
from kvquant.units import format_n_bytes

MIB = 2**20
_FIRST_TO_GO = ("choom", "-n", "1000", "--")
"""Should the kernel run out of memory all the same, it ends this program first (util-linux)."""

_WARMUP_WORDS = 48

LEAST_TICKS = 20
"""Clock ticks that a share of the processor is taken over: one tick more or less is then 5 % of it."""


@dataclass(frozen=True)
class Running:
    """A server of ours and how to ask it. load_seconds: until it answered."""

    server: LlamaServer
    endpoint: Endpoint
    load_seconds: float


def run_cell(plan: SweepPlan, task: Task, host: Host) -> CellRecord:
    """Run a cell and return its record. Raises KVQuantError only for what spoils every cell, such as a page
    cache that may not be dropped.
    """
    cooled = cool_down(
        plan.cooling.below_celsius, plan.cooling.at_most_seconds, lambda: read_conditions(host.root)
    )
    if plan.drop_page_cache:
        drop_page_cache(host.root)
    before = read_conditions(host.root)
    begun = time.monotonic()
    record = CellRecord(
        board=host.board.name,
        setting=task.setting,
        round=task.round,
        ending=Ending.DONE,
        detail="",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=0.0,
        cooled_seconds=cooled,
        page_cache_dropped=plan.drop_page_cache,
        before=before,
    )
    measured = _of_server if task.setting.base_url is None else _of_endpoint
    record = measured(plan, record, host)
    seconds = round(time.monotonic() - begun, 3)
    return replace(record, wall_seconds=seconds, after=read_conditions(host.root))


@contextmanager
def started(
    plan: SweepPlan, setting: Setting, host: Host, watcher: Watcher, extra: tuple[str, ...] = ()
) -> Iterator[Running]:
    """Run a server under a setting for the length of the block, guarded by ``watcher``.

    Raises MemoryLow, LlamaError or EndpointError.
    """
    options = server_options(setting, host, check_threads(host, setting), extra)
    begun = time.monotonic()
    if host.programs is None:
        raise LlamaError("no programs on this board; kvquant llama build makes them")
    # The log outlives the server, which the guard may end at any time.
    with (
        tempfile.TemporaryDirectory(prefix="kvquant-cell-") as folder,
        LlamaServer(
            host.programs,
            options,
            plan.measure.start_seconds,
            log=Path(folder) / "log",
            while_loading=watcher.check,
        ) as server,
    ):
        watcher.guard(server.stop)
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}", plan.measure.timeout_seconds)
        try:
            yield Running(server, endpoint, round(time.monotonic() - begun, 3))
        except EndpointTimeout:
            raise
        except EndpointError:
            # The end of a server is behind most errors of its connection, and its log knows why.
            server.check_running()
            raise


def server_options(
    setting: Setting, host: Host, bound: str | None, extra: tuple[str, ...] = ()
) -> ServerOptions:
    """Return what a setting's server is started with."""
    prefix = _FIRST_TO_GO if shutil.which(_FIRST_TO_GO[0]) else ()
    if bound is not None:
        prefix = (*prefix, "taskset", "-c", bound)
    return ServerOptions(
        model=host.models[setting.model].path,
        n_ctx=setting.n_ctx,
        kv_layers=setting.policy,
        n_threads=setting.n_threads,
        kv_transform=None if setting.transform is None else Path(setting.transform),
        extra=("--flash-attn", setting.flash_attn, *extra),
        prefix=prefix,
    )


def memory_problem(plan: SweepPlan, setting: Setting, host: Host) -> str | None:
    """Say why a setting must not be started, None where it may. Raises KVQuantError for one llama.cpp
    refuses.
    """
    need, free = needed_bytes(host, setting), host.available_n_bytes
    if free is None or need <= free - plan.reserve_n_bytes:
        return None
    return (
        f"needs {format_n_bytes(need)}, {format_n_bytes(free)} are free and "
        f"{format_n_bytes(plan.reserve_n_bytes)} are left alone"
    )


def ending_of(error: Exception, watcher: Watcher | None) -> tuple[Ending, str]:
    """Say what a failure means."""
    if isinstance(error, MemoryLow) or (watcher is not None and watcher.is_low):
        return Ending.NO_MEMORY, watcher.low_text if watcher is not None else str(error)
    text = str(error)
    if isinstance(error, EndpointTimeout) or "did not load" in text or "did not answer within" in text:
        return Ending.TIMED_OUT, text
    if "ended with status" in text:
        # 137: killed, which on a board is the kernel's answer to a lack of memory.
        lacking = "status 137" in text or "failed to allocate" in text or "unable to allocate" in text
        return Ending.NO_MEMORY if lacking else Ending.CRASHED, text
    return Ending.FAILED, text


def _of_server(plan: SweepPlan, record: CellRecord, host: Host) -> CellRecord:
    setting, measure = record.setting, plan.measure
    try:
        bound = check_threads(host, setting)
        problem = memory_problem(plan, setting, host)
    except KVQuantError as error:
        return replace(record, ending=Ending.REFUSED, detail=str(error))
    record = replace(record, cores=bound)
    if problem is not None:
        return replace(record, ending=Ending.NO_MEMORY, detail=problem)
    watcher = Watcher(plan.reserve_n_bytes, host.root)
    points: list[SpeedAt] = []
    try:
        # One batch is one prefill timing.
        batch = str(measure.n_prompt)
        extra = ("--batch-size", batch, "--ubatch-size", str(min(512, measure.n_prompt)))
        with watcher, started(plan, setting, host, watcher, extra) as running:
            record = replace(record, load_seconds=running.load_seconds)
            depths = fitting_depths(plan, setting.n_ctx)
            prompt = running.server.tokenize(filler(max(depths) + measure.n_prompt))
            warmed = complete(running.endpoint, prompt[: measure.warmup], 2)
            record = replace(record, warmup_tokens=warmed.n_prompt or 0)
            for depth in depths:
                points.append(_point(running, depth, prompt, measure, _n_threads(setting, host)))
            record = replace(
                record, buffers=buffers_of(running.server), peak_rss_bytes=running.server.peak_n_bytes()
            )
    except (LlamaError, EndpointError) as error:
        ending, detail = ending_of(error, watcher)
        record = replace(record, ending=ending, detail=detail)
    return replace(record, points=tuple(points), watched=watcher.watched())


def fitting_depths(plan: SweepPlan, n_ctx: int) -> list[int]:
    """The depths of a plan that a context has room for, ascending."""
    measure = plan.measure
    room = n_ctx - measure.n_prompt - measure.n_gen
    return sorted({depth for depth in measure.depths if depth <= room})


def buffers_of(server: LlamaServer) -> Buffers:
    """What the server's log says it allocated."""
    log = parse_buffers(server.log_text())
    sizes = (log.model, log.kv, log.recurrent, log.compute, log.output)
    model, kv, recurrent, compute, output = (None if mib is None else round(mib * MIB) for mib in sizes)
    return Buffers(model, server.kv_log().n_bytes or kv, recurrent, compute, output)


def _point(running: Running, depth: int, prompt: Sequence[int], measure: Measure, n_threads: int) -> SpeedAt:
    begun, cpu = time.monotonic(), running.server.cpu_seconds()
    answer = complete(running.endpoint, prompt[: depth + measure.n_prompt], measure.n_gen)
    seconds, cpu_after = time.monotonic() - begun, running.server.cpu_seconds()
    share = None if cpu is None or cpu_after is None else cpu_share(cpu_after - cpu, seconds, n_threads)
    return SpeedAt(
        depth=depth,
        n_prompt=measure.n_prompt,
        prefill=answer.prefill(depth, measure.n_prompt),
        n_gen=answer.n_generated or 0,
        decode=answer.decode,
        ttft_seconds=answer.ttft_seconds,
        cpu_share=share,
    )


def cpu_share(cpu_seconds: float, seconds: float, n_threads: int) -> float | None:
    """Return the share of the processor time that n_threads could have had in ``seconds``.

    None where the interval is so short that the kernel's clock tick, the unit of cpu_seconds, would decide.
    """
    if seconds * os.sysconf("SC_CLK_TCK") < LEAST_TICKS:
        return None
    return cpu_seconds / seconds / n_threads


def _n_threads(setting: Setting, host: Host) -> int:
    """The threads that compute: those asked for, else as many as there are cores to run on."""
    bound = check_threads(host, setting) or host.board.cores[ALL_CPUS]
    return setting.n_threads or len(parse_cores(bound))


def _of_endpoint(plan: SweepPlan, record: CellRecord, host: Host) -> CellRecord:
    entry = plan.endpoint_named(record.setting.model)
    if entry is None:
        raise UsageError(f"the plan has no endpoint {record.setting.model!r}")
    watcher = Watcher(0, host.root)
    points: list[SpeedAt] = []
    try:
        with watcher, _loaded(plan, entry) as (endpoint, model):
            first = chat(endpoint, model, filler(_WARMUP_WORDS), 4)
            record = replace(record, warmup_tokens=first.n_prompt or 0)
            tokens_a_word = (first.n_prompt or _WARMUP_WORDS) / _WARMUP_WORDS
            for depth in fitting_depths(plan, record.setting.n_ctx):
                # Another text each time: an endpoint may remember the last one.
                words = int((depth + plan.measure.n_prompt) / tokens_a_word)
                answer = chat(endpoint, model, filler(words, seed=1 + depth), plan.measure.n_gen)
                points.append(_chat_point(depth, plan.measure.n_prompt, answer))
    except (EndpointError, LlamaError) as error:
        ending, detail = ending_of(error, None)
        record = replace(record, ending=ending, detail=detail)
    return replace(record, points=tuple(points), watched=watcher.watched())


@contextmanager
def _loaded(plan: SweepPlan, entry: EndpointPlan) -> Iterator[tuple[Endpoint, str]]:
    """An endpoint and the name of its model, which a router loads first and unloads at the end."""
    key = endpoint_key(entry)
    endpoint = Endpoint(entry.base_url, plan.measure.timeout_seconds, key)
    if not entry.router:
        yield endpoint, endpoint.choose_model(entry.model).name
        return
    if entry.model is None:
        raise UsageError(f"endpoint {entry.name!r} is a router; name the model that it is to load")
    router = Router(entry.base_url.removesuffix("/v1"), None if key is None else key.value)
    router.load(entry.model, plan.measure.start_seconds)
    try:
        yield endpoint, entry.model
    finally:
        router.unload(entry.model)


def endpoint_key(entry: EndpointPlan) -> ApiKey | None:
    """The key that a plan's variable holds. Raises UsageError for a variable that is not set."""
    if entry.api_key_env is None:
        return None
    value = os.environ.get(entry.api_key_env)
    if not value:
        raise UsageError(f"endpoint {entry.name!r}: the variable {entry.api_key_env} is not set")
    return ApiKey(entry.api_key_env, value)


def _chat_point(depth: int, n_prompt: int, answer: Answer) -> SpeedAt:
    """From the client's clock. Prefill is known from an empty cache only: later batches cannot be told
    apart.
    """
    prefill = None
    if depth == 0 and answer.n_prompt and answer.ttft_seconds:
        prefill = answer.n_prompt / answer.ttft_seconds
    n_after = n_prompt if answer.n_prompt is None else max(0, answer.n_prompt - depth)
    return SpeedAt(depth, n_after, prefill, answer.n_generated or 0, answer.decode, answer.ttft_seconds)
