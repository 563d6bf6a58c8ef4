"""Cores by number and by name, on boards written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvquant.errors import UsageError
from kvquant.sweep.cores import named_cores, parse_cores, resolve_cores

RK3588 = {"all": "0-7", "big": "4-7", "little": "0-3"}


def board(root: Path, *, parts: dict[int, str] | None = None, capacity: dict[int, int] | None = None) -> Path:
    """A machine of eight cores below ``root``."""
    cpu = root / "sys/devices/system/cpu"
    cpu.mkdir(parents=True)
    (cpu / "online").write_text("0-7\n")
    (root / "proc").mkdir()
    lines = [f"processor\t: {i}\nCPU part\t: {(parts or {}).get(i, '0xd05')}\n" for i in range(8)]
    (root / "proc/cpuinfo").write_text("\n".join(lines))
    for i, value in (capacity or {}).items():
        (cpu / f"cpu{i}").mkdir()
        (cpu / f"cpu{i}/cpu_capacity").write_text(f"{value}\n")
    return root


def test_big_cores_by_their_part_number(tmp_path: Path) -> None:
    assert named_cores(board(tmp_path, parts=dict.fromkeys(range(4, 8), "0xd0b"))) == RK3588


def test_big_cores_by_their_capacity(tmp_path: Path) -> None:
    # The two pairs of big cores differ a little, as they do on the chip.
    capacity = dict.fromkeys(range(4), 530) | {4: 1007, 5: 1007, 6: 1024, 7: 1024}
    assert named_cores(board(tmp_path, capacity=capacity)) == RK3588


def test_one_kind_of_core_has_no_names(tmp_path: Path) -> None:
    assert named_cores(board(tmp_path, capacity=dict.fromkeys(range(8), 1024))) == {"all": "0-7"}


@pytest.mark.parametrize(
    ("text", "cores"), [("all", None), ("big", "4-7"), ("little", "0-3"), ("0+2-3", "0,2-3"), ("7,6", "6-7")]
)
def test_what_a_plan_means_on_a_board(text: str, cores: str | None) -> None:
    assert resolve_cores(text, RK3588) == cores


@pytest.mark.parametrize(
    ("text", "known", "says"),
    [
        ("6-9", RK3588, "this machine has no core 8-9; it has 0-7"),
        ("big", {"all": "0-1"}, "one kind of core; write numbers among 0-1, or all"),
        ("big", {"all": "0"}, "one kind of core"),
    ],
)
def test_cores_the_machine_lacks(text: str, known: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve_cores(text, known)


@pytest.mark.parametrize("text", ["", "a", "7-4", "4-", "-4", "1..3", "99999", "²"])
def test_what_is_no_list_of_cores(text: str) -> None:
    with pytest.raises(UsageError, match="write numbers such as 4-7"):
        parse_cores(text)
