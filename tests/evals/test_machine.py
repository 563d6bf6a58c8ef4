"""What is read of a machine, from a tree that stands in for /."""

from __future__ import annotations

from pathlib import Path

from kvquant.evals.machine import Clock, Core, Zone, core_list, read_machine

MIB = 2**20


def write(root: Path, **files: str) -> None:
    """Write files whose names have __ for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def board(root: Path, governor: str = "performance", temperature: int = 45000) -> Path:
    """An RK3588: four small and four large cores."""
    for core in range(8):
        khz = 1800000 if core < 4 else 2400000
        policy = f"sys__devices__system__cpu__cpu{core}__cpufreq__"
        write(root, **{f"{policy}cpuinfo_max_freq": str(khz), f"{policy}scaling_governor": governor})
    zone = "sys__class__thermal__thermal_zone0__"
    write(root, **{f"{zone}type": "soc-thermal", f"{zone}temp": str(temperature)})
    write(root, **{f"{zone}trip_point_0_type": "passive", f"{zone}trip_point_0_temp": "75000"})
    write(root, **{f"{zone}trip_point_1_type": "critical", f"{zone}trip_point_1_temp": "115000"})
    dmc = "sys__class__devfreq__dmc__"
    write(
        root, **{f"{dmc}governor": governor, f"{dmc}cur_freq": "2112000000", f"{dmc}max_freq": "2112000000"}
    )
    memory = f"MemTotal:       {16 * 1024 * 1024} kB\nMemAvailable:   {8 * 1024 * 1024} kB"
    write(root, proc__meminfo=memory)
    path = root / "proc/device-tree/model"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"Radxa ROCK 5B Plus\0")
    path.with_name("compatible").write_bytes(b"radxa,rock-5b-plus\0rockchip,rk3588\0")
    return root


def test_a_board(tmp_path: Path) -> None:
    machine = read_machine(board(tmp_path))
    assert (machine.board, machine.soc) == ("Radxa ROCK 5B Plus", "rk3588")
    assert machine.cores[3:5] == (Core(3, 1800000, "performance"), Core(4, 2400000, "performance"))
    assert machine.zones == (Zone("soc-thermal", 45.0, 75.0),)
    assert machine.clocks == (Clock("dmc", "performance", 2112000000, 2112000000),)
    assert (machine.memory_n_bytes, machine.available_n_bytes) == (16384 * MIB, 8192 * MIB)


def test_what_is_missing_is_none(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert (machine.board, machine.soc) == (None, None)
    assert (machine.cores, machine.zones, machine.clocks) == ((), (), ())
    assert machine.memory_n_bytes is None and machine.available_n_bytes is None
    (tmp_path / "sys/devices/system/cpu/cpu0").mkdir(parents=True)
    write(tmp_path, sys__class__thermal__thermal_zone0__temp="hot", proc__meminfo="MemTotal: many kB")
    machine = read_machine(tmp_path)
    assert machine.cores == (Core(0, None, None),)
    assert machine.zones == () and machine.memory_n_bytes is None


def test_cores_that_are_off_are_left_out(tmp_path: Path) -> None:
    root = board(tmp_path)
    write(root, sys__devices__system__cpu__cpu5__online="0", sys__devices__system__cpu__cpu6__online="1")
    assert [core.index for core in read_machine(root).cores] == [0, 1, 2, 3, 4, 6, 7]


def test_this_machine_can_be_read() -> None:
    machine = read_machine()
    assert machine.cores and machine.memory_n_bytes


def test_core_lists() -> None:
    assert core_list([4, 5, 6, 7]) == "4-7"
    assert core_list([7, 0, 2, 3]) == "0,2-3,7"
    assert core_list([]) == ""
