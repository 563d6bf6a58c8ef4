"""Boards as workers of a cluster on this machine: the same records, and what a death or a difference
costs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvquant.cli.main import kvquant
from kvquant.errors import UsageError
from kvquant.results.sweep import CellRecord
from kvquant.sweep import cluster as cluster_module
from kvquant.sweep.cluster import Cluster
from kvquant.sweep.engine import Here, left_of, sweep
from kvquant.sweep.journal import Journal, open_journal, start_of
from kvquant.sweep.plan import SweepPlan
from kvquant.sweep.survey import survey
from sweep.small_sweeps import fake_programs, small_plan

# Sockets and threads of Dask that are closed after the test has ended are its own affair.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@contextmanager
def two_workers() -> Iterator[Any]:
    """A scheduler and two workers, each a process of its own, as on two boards."""
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as found:
            yield found


def run(plan: SweepPlan, runner: Any, out: Path) -> Journal:
    with open_journal(out, start_of(plan, runner.boards, ["kvquant"])) as writer:
        return sweep(plan, runner, writer)


def without_times(record: Any) -> Any:
    """What of a record does not hang on when and where it was made."""
    same: dict[str, Any] = dict.fromkeys(("board", "started"), "") | dict.fromkeys(
        ("before", "after", "watched", "load_seconds", "peak_rss_bytes")
    )
    assert isinstance(record, CellRecord)
    points = tuple(replace(point, ttft_seconds=None, cpu_share=None) for point in record.points)
    return replace(record, points=points, wall_seconds=0.0, **same)


PLAN = {"policies": ("f16", "q8_0", "q4_0"), "ctx": (512, 1024)}


def test_two_workers_give_the_same_records(tmp_path: Path) -> None:
    plan, programs = small_plan(**PLAN), fake_programs(tmp_path)
    here = run(plan, Here(plan, survey(plan, programs, "here")), tmp_path / "here")
    with (
        two_workers() as found,
        Cluster(found.scheduler_address, plan, partial(Path, programs)) as cluster,
    ):
        assert len(cluster.boards) == 2
        there = run(plan, cluster, tmp_path / "there")
    by_key = {record.key: without_times(record) for record in here.cells}
    assert {record.key: without_times(record) for record in there.cells} == by_key
    assert len(by_key) == 6
    # What is compared with each other comes from one board.
    blocks = {(record.setting.n_ctx, record.board) for record in there.cells}
    assert len(blocks) == 2


def test_each_board_can_run_everything(tmp_path: Path) -> None:
    plan, programs = small_plan(policies=("f16",), boards="each"), fake_programs(tmp_path)
    with (
        two_workers() as found,
        Cluster(found.scheduler_address, plan, partial(Path, programs)) as cluster,
    ):
        journal = run(plan, cluster, tmp_path / "out")
    assert len({record.board for record in journal.cells}) == len(journal.cells) == 2


def test_a_worker_that_dies_loses_its_cell_and_no_other(tmp_path: Path) -> None:
    plan, programs = small_plan(policies=("f16", "q8_0"), ctx=(512, 1024, 2048)), fake_programs(tmp_path)
    lost: list[str] = []
    begun: list[str] = []
    with two_workers() as found:
        nanny = found.workers[0]

        def kill_the_first(_: object) -> None:
            if not lost and nanny.pid is not None:
                os.kill(nanny.pid, signal.SIGKILL)

        with (
            Cluster(
                found.scheduler_address,
                plan,
                partial(Path, programs),
                on_begin=lambda task: begun.append(task.key),
                on_lost=lambda _board, what: lost.append(what),
            ) as cluster,
            open_journal(tmp_path / "out", start_of(plan, cluster.boards, ["kvquant"])) as writer,
        ):
            journal = sweep(plan, cluster, writer, kill_the_first)
    assert len(journal.cells) == 6
    assert len(lost) == 1
    # Nothing but the cell that ran on the dead one was begun twice.
    assert len(begun) - len(set(begun)) <= 1


def test_a_worker_that_goes_away_before_it_answers_is_not_waited_for(tmp_path: Path) -> None:
    programs, lost = fake_programs(tmp_path), list[tuple[str, str]]()
    with two_workers() as found:
        first, stopped = found.workers[0], tmp_path / "stopped"

        def asleep_on_the_first() -> Path:
            # Only the worker that is killed below finds nothing here, and sleeps.
            if os.getpid() == first_pid and not stopped.exists():
                stopped.touch()
                time.sleep(600)
            return programs

        first_pid = first.pid
        assert first_pid is not None

        def kill() -> None:
            while not stopped.exists():
                time.sleep(0.05)
            os.kill(first_pid, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with Cluster(
            found.scheduler_address,
            small_plan(),
            asleep_on_the_first,
            on_lost=lambda board, what: lost.append((board, what)),
        ) as cluster:
            assert cluster.boards
        killer.join()
    assert [what for _, what in lost] == ["it went away before it said what it is"]


def test_workers_that_cannot_run_the_plan_are_named(tmp_path: Path) -> None:
    programs = fake_programs(tmp_path)
    with two_workers() as found:
        address = found.scheduler_address
        with pytest.raises(UsageError, match=r"worker \d: cpus '4000': this machine has no core 4000"):
            Cluster(address, small_plan(cpus=("4000",)), partial(Path, programs))
        with pytest.raises(UsageError, match="there is no llama-server in"):
            Cluster(address, small_plan(), partial(Path, tmp_path / "nothing"))


def test_a_worker_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = fake_programs(tmp_path)
    with two_workers() as found:
        monkeypatch.setattr(cluster_module, "VERSION", "99.0")
        with pytest.raises(UsageError, match=r"has kvquant [0-9.]+, this is 99.0; install one"):
            Cluster(found.scheduler_address, small_plan(), partial(Path, programs))


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.5)
    plan = tmp_path / "plan.toml"
    plan.write_text("models = ['smollm2-135m']\n")
    argv = ["sweep", str(plan), "--hosts", "127.0.0.1:1", "--out", str(tmp_path / "out")]
    with pytest.raises(
        UsageError, match=r"no Dask scheduler at 127.0.0.1:1: .*; start one with dask scheduler"
    ):
        CliRunner().invoke(kvquant, argv, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_what_boards_are_given() -> None:
    plan = small_plan(policies=("f16", "q8_0"), ctx=(512, 1024))
    waiting = cluster_module._by_board(left_of(plan, (), Journal()), ["a", "b"])
    first = cluster_module._next(waiting, "a")
    assert first is not None and first[1].block == 0
    second = cluster_module._next(waiting, "b")
    assert second is not None and second[1].block == 1
    third = cluster_module._next(waiting, "a")
    assert third is not None and third[1].block == 0
    assert cluster_module._next(waiting, "a") is None
