"""Heat and clocks of a board that is a folder: waiting until it is cool, and what counts as throttled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.results.sweep import Ending
from kvquant.sweep.cell import run_cell
from kvquant.sweep.conditions import Conditions, Watcher, cool_down, read_conditions
from kvquant.sweep.plan import Cooling, tasks
from kvquant.sweep.survey import survey
from sweep.small_sweeps import fake_programs, small_plan


def write(root: Path, **values: int | str) -> None:
    """Write files of a board by names in which __ stands for a slash."""
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


ZONE = "sys__class__thermal__thermal_zone0__"
FAN = "sys__class__thermal__cooling_device0__cur_state"
CLOCK = "sys__devices__system__cpu__cpu0__cpufreq__scaling_cur_freq"


@pytest.fixture
def board(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    zone = {f"{ZONE}type": "soc-thermal", f"{ZONE}temp": 45000}
    trip = {f"{ZONE}trip_point_0_type": "passive", f"{ZONE}trip_point_0_temp": 85000}
    write(root, **zone, **trip, **{FAN: 0, CLOCK: 2256000, "proc__meminfo": "MemAvailable: 8000000 kB"})
    return root


def watched(board: Path, *steps: dict[str, int]) -> bool | None:
    """Whether a board was throttled that goes through these steps while it is watched."""
    watcher = Watcher(0, board, every_seconds=60)
    with watcher:
        for step in steps:
            write(board, **step)
            watcher._sample()
    return watcher.watched().throttled


@pytest.mark.parametrize(
    ("steps", "throttled"),
    [
        ([], False),
        ([{f"{ZONE}temp": 84999}], False),
        ([{f"{ZONE}temp": 85000}], True),
        ([{f"{ZONE}temp": 90000}, {f"{ZONE}temp": 40000}], True),
        ([{FAN: 1}], True),
        ([{FAN: 2}, {FAN: 0}], True),
        ([{CLOCK: 408000}], False),  # an idle core is slow, too: only limits and cooling tell
    ],
)
def test_throttled_is_what_reached_its_limit_or_was_cooled(
    steps: list[dict[str, int]], throttled: bool, board: Path
) -> None:
    assert watched(board, *steps) is throttled


def test_cooling_that_was_on_before_is_no_news(board: Path) -> None:
    write(board, **{FAN: 3})
    assert watched(board, {FAN: 3}, {FAN: 1}) is False


def test_a_board_without_sensors_says_nothing(tmp_path: Path) -> None:
    write(tmp_path, proc__meminfo="MemAvailable: 8000000 kB")
    watcher = Watcher(0, tmp_path)
    with watcher:
        pass
    seen = watcher.watched()
    assert (seen.throttled, seen.max_celsius, seen.min_core_khz) == (None, None, None)


def test_extremes_are_kept(board: Path) -> None:
    watcher = Watcher(0, board, every_seconds=60)
    with watcher:
        for celsius, khz in ((70000, 1800000), (60000, 1416000), (50000, 2256000)):
            write(board, **{f"{ZONE}temp": celsius, CLOCK: khz})
            watcher._sample()
    seen = watcher.watched()
    assert (seen.n_samples, seen.max_celsius, seen.min_core_khz) == (4, 70.0, 1416000)


def cooling(*celsius: float) -> Iterator[Conditions]:
    """What is read, one reading after the other, the last one for ever."""
    at = read_conditions(Path("/nowhere"))
    for value in celsius:
        yield replace(at, celsius={"soc": value, "gpu": 20.0})
    while True:
        yield replace(at, celsius={"soc": celsius[-1], "gpu": 20.0})


@given(st.lists(st.floats(20, 100), min_size=1, max_size=20), st.floats(0, 30))
def test_cooling_ends_when_cool_or_out_of_time(celsius: list[float], at_most: float) -> None:
    readings, slept = cooling(*celsius), list[float]()
    waited = cool_down(60.0, at_most, lambda: next(readings), slept.append)
    assert waited == pytest.approx(sum(slept)) and waited <= at_most
    n_hot = next((index for index, value in enumerate(celsius) if value < 60.0), None)
    if n_hot is not None and 2.0 * n_hot <= at_most:
        assert len(slept) == n_hot  # not a moment longer than it is hot
    else:
        assert waited == pytest.approx(at_most)


def test_without_sensors_nothing_is_waited_for() -> None:
    at = read_conditions(Path("/nowhere"))
    assert at.celsius == {}
    assert cool_down(60.0, 100.0, lambda: at, lambda seconds: pytest.fail(f"slept {seconds}")) == 0


def test_a_cell_starts_cool_and_says_how_hot_it_was(board: Path, tmp_path: Path) -> None:
    plan = small_plan(policies=("f16",), cooling=Cooling(below_celsius=40.0, at_most_seconds=0.2))
    write(board, sys__devices__system__cpu__cpu0__online=1)
    host = survey(plan, fake_programs(tmp_path), root=board)
    record = run_cell(plan, tasks(plan)[0], host)
    assert record.ending is Ending.DONE, record.detail
    assert record.cooled_seconds == pytest.approx(0.2)
    assert record.before is not None and record.before.celsius == {"soc-thermal": 45.0}
    assert record.watched is not None and record.watched.throttled is False
