"""Boards as the workers of a Dask cluster: the same cells, each on one of them, one at a time on each.

A task and its record travel as JSON text. Dask itself pickles the call around them, so whoever reaches the
scheduler can run code on every board: keep it in a network of your own, or give it TLS (docs/boards.md).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvquant.documents import from_json, to_json
from kvquant.errors import KVQuantError, UsageError
from kvquant.results.sweep import Board, CellRecord, ProbeRecord
from kvquant.shipped import VERSION
from kvquant.sweep.engine import OnRecord, run_task
from kvquant.sweep.journal import Record
from kvquant.sweep.plan import SweepPlan, Task
from kvquant.sweep.survey import Host, check_runnable, survey

CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.1

Programs = Callable[[], Path]
"""Finds the folder of llama-server on a board."""


def survey_board(plan_text: str, name: str, programs: Programs | None) -> str:
    """Run on a worker: the board as JSON, or {"error": ...} with the line that says what is wrong."""
    try:
        host = _host(plan_text, name, programs)
        check_runnable(from_json(SweepPlan, plan_text, "plan"), host)
    except KVQuantError as error:
        return to_json({"error": str(error), "version": VERSION})
    return to_json({"board": host.board, "version": VERSION})


def run_on_board(plan_text: str, task_text: str, name: str, programs: Programs | None) -> str:
    """Run on a worker: the record of a task as JSON, or {"error": ...}."""
    try:
        plan = from_json(SweepPlan, plan_text, "plan")
        record = run_task(plan, from_json(Task, task_text, "task"), _host(plan_text, name, programs))
    except KVQuantError as error:
        return to_json({"error": str(error)})
    return to_json({"record": record})


@lru_cache(maxsize=4)
def _host(plan_text: str, name: str, programs: Programs | None) -> Host:
    """The board, looked at once: digests of model files take their time."""
    plan = from_json(SweepPlan, plan_text, "plan")
    return survey(plan, programs() if programs is not None and plan.models else None, name)


class Cluster:
    """The workers of a scheduler. address: such as 192.168.1.10:8786."""

    def __init__(
        self,
        address: str,
        plan: SweepPlan,
        programs: Programs | None,
        on_begin: Callable[[Task], None] = lambda _: None,
        on_lost: Callable[[str, str], None] = lambda _board, _what: None,
    ) -> None:
        """Connect, and look at every board. Raises UsageError, one line, for a scheduler that cannot be
        reached, a worker of another version, and a board that cannot run the plan.
        """
        distributed = _import()
        self._plan, self._plan_text, self._programs = plan, to_json(plan), programs
        self._on_begin, self._on_lost = on_begin, on_lost
        target = address if "://" in address else f"tcp://{address}"
        try:
            self._client: Any = distributed.Client(target, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler at {address}: {_short(error)}; start one with dask scheduler, and name "
                f"it HOST:PORT"
            ) from error
        try:
            self._addresses = self._look()
        except BaseException:
            self.close()
            raise

    @property
    def boards(self) -> tuple[Board, ...]:
        """The boards as they were found at the start."""
        return tuple(self._boards.values())

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, left: Sequence[tuple[str | None, Task]], on_record: OnRecord) -> None:
        """Run tasks, one at a time on each board, and hand over each record when it is there.

        The tasks of a block stay on one board. What a board ran when it died is run by another one, or left
        for the next start where it must be that board. Raises KVQuantError when no board is left.
        """
        waiting = _by_board(left, list(self._boards))
        running: dict[str, tuple[Any, Task, bool]] = {}
        try:
            while running or any(waiting.values()):
                self._drop_dead(waiting, running)
                for board in self._addresses:
                    if board not in running and (found := _next(waiting, board)) is not None:
                        bound, task = found
                        self._on_begin(task)
                        running[board] = (self._submit(board, task), task, bound)
                if not running:
                    break
                for board, (future, _, _) in list(running.items()):
                    if future.done() and future.status != "lost":
                        self._collect(board, running, on_record)
                time.sleep(POLL_SECONDS)
        finally:
            self._client.cancel([future for future, _, _ in running.values()])
        n_left = sum(len(tasks) for tasks in waiting.values())
        if n_left:
            raise KVQuantError(
                f"no board is left for {n_left} cells; records are kept; run the same command again to resume"
            )

    def _submit(self, board: str, task: Task) -> Any:
        return self._client.submit(
            run_on_board,
            self._plan_text,
            to_json(task),
            board,
            self._programs,
            workers=[self._addresses[board]],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )

    def _collect(self, board: str, running: dict[str, tuple[Any, Task, bool]], on_record: OnRecord) -> None:
        future, _, _ = running[board]
        if future.status != "finished":
            if board not in self._alive():
                return  # the next look at the workers takes it back
            raise KVQuantError(f"{board}: {_short(future.exception())}")
        del running[board]
        answer = _answer(future.result(), board)
        if "error" in answer:
            raise KVQuantError(f"{board}: {answer['error']}")
        on_record(_record(answer["record"], board))

    def _drop_dead(
        self, waiting: dict[str | None, deque[Task]], running: dict[str, tuple[Any, Task, bool]]
    ) -> None:
        alive = self._alive()
        for board in [name for name in self._addresses if name not in alive]:
            del self._addresses[board]
            lost = "nothing ran there"
            if board in running:
                future, task, bound = running.pop(board)
                self._client.cancel([future])
                lost = f"lost {task.key}"
                waiting[board if bound else None].appendleft(task)
            if self._plan.boards == "share":
                # Its blocks go on elsewhere, first what it was at.
                waiting[None].extendleft(reversed(waiting.pop(board, deque())))
            self._on_lost(board, lost)

    def _alive(self) -> set[str]:
        """The boards whose workers the scheduler still knows."""
        known = set(self._client.scheduler_info(n_workers=-1)["workers"])
        return {name for name, address in self._addresses.items() if address in known}

    def _look(self) -> dict[str, str]:
        """Ask every worker what board it is. Returns the workers' addresses by the boards' names."""
        self._boards: dict[str, Board] = {}
        addresses: dict[str, str] = {}
        problems = []
        for address, name, future in self._surveyed():
            try:
                answer = _answer(future.result(), name)
            except KVQuantError:
                raise
            except Exception as error:  # whatever a worker of another version raises
                problems.append(
                    f"worker {name} cannot run this kvquant ({_short(error)}); install {VERSION} there"
                )
                continue
            if answer.get("version") != VERSION:
                problems.append(
                    f"worker {name} has kvquant {answer.get('version')}, this is {VERSION}; install one"
                )
            elif "error" in answer:
                problems.append(f"worker {name}: {answer['error']}")
            else:
                addresses[name] = address
                self._boards[name] = from_json(Board, to_json(answer["board"]), name)
        problems += _differences(list(self._boards.values()))
        if problems:
            raise UsageError(problems[0])
        return addresses

    def _surveyed(self) -> list[tuple[str, str, Any]]:
        """Address, name and answer, a finished future, of every worker. One that goes away before it answers
        is lost: what is asked of it would wait for ever.
        """
        asked: dict[str, tuple[str, Any]] = {}
        while True:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
            for address in [gone for gone in asked if gone not in workers]:
                name, future = asked.pop(address)
                self._client.cancel([future])
                self._on_lost(name, "it went away before it said what it is")
            if not workers:
                raise UsageError("the scheduler has no workers; start one on each board with dask worker")
            for address, worker in workers.items():
                if address not in asked:
                    name = str(address if worker.get("name") is None else worker["name"])
                    future = self._client.submit(
                        survey_board, self._plan_text, name, self._programs,
                        workers=[address], allow_other_workers=False, pure=False,
                    )  # fmt: skip
                    asked[address] = name, future
            if all(future.done() for _, future in asked.values()):
                return [(address, name, future) for address, (name, future) in asked.items()]
            time.sleep(POLL_SECONDS)


def _differences(boards: Sequence[Board]) -> list[str]:
    """Where boards would not run the same: another build, another file under a model's name."""
    found = []
    for board in boards[1:]:
        if board.series_digest != boards[0].series_digest:
            found.append(
                f"worker {board.name} has other patches in its llama-server than {boards[0].name}; build "
                f"both anew"
            )
        for mine, theirs in zip(board.models, boards[0].models, strict=True):
            if mine.sha256 != theirs.sha256:
                found.append(f"worker {board.name} has another file for {mine.name} than {boards[0].name}")
    return found


def _by_board(
    left: Sequence[tuple[str | None, Task]], boards: Sequence[str]
) -> dict[str | None, deque[Task]]:
    """Queues of tasks for the boards that must run them; None for those any board may take."""
    waiting: dict[str | None, deque[Task]] = {None: deque(), **{board: deque() for board in boards}}
    for board, task in left:
        waiting.setdefault(board, deque()).append(task)
    return waiting


def _next(waiting: dict[str | None, deque[Task]], board: str) -> tuple[bool, Task] | None:
    """Take the next task of a board: one that is bound to it, else the first of those that are not, whose
    block is then this board's.
    """
    if waiting[board]:
        return True, waiting[board].popleft()
    if not waiting[None]:
        return None
    task = waiting[None].popleft()
    block = [other for other in waiting[None] if other.block == task.block]
    for other in block:
        waiting[None].remove(other)
    waiting[board].extend(block)
    return True, task


def _answer(text: object, board: str) -> dict[str, Any]:
    return from_json(dict[str, Any], text if isinstance(text, str) else "", f"{board}'s answer")


def _record(document: dict[str, Any], board: str) -> Record:
    text, where = to_json(document), f"{board}'s record"
    if "attempts" in document:
        return from_json(ProbeRecord, text, where)
    return from_json(CellRecord, text, where)


def _import() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise UsageError(
            "--hosts needs Dask: pip install 'kvquant-llama[sweep]', here and on every board"
        ) from error
    return distributed


def _short(error: object) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
