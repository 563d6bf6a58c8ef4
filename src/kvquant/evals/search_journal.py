"""What a search has measured, on disk: a line for each chunk of text of each policy.

A search measures hundreds of policies, so a line keeps the sums of blocks of tokens, which means, intervals
and paired differences need, and not every token as `divergence_log` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from kvquant.evals.append_only import LineWriter, appending, parse_lines
from kvquant.evals.divergence import CacheSetup, TokenDivergence
from kvquant.evals.divergence_log import DIGITS

BLOCK_TOKENS = 8
"""Tokens of a block: neighbours resemble each other and are drawn together."""


@dataclass(frozen=True)
class ChunkSums:
    """KL of a policy on one chunk: nats summed over each block of BLOCK_TOKENS tokens, and their counts."""

    sums: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[TokenDivergence]) -> ChunkSums:
        """Sum up the scored tokens of one chunk, in their order; the last block may be longer."""
        n_blocks = max(1, len(tokens) // BLOCK_TOKENS)
        bounds = [index * BLOCK_TOKENS for index in range(n_blocks)] + [len(tokens)]
        blocks = [tokens[a:b] for a, b in pairwise(bounds)]
        return cls(
            tuple(float(f"{math.fsum(token.kl for token in block):.{DIGITS}g}") for block in blocks),
            tuple(len(block) for block in blocks),
        )


class Journal:
    """The chunks of every policy that are on the disk, in their order, and a way to add one."""

    def __init__(self, lines: LineWriter, chunks: dict[CacheSetup, list[ChunkSums]]) -> None:
        self._lines = lines
        self._chunks = chunks

    def chunks(self, setup: CacheSetup) -> Sequence[ChunkSums]:
        """Return what is known of a policy."""
        return self._chunks.get(_key(setup), ())

    def append(self, setup: CacheSetup, chunk: ChunkSums) -> None:
        """Keep the next chunk of a policy. Raises KVQuantError when it cannot be written."""
        n_done = sum(map(len, self._chunks.values()))
        self._lines.write(
            {
                "policy": setup.policy,
                "rotation": setup.rotation,
                "path": setup.path,
                "chunk": len(self.chunks(setup)),
                "sums": chunk.sums,
                "counts": chunk.counts,
            },
            f"the {n_done} measurements before this are kept",
        )
        self._chunks.setdefault(_key(setup), []).append(chunk)


def _key(setup: CacheSetup) -> CacheSetup:
    """What tells policies apart in a folder, which knows one transform only."""
    return replace(setup, transform=None, n_chunks=None)


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """Start or resume a journal. Raises KVQuantError when a line is damaged or it cannot be written."""
    chunks: dict[CacheSetup, list[ChunkSums]] = {}
    with appending(path, lambda data: parse_lines(data, path, lambda line: _read(line, chunks))) as lines:
        yield Journal(lines, chunks)


def _read(line: dict[str, Any], chunks: dict[CacheSetup, list[ChunkSums]]) -> None:
    if line["path"] not in ("prefill", "decode") or type(line["rotation"]) is not bool:
        raise ValueError("no such way to feed a cache")
    sums, counts = tuple(line["sums"]), tuple(line["counts"])
    known = all(type(value) in (int, float) and 0 <= value < math.inf for value in sums)
    if not known or not sums or len(sums) != len(counts):
        raise ValueError("no sums of nats")
    if not all(type(count) is int and count > 0 for count in counts):
        raise ValueError("no counts of tokens")
    if type(line["policy"]) is not str:
        raise TypeError("no policy")
    setup = CacheSetup(line["policy"], line["rotation"], line["path"])
    known_chunks = chunks.setdefault(setup, [])
    if line["chunk"] != len(known_chunks):
        raise ValueError("out of order")
    known_chunks.append(ChunkSums(tuple(map(float, sums)), counts))
