"""What a suite asks of a policy besides its tests: divergence, speed and memory (`kvquant validate`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.errors import UsageError
from kvquant.evals.divergence import FeedPath
from kvquant.evals.toml_table import only, table_at, text_at, whole_at

PATHS: tuple[FeedPath, ...] = ("prefill", "decode")
REFERENCE_TEXT = "reference"
DEFAULT_N_CTX = 4096


@dataclass(frozen=True)
class DivergencePart:
    """KL divergence per token, ``[kld]``.

    text: ``reference`` for documents of the reference model's test split, else a UTF-8 file. n_documents and
    n_tokens: how many such documents, of how many of its tokens. n_ctx: tokens of a chunk. paths: how tokens
    are fed.
    """

    text: str
    n_documents: int
    n_tokens: int
    n_ctx: int
    paths: tuple[FeedPath, ...]


@dataclass(frozen=True)
class SpeedPart:
    """llama-bench and chat timings, ``[speed]``.

    depths: tokens in the cache before the clock starts. n_prompt, n_gen: tokens timed. n_rounds: runs of each
    policy. n_chats: how often the fixed conversation is held.
    """

    depths: tuple[int, ...]
    n_prompt: int
    n_gen: int
    n_rounds: int
    n_chats: int


@dataclass(frozen=True)
class Parts:
    """n_ctx: context of the server, ``[server]``. A part that is not asked for is None or False."""

    n_ctx: int
    divergence: DivergencePart | None
    speed: SpeedPart | None
    memory: bool

    @property
    def any(self) -> bool:
        """Whether the suite asks for anything besides its tests."""
        return self.memory or self.divergence is not None or self.speed is not None


TABLES = ("server", "kld", "speed", "memory")


def parse_parts(document: Mapping[str, Any], where: str) -> Parts:
    """Read the tables of a suite that describe its parts. Raises UsageError naming the key at fault."""
    server = _part(document, "server", {"n_ctx"}, where) or {}
    divergence = _part(document, "kld", {"text", "n_documents", "n_tokens", "n_ctx", "paths"}, where)
    speed = _part(document, "speed", {"depths", "n_prompt", "n_gen", "n_rounds", "n_chats"}, where)
    memory = _part(document, "memory", set(), where)
    return Parts(
        n_ctx=whole_at(server, "n_ctx", f"{where}: [server]", DEFAULT_N_CTX),
        divergence=None if divergence is None else _divergence(divergence, f"{where}: [kld]"),
        speed=None if speed is None else _speed(speed, f"{where}: [speed]"),
        memory=memory is not None,
    )


def _part(document: Mapping[str, Any], key: str, known: set[str], where: str) -> Mapping[str, Any] | None:
    if key not in document:
        return None
    table = table_at(document, key, where)
    only(table, known, f"{where}: [{key}]")
    return table


def _divergence(table: Mapping[str, Any], where: str) -> DivergencePart:
    paths = table.get("paths", list(PATHS))
    if not isinstance(paths, list) or not paths or any(path not in PATHS for path in paths):
        raise UsageError(f"{where}: paths must name some of {', '.join(PATHS)}")
    return DivergencePart(
        text=text_at(table, "text", where),
        n_documents=whole_at(table, "n_documents", where, 16),
        n_tokens=whole_at(table, "n_tokens", where, 512),
        n_ctx=whole_at(table, "n_ctx", where, 512, least=8),
        paths=tuple(path for path in PATHS if path in paths),
    )


def _speed(table: Mapping[str, Any], where: str) -> SpeedPart:
    depths = table.get("depths", [0, 1024, 4096])
    if not isinstance(depths, list) or not depths or not all(_is_depth(depth) for depth in depths):
        raise UsageError(f"{where}: depths must be whole numbers from 0")
    return SpeedPart(
        depths=tuple(sorted(set(depths))),
        n_prompt=whole_at(table, "n_prompt", where, 256),
        n_gen=whole_at(table, "n_gen", where, 32),
        n_rounds=whole_at(table, "n_rounds", where, 6),
        n_chats=whole_at(table, "n_chats", where, 1, least=0),
    )


def _is_depth(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
