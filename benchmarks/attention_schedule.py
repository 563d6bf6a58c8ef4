"""How evenly attention's work items keep threads busy, by simulation: prints the table of docs/attention.md.

    python benchmarks/attention_schedule.py

kv-attn.cpp cuts an operation into items by its shapes alone. Thread i begins with item i and then takes the
next that nobody has. An item here costs its cache rows times its query rows, as if all threads were equally
fast.
"""

from __future__ import annotations

import heapq
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from kernel_constants import constant
from kvquant.files import write_atomic
from kvquant.tables import Table, markdown
from marked_page import filled

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/attention.md"

THREADS = (4, 8, 16, 32, 64)
CASES = ((1, 512), (1, 2048), (1, 8192), (1, 32768), (512, 2048))
"""Query tokens, and cache rows."""
SHAPES = {
    "SmolLM2-135M": (9, 3, 64),
    "Qwen2.5-Coder-0.5B": (14, 2, 64),
    "Gemma-3-270M": (4, 1, 256),
    "8 KV heads": (32, 8, 128),
}
"""Query heads, KV heads and width of a head."""


@dataclass(frozen=True)
class Operation:
    """Attention of n_tokens query tokens over n_kv cache rows in one stream."""

    n_head: int
    n_head_kv: int
    head_dim: int
    n_tokens: int
    n_kv: int

    def items(self) -> list[int]:
        """Return what each item costs, in the order in which they are taken: make_plan of kv-attn.cpp."""
        chunk_kv, min_items, most, tile = map(constant, ("CHUNK_KV", "MIN_ITEMS", "MAX_PARTIALS", "TILE_KV"))
        min_tiles, least_rows = map(constant, ("MIN_TILES", "MIN_TILE_ROWS"))
        n_rows = self.n_tokens * self.n_head // self.n_head_kv
        fitting, shared = 65536 // (2 * self.head_dim), n_rows * self.n_head_kv // min_tiles
        tile_rows = min(n_rows, max(least_rows, min(fitting // 64 * 64, shared // 64 * 64)))
        row_tiles = [min(tile_rows, n_rows - start) for start in range(0, n_rows, tile_rows)]
        min_chunks = -(-min_items // (self.n_head_kv * len(row_tiles)))
        max_chunks = max(1, most // (self.n_head_kv * n_rows))
        wanted = max(1, min(chunk_kv, self.n_kv // min_chunks), -(-self.n_kv // max_chunks))
        size = -(-wanted // tile) * tile
        chunks = [min(size, self.n_kv - start) for start in range(0, self.n_kv, size)]
        return [rows * kv for kv in chunks for rows in row_tiles for _ in range(self.n_head_kv)]


def efficiency(items: list[int], n_threads: int) -> float:
    """Return the share of the threads' time that is work: 1 where all end together."""
    busy = [0] * n_threads
    for item in items:
        heapq.heapreplace(busy, busy[0] + item)
    return sum(items) / (max(busy) * n_threads)


def table() -> Table:
    """Return that share by shape, tokens and cache rows."""
    rows = []
    for name, shape in SHAPES.items():
        for n_tokens, n_kv in CASES:
            items = Operation(*shape, n_tokens, n_kv).items()
            shares = (f"{efficiency(items, n):.0%}" for n in THREADS)
            rows.append((name, str(n_tokens), str(n_kv), str(len(items)), *shares))
    head = ("heads of", "tokens", "cache rows", "items", *(f"{n} threads" for n in THREADS))
    return Table(head, tuple(rows))


def page() -> str:
    """Return docs/attention.md with the table."""
    return filled(PAGE.read_text(encoding="utf-8"), {"schedule": markdown(table())})


if __name__ == "__main__":
    write_atomic(PAGE, page())
