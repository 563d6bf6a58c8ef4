"""tools/build_rk.sh and tools/serve_rk.sh without a build: arguments, dry run, which cores are taken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvquant.shipped import checkout_root

ROOT = checkout_root() or Path()
BUILD, SERVE = ROOT / "tools/build_rk.sh", ROOT / "tools/serve_rk.sh"

BIG, LITTLE = "0xd0b", "0xd05"


def run(*argv: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(arg) for arg in argv]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_help_names_every_option() -> None:
    done = run(BUILD, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--source", "--jobs", "--prefix", "--cmake-arg", "--install-deps", "--dry-run", "--help"):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--frob"], "unknown argument '--frob'"),
        (["extra"], "unknown argument 'extra'"),
        (["--source"], "--source needs a value"),
        (["--prefix", ""], "--prefix needs a folder"),
    ],
)
def test_bad_arguments_are_usage_errors(argv: list[str], message: str) -> None:
    done = run(BUILD, *argv)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_a_dry_run_prints_the_commands_and_does_nothing(tmp_path: Path) -> None:
    prefix = tmp_path / "out dir"
    done = run(
        BUILD, "--dry-run", "--prefix", prefix, "--jobs", "3", "--cmake-arg", "-DX=a b", "--source", "/src"
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert all(line.startswith("+ ") for line in lines)
    build = next(line for line in lines if " llama build --target rk3588 " in line)
    for part in ("--jobs 3", r"--cmake-arg -DX=a\ b", "--source /src", "--program llama-server"):
        assert part in build
    assert sum("strip -o " in line for line in lines) == 4
    assert not prefix.exists()


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="on the board no cross compiler is needed")
def test_missing_packages_are_named_and_not_installed(tmp_path: Path) -> None:
    """A PATH with the shell's own tools only: no compiler, no cmake, no qemu."""
    for name in ("bash", "dirname", "uname", "id", "cat", "env"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = run(tmp_path / "bash", BUILD, env={"PATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "missing Debian packages:" in done.stderr
    assert "g++-aarch64-linux-gnu qemu-user-static; run: " in done.stderr
    dry = run(tmp_path / "bash", BUILD, "--dry-run", "--install-deps", env={"PATH": str(tmp_path)})
    assert "apt-get install --yes --no-install-recommends" in dry.stdout


def test_the_scripts_are_clean() -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("needs shellcheck")
    assert run(checker, BUILD, SERVE).stdout == ""


def board(root: Path, parts: list[str], capacities: list[int]) -> None:
    """A root folder with the /proc and /sys files of a machine with these CPUs."""
    text = "".join(f"processor\t: {cpu}\nCPU part\t: {part}\n\n" for cpu, part in enumerate(parts))
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(text)
    for cpu, capacity in enumerate(capacities):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")


@pytest.mark.parametrize(
    ("parts", "capacities", "taskset"),
    [
        ([LITTLE] * 4 + [BIG] * 4, [], "-c 4,5,6,7"),
        ([BIG] * 2 + [LITTLE] * 2, [1, 1, 9, 9], "-c 0,1"),
        ([], [414] * 4 + [1024] * 4, "-c 4,5,6,7"),
        ([], [], None),
    ],
    ids=["rk3588", "other order", "by capacity", "unknown"],
)
def test_the_fast_cores_are_taken(
    tmp_path: Path, parts: list[str], capacities: list[int], taskset: str | None
) -> None:
    board(tmp_path / "root", parts, capacities)
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(SERVE, folder / "kv-serve")
    for name, text in [
        ("llama-server", 'echo "server $*"'),
        ("taskset", 'echo "taskset $1 $2"; shift 2; exec "$@"'),
    ]:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = {"KV_SERVE_ROOT": str(tmp_path / "root"), "PATH": f"{folder}:{os.environ['PATH']}"}
    done = run(folder / "kv-serve", "--model", "m.gguf", "--kv-layers", "*:q8_0", env=env)
    arguments = "--model m.gguf --kv-layers *:q8_0"
    if taskset is None:
        assert done.stdout.splitlines() == [f"server --host 127.0.0.1 {arguments}"]
        assert "cannot tell fast cores" in done.stderr
    else:
        threads = taskset.count(",") + 1
        assert done.stdout.splitlines() == [
            f"taskset {taskset}",
            f"server --host 127.0.0.1 --threads {threads} {arguments}",
        ]
