"""The scored tokens of one policy on disk, a chunk of text a line, and the measurement that fills it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.evals.append_only import LineWriter, appending, parse_lines, whole_lines
from kvquant.evals.divergence import (
    CacheSetup,
    DivergenceRequest,
    TokenDivergence,
    check_token,
    measure_divergence,
)

COLUMNS = ("position", "kl", "same_top", "nll_baseline", "nll_policy")
"""What a line's ``tokens`` hold of each token, in this order."""

DIGITS = 7
"""Significant digits of a number that is kept: the float32 logits behind it hold no more."""


class TokenLog:
    """Writes the scored tokens of one policy, a chunk at a time.

    tokens: of the chunks that are on the disk, n_chunks of them. finished: there are no more to come.
    """

    def __init__(self, lines: LineWriter, before: _Content) -> None:
        self._lines = lines
        self.tokens, self.n_chunks, self.finished = before.tokens, before.n_chunks, before.finished

    def start(self, argv: Sequence[str]) -> None:
        """Write the command line of the program whose tokens follow."""
        self._write({"kind": "run", "argv": list(argv), "columns": list(COLUMNS)})

    def append(self, chunk: Sequence[TokenDivergence]) -> None:
        """Write the tokens of the next chunk."""
        kept = [_short(token) for token in chunk]
        rows = [[getattr(token, name) for name in COLUMNS] for token in kept]
        place = {"document": kept[0].document, "chunk": kept[0].chunk}
        self._write({"kind": "chunk", **place, "tokens": rows})
        self.tokens += kept
        self.n_chunks += 1

    def finish(self) -> None:
        """Write that no chunk follows."""
        self._write({"kind": "end", "n_chunks": self.n_chunks})
        self.finished = True

    def _write(self, line: dict[str, Any]) -> None:
        self._lines.write(line, f"the {len(self.tokens)} tokens before this are kept")


@contextmanager
def open_token_log(path: Path) -> Iterator[TokenLog]:
    """Start or resume a file. Raises KVQuantError when a line is damaged or it cannot be written."""
    content = _Content()
    path.parent.mkdir(parents=True, exist_ok=True)
    with appending(path, lambda data: content.read(data, path)) as lines:
        yield TokenLog(lines, content)


def read_tokens(path: Path) -> list[TokenDivergence]:
    """Read the tokens of whole chunks. Raises KVQuantError when a line is damaged or there is no file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KVQuantError(f"{path}: cannot be read: {error.strerror}") from error
    content = _Content()
    content.read(whole_lines(data), path)
    return content.tokens


def measure_into(
    programs: Path,
    request: DivergenceRequest,
    logs: Sequence[TokenLog],
    log: Path,
    on_chunk: Callable[[int, int], None] = lambda _done, _planned: None,
) -> Mapping[int, str]:
    """Measure what the log of each of a request's policies does not hold yet.

    logs: one for each policy, in their order. log: what the program prints. on_chunk: told how many of how
    many chunks of policies are done. Returns why, for each policy that failed; what it had is kept. Raises
    KVQuantError when a log cannot be written.
    """
    failures: dict[int, str] = {}
    # What was cut off by a kill is at most a chunk behind; policies that are new begin at 0.
    for n_done in sorted({found.n_chunks for found in logs if not found.finished}):
        group = [i for i, found in enumerate(logs) if not found.finished and found.n_chunks == n_done]
        part = replace(request, policies=tuple(request.policies[i] for i in group))
        for i in group:
            logs[i].start(_without_folders(part).arguments(n_done))
        try:
            failed = _measure_group(programs, part, [logs[i] for i in group], n_done, log, on_chunk)
        except (LlamaError, UsageError) as error:
            # The log has a place of its own.
            failed = dict.fromkeys(range(len(group)), str(error).removesuffix(f" (log: {log})"))
        failures |= {group[index]: what for index, what in failed.items()}
        for i in group:
            if i not in failures:
                logs[i].finish()
    return failures


def _measure_group(
    programs: Path,
    request: DivergenceRequest,
    logs: Sequence[TokenLog],
    n_done: int,
    log: Path,
    on_chunk: Callable[[int, int], None],
) -> dict[int, str]:
    failures: dict[int, str] = {}
    n_planned = 0

    def start(n_chunks: int) -> None:
        nonlocal n_planned
        n_planned = sum(min(n_chunks, policy.n_chunks or n_chunks) for policy in request.policies)

    def append(index: int, chunk: Sequence[TokenDivergence]) -> None:
        logs[index].append(chunk)
        on_chunk(sum(found.n_chunks for found in logs), n_planned)

    measure_divergence(
        programs,
        request,
        log,
        append,
        on_start=start,
        on_failure=failures.__setitem__,
        skip_chunks=n_done,
    )
    return failures


class _Content:
    """What a file holds."""

    def __init__(self) -> None:
        self.tokens: list[TokenDivergence] = []
        self.n_chunks = 0
        self.finished = False

    def read(self, data: bytes, path: Path) -> None:
        parse_lines(data, path, self._line)

    def _line(self, line: dict[str, Any]) -> None:
        self.finished = line["kind"] == "end"
        if line["kind"] != "chunk":
            return
        try:
            self.tokens += [_token(line["document"], line["chunk"], row) for row in line["tokens"]]
        except LlamaError as error:
            raise ValueError(str(error)) from error
        self.n_chunks += 1


def _token(document: int, chunk: int, row: Sequence[Any]) -> TokenDivergence:
    position, kl, same_top, nll_baseline, nll_policy = row
    for value in (document, chunk, position):
        if type(value) is not int:
            raise TypeError(f"{value!r} is no count")
    for value in (kl, nll_baseline, nll_policy):
        if type(value) not in (int, float):
            raise TypeError(f"{value!r} is no number")
    if type(same_top) is not bool:
        raise TypeError(f"{same_top!r} is not true or false")
    return check_token(
        TokenDivergence(
            document, chunk, position, float(kl), same_top, float(nll_baseline), float(nll_policy)
        )
    )


def _short(token: TokenDivergence) -> TokenDivergence:
    """The token as it is kept, its numbers to DIGITS: what is summed up is what is on the disk."""
    kl, nll_baseline, nll_policy = (
        float(f"{value:.{DIGITS}g}") for value in (token.kl, token.nll_baseline, token.nll_policy)
    )
    return replace(token, kl=kl, nll_baseline=nll_baseline, nll_policy=nll_policy)


def _without_folders(request: DivergenceRequest) -> DivergenceRequest:
    """The request as it is recorded: where its files were means nothing elsewhere."""

    def bare(setup: CacheSetup) -> CacheSetup:
        transform = setup.transform
        if transform is None:
            return setup
        return replace(setup, transform=replace(transform, path=Path(transform.path.name)))

    return replace(
        request,
        model=Path(request.model.name),
        texts=tuple(Path(text.name) for text in request.texts),
        policies=tuple(bare(setup) for setup in request.policies),
        baseline=bare(request.baseline),
    )
