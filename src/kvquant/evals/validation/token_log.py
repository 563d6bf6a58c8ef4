"""The tokens of one divergence measurement on disk, a chunk of text a line, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvquant.errors import KVQuantError, LlamaError
from kvquant.evals.append_only import LineWriter, appending, parse_lines, whole_lines
from kvquant.evals.divergence import TokenDivergence, parse_token

COLUMNS = ("position", "kl", "same_top", "nll_baseline", "nll_policy")
"""What a line's ``tokens`` hold of each token, in this order."""


DIGITS = 7
"""Significant digits of a number that is kept: the float32 logits behind it hold no more."""


class TokenLog:
    """Collects the tokens of a chunk and writes the chunk when its last token has come."""

    def __init__(self, lines: LineWriter, tokens: Sequence[TokenDivergence]) -> None:
        self._lines = lines
        self._open: list[TokenDivergence] = []
        self.tokens = list(tokens)

    def start(self, argv: Sequence[str]) -> None:
        """Write the command line of the program whose tokens follow."""
        self._write({"kind": "run", "argv": list(argv), "columns": list(COLUMNS)})

    def append(self, token: TokenDivergence) -> None:
        """Take the next token."""
        if self._open and _chunk(self._open[-1]) != _chunk(token):
            self.flush()
        self._open.append(_short(token))

    def flush(self) -> None:
        """Write the open chunk: no token of it follows."""
        if not self._open:
            return
        document, chunk = _chunk(self._open[0])
        rows = [[getattr(token, name) for name in COLUMNS] for token in self._open]
        self._write({"kind": "chunk", "document": document, "chunk": chunk, "tokens": rows})
        self.tokens += self._open
        self._open = []

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(line, f"the {len(self.tokens)} tokens before this are kept")


@contextmanager
def open_token_log(path: Path) -> Iterator[TokenLog]:
    """Start or resume a file. Raises KVQuantError when a line is damaged or it cannot be written."""
    tokens: list[TokenDivergence] = []
    path.parent.mkdir(exist_ok=True)
    with appending(path, lambda data: tokens.extend(_parse(data, path))) as lines:
        yield TokenLog(lines, tokens)


def read_tokens(path: Path) -> list[TokenDivergence]:
    """Read the tokens of whole chunks. Raises KVQuantError when a line is damaged or there is no file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KVQuantError(f"{path}: cannot be read: {error.strerror}") from error
    return _parse(whole_lines(data), path)


def _parse(data: bytes, path: Path) -> list[TokenDivergence]:
    found: list[TokenDivergence] = []

    def read(line: dict[str, Any]) -> None:
        if line["kind"] != "chunk":
            return
        place = {"document": line["document"], "chunk": line["chunk"]}
        try:
            found.extend(
                parse_token({**place, **dict(zip(COLUMNS, row, strict=True))}) for row in line["tokens"]
            )
        except LlamaError as error:
            raise ValueError(str(error)) from error

    parse_lines(data, path, read)
    return found


def _short(token: TokenDivergence) -> TokenDivergence:
    """The token as it is kept, its numbers to DIGITS: what is summed up is what is on the disk."""
    kl, nll_baseline, nll_policy = (
        float(f"{value:.{DIGITS}g}") for value in (token.kl, token.nll_baseline, token.nll_policy)
    )
    return replace(token, kl=kl, nll_baseline=nll_baseline, nll_policy=nll_policy)


def _chunk(token: TokenDivergence) -> tuple[int, int]:
    return token.document, token.chunk
