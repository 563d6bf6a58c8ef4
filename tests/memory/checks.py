"""What must hold of computed memory, as functions that return every way in which it does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kvquant.llama.logs import LoggedCache, parse_kv_log
from kvquant.memory import KVMemory, LayerMemory
from kvquant.model.shape import ModelShape

RESOLVED_CELLS = 10486
"""From this many cells on 0.01 MiB is less than a byte per cell: equal text means equal bytes."""

_MIB = np.float32(1024 * 1024)
_RECURRENT = re.compile(
    r"llama_memory_recurrent: size = +[\d.]+ MiB \( *(\d+) cells, .*R \(f32\): +([\d.]+) MiB, "
    r"S \(f32\): +([\d.]+) MiB"
)


def mib(n_bytes: int) -> str:
    """A size as llama.cpp prints it: divided in float32, two decimals."""
    return f"{np.float32(n_bytes) / _MIB:.2f}"


@dataclass(frozen=True)
class ExpectedCache:
    """One line that llama.cpp should print: the layers of one cache together."""

    n_cells: int
    layers: tuple[LayerMemory, ...]

    def types(self, defaults: tuple[str, str]) -> tuple[str, str]:
        """What the line calls K and V: one type, "mixed", or the defaults in a cache without layers."""
        sides = zip(*((layer.k_type, layer.v_type) for layer in self.layers), strict=True)
        names = tuple(side[0] if len(set(side)) == 1 else "mixed" for side in sides)
        return (names[0], names[1]) if names else defaults


def expected_caches(memory: KVMemory, windowed_model: bool) -> list[ExpectedCache]:
    """The caches in the order llama.cpp makes them: full attention, then sliding windows."""
    if not memory.layers:
        return []  # recurrent layers alone
    base = tuple(layer for layer in memory.layers if not layer.windowed)
    window = tuple(layer for layer in memory.layers if layer.windowed)
    found = [ExpectedCache(memory.cells.base, base)]
    return [*found, ExpectedCache(memory.cells.window, window)] if windowed_model else found


def against_log(
    shape: ModelShape, memory: KVMemory, n_parallel: int, types: tuple[str, str], log_text: str
) -> list[str]:
    """Every difference between computed memory and the log of the server that allocated it.

    types: the server's default K and V types, which a cache without layers is logged with.
    """
    log = parse_kv_log(log_text)
    expected = expected_caches(memory, shape.window > 0)
    problems = _count_problems("caches", len(expected), len(log.caches))
    for cache, logged in zip(expected, log.caches, strict=False):
        problems += _cache_problems(cache, logged, memory.cells.n_stream, n_parallel, types)
    problems += _per_layer_problems(memory, log_text)
    return problems + _recurrent_problems(shape, memory, n_parallel, log_text)


def _cache_problems(
    cache: ExpectedCache, logged: LoggedCache, n_stream: int, n_parallel: int, types: tuple[str, str]
) -> list[str]:
    problems: list[str] = []
    for name, wanted, found in (
        ("cells", cache.n_cells, logged.n_cells),
        ("layers", len(cache.layers), logged.n_layer),
        ("sequences", n_parallel, logged.n_seq),
        ("streams", n_stream, logged.n_stream),
        ("types", cache.types(types), (logged.k_type, logged.v_type)),
        ("K MiB", mib(sum(layer.k_bytes for layer in cache.layers)), f"{logged.k_mib:.2f}"),
        ("V MiB", mib(sum(layer.v_bytes for layer in cache.layers)), f"{logged.v_mib:.2f}"),
    ):
        if wanted != found:
            problems.append(f"{name}: computed {wanted}, llama.cpp has {found}")
    return problems


def _per_layer_problems(memory: KVMemory, log_text: str) -> list[str]:
    """Patched builds print every layer's bytes; stock ones print none."""
    logged = parse_kv_log(log_text).layers
    if not logged:
        return []
    found = {
        layer.layer: (layer.k.type, layer.k.n_bytes, layer.v.n_bytes if layer.v else 0) for layer in logged
    }
    wanted = {layer.layer: (layer.k_type, layer.k_bytes, layer.v_bytes) for layer in memory.layers}
    return [
        f"layer {layer}: computed {wanted.get(layer)}, llama.cpp has {found.get(layer)}"
        for layer in sorted(wanted.keys() | found.keys())
        if wanted.get(layer) != found.get(layer)
    ]


def _recurrent_problems(shape: ModelShape, memory: KVMemory, n_parallel: int, log_text: str) -> list[str]:
    lines = _RECURRENT.findall(log_text)
    if not shape.n_recurrent:  # a hybrid architecture of attention layers alone has an empty one
        lines = [line for line in lines if line[1:] != ("0.00", "0.00")]
    if not shape.n_recurrent:
        return _count_problems("recurrent memories", 0, len(lines))
    if shape.state is None or len(lines) != 1:
        return [f"recurrent memories: computed 1 of known size, llama.cpp has {len(lines)}"]
    rows = shape.n_recurrent * n_parallel * 4
    wanted = (str(n_parallel), mib(rows * shape.state.n_conv), mib(rows * shape.state.n_state))
    problems = [] if wanted == lines[0] else [f"recurrent: computed {wanted}, llama.cpp has {lines[0]}"]
    if memory.recurrent_bytes != rows * (shape.state.n_conv + shape.state.n_state):
        problems.append(f"recurrent_bytes is {memory.recurrent_bytes}")
    return problems


def _count_problems(what: str, wanted: int, found: int) -> list[str]:
    return [] if wanted == found else [f"{what}: computed {wanted}, llama.cpp has {found}"]


def monotone(cost: Callable[[int], int], points: Iterable[int]) -> list[str]:
    """Every neighbouring pair of ``points`` whose cost falls."""
    costs = [(point, cost(point)) for point in sorted(points)]
    return [
        f"{a} costs {cost_a} but {b} costs {cost_b}"
        for (a, cost_a), (b, cost_b) in pairwise(costs)
        if cost_b < cost_a
    ]


def additive(whole: KVMemory, parts: Iterable[KVMemory]) -> list[str]:
    """Whether the memory of a model is the sum of that of its layers, one at a time."""
    total = sum(part.kv_bytes for part in parts)
    return [] if total == whole.kv_bytes else [f"{whole.kv_bytes} bytes, the layers add up to {total}"]


def is_largest(cost: Callable[[int], int], found: int, step: int, limit: int, budget: int) -> list[str]:
    """Whether ``found`` is the last multiple of ``step``, up to ``limit``, that costs at most ``budget``."""
    problems = []
    if found % step or not 0 < found <= limit:
        problems.append(f"{found} is not a multiple of {step} up to {limit}")
    if cost(found) > budget:
        problems.append(f"{found} costs {cost(found)}, over {budget}")
    if found + step <= limit and cost(found + step) <= budget:
        problems.append(f"{found + step} would fit {budget} as well")
    return problems
