"""A board before anything runs on it: programs, models, cores, memory, and whether a plan can run there."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kvquant.assets.find import model_path
from kvquant.documents import to_document
from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.evals.doctor import check_machine
from kvquant.evals.machine import read_machine
from kvquant.llama.build import read_info
from kvquant.memory import ContextOptions, largest_context, memory_of, total_bytes
from kvquant.model.architectures import NoRulesError, shape_of
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.processes.command import run_captured
from kvquant.results.sweep import Board, Setting, SweptModel
from kvquant.shipped import VERSION
from kvquant.sweep.cores import named_cores, parse_cores, resolve_cores
from kvquant.sweep.plan import SweepPlan, tasks
from kvquant.transform import open_transform
from kvquant.units import format_n_bytes


@dataclass(frozen=True)
class Host:
    """This machine as a board. programs: None where only endpoints are asked. root: stands before /proc and
    /sys.
    """

    board: Board
    programs: Path | None
    models: Mapping[str, GgufModel]
    shapes: Mapping[str, ModelShape | None]
    root: Path

    @property
    def available_n_bytes(self) -> int | None:
        """Memory that is free now."""
        return read_machine(self.root).available_n_bytes


def survey(plan: SweepPlan, programs: Path | None, name: str | None = None, root: Path = Path("/")) -> Host:
    """Look at this machine for a plan. Raises KVQuantError, one line, for what a plan names and it lacks.

    programs: the folder of llama-server. name: of the board, by default the plan's, else the machine's own.
    """
    cores = named_cores(root)
    entries = plan.cpus if plan.probe is None else (*plan.cpus, plan.probe.cpus)
    for entry in entries if plan.models else ():
        resolve_cores(entry, cores)
    files = {entry: open_model(model_path(entry)) for entry in plan.models}
    for model in files.values():
        model.require_loadable()
    for entry, path in plan.transforms.items():
        open_transform(Path(path), files[entry], _shape(files[entry]), digest=True)
    info = None
    if files:
        if programs is None:
            raise UsageError("no llama-server: run kvquant llama build, or give its folder with --llama-bin")
        _check_server(programs)
        info = read_info(programs.parent)
    machine = read_machine(root)
    board = Board(
        name=name or plan.board or machine.board or f"{platform.machine()}, {len(machine.cores)} cores",
        kvquant_version=VERSION,
        llama_tag=info.tag if info else None,
        series_digest=info.series_digest if info else None,
        cores=cores,
        machine=to_document(machine),
        models=tuple(_swept(entry, model) for entry, model in files.items()),
        warnings=tuple(
            f"{found.subject}: {found.what}; {found.fix}" for found in check_machine(machine) if found.fix
        ),
    )
    return Host(board, programs, files, {entry: _shape(model) for entry, model in files.items()}, root)


def check_runnable(plan: SweepPlan, host: Host) -> None:
    """Raise KVQuantError, one line, when no cell of a plan can run on a board: none fits its memory, or
    llama.cpp takes none of its settings.
    """
    cells = [task for task in tasks(plan) if task.kind == "cell" and task.setting.policy is not None]
    if not cells or plan.endpoint:
        return
    free = host.available_n_bytes
    problems: list[KVQuantError] = []
    least = math.inf
    for task in cells:
        try:
            need = needed_bytes(host, task.setting)
            check_threads(host, task.setting)
        except KVQuantError as error:
            problems.append(error)
            continue
        if free is None or need <= free - plan.reserve_n_bytes:
            return
        least = min(least, need)
    if least is math.inf:
        raise UsageError(f"no cell of the plan can run; the first: {problems[0]}")
    raise KVQuantError(
        f"no cell fits: the smallest needs {format_n_bytes(int(least))}, {format_n_bytes(free or 0)} are "
        f"free and "
        f"{format_n_bytes(plan.reserve_n_bytes)} are reserved; free some memory, or plan smaller contexts"
    )


def needed_bytes(host: Host, setting: Setting) -> int:
    """Return what a cell will take at least: weights, KV cache and recurrent states; compute buffers come on
    top.

    Raises KVQuantError for a setting that llama.cpp refuses. Without memory rules only the weights count.
    """
    model, shape = host.models[setting.model], host.shapes[setting.model]
    if shape is None or setting.policy is None:
        return model.n_bytes
    resolved = parse_policy(setting.policy).resolve(shape)
    return model.n_bytes + total_bytes(memory_of(shape, resolved, context_options(setting)))


def predicted_context(host: Host, setting: Setting, n_bytes: int) -> int | None:
    """Return the longest context that `kvquant memory` allows beside the weights within ``n_bytes``; None
    where the memory is not known, 0 where not even the shortest fits.
    """
    model, shape = host.models[setting.model], host.shapes[setting.model]
    if shape is None or setting.policy is None:
        return None
    resolved = parse_policy(setting.policy).resolve(shape)
    try:
        return largest_context(shape, resolved, n_bytes - model.n_bytes, context_options(setting))
    except UsageError:
        return 0


def context_options(setting: Setting) -> ContextOptions:
    """The options of a setting that decide its memory."""
    return ContextOptions(setting.n_ctx, 1, flash_attn=setting.flash_attn == "on")


def check_threads(host: Host, setting: Setting) -> str | None:
    """Return the cores a setting is bound to, None for all. Raises UsageError when its threads outnumber
    them.
    """
    bound = resolve_cores(setting.cpus, host.board.cores)
    n_cores = len(parse_cores(bound or host.board.cores["all"]))
    if setting.n_threads is not None and setting.n_threads > n_cores:
        raise UsageError(f"{setting.n_threads} threads on {n_cores} cores ({setting.cpus})")
    return bound


def _check_server(programs: Path) -> None:
    server = programs / "llama-server"
    if not server.is_file():
        raise LlamaError(f"there is no llama-server in {programs}; kvquant llama build makes one")
    _, usage = run_captured([str(server), "--help"])
    if "--kv-layers" not in usage:
        raise LlamaError(f"{server} takes no --kv-layers; build one with the patches: kvquant llama build")


def _shape(model: GgufModel) -> ModelShape | None:
    try:
        return shape_of(model)
    except NoRulesError:
        return None


def _swept(name: str, model: GgufModel) -> SweptModel:
    tensors = [tensor for shard in model.shards for tensor in shard.tensors]
    n_weights = sum(math.prod(tensor.ne) for tensor in tensors)
    n_bytes = sum(tensor.n_bytes or 0 for tensor in tensors)
    shape = _shape(model)
    return SweptModel(
        name=name,
        title=model.name,
        sha256=model.sha256(),
        n_bytes=model.n_bytes,
        bits_per_weight=8 * n_bytes / n_weights if n_weights else None,
        arch=model.arch,
        n_ctx_train=(shape.n_ctx_train or None) if shape else None,
    )
