"""What people expect of any command line: completion, --version, plain pipes, widths, logs with progress."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from command_line import run_kvquant
from kvquant.cli import progress
from kvquant.cli.main import kvquant
from kvquant.cli.progress import StatusLine, counted
from kvquant.llama.patching.recipe import load_series
from kvquant.llama.pin import load_pin
from kvquant.shipped import VERSION, patches_folder

COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


def on_terminal(program: str, **environment: str) -> bytes:
    """What a Python program writes to a terminal, both streams."""
    ours, terminal = pty.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as shown,
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm", **environment},
        ) as running,
    ):
        os.close(terminal)
        found = b""
        with contextlib.suppress(OSError):  # how a terminal whose last writer has ended is read on Linux
            while part := shown.read(2**16):
                found += part
    assert running.returncode == 0, found
    return found


# ---- the version ----


def test_version_names_package_patches_and_pin() -> None:
    lines = run_kvquant("--version").stdout.splitlines()
    series, pin = load_series(patches_folder()), load_pin(patches_folder())
    assert lines[0] == f"kvquant {VERSION}"
    assert lines[1] == f"patch series {series.digest[:12]}, {len(series.patches)} patches"
    assert lines[2].startswith(f"llama.cpp {pin.tag};") and pin.range.oldest in lines[2]
    assert len(lines) == 3


# ---- completion ----


def completed(typed: str) -> list[str]:
    """What bash is given to choose from behind ``typed``, without the kind of each."""
    answer = run_kvquant(
        _KVQUANT_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(typed.split(" ")) - 1)
    )
    return [line.partition(",")[2] for line in answer.stdout.splitlines()]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("kvquant an", ["analyze"]),
        ("kvquant memory --cache-type", ["--cache-type-k", "--cache-type-v"]),
        ("kvquant memory -ct", ["-ctk", "-ctv"]),
        ("kvquant memory --model smol", ["smollm2-135m"]),
        ("kvquant divergence --text prose:", ["prose:"]),
        ("kvquant analyze --policy k8", ["k8v4"]),
        ("kvquant memory --shape llama-3.1-8", ["llama-3.1-8b"]),
        ("kvquant llama bu", ["build"]),
        ("kvquant completion z", ["zsh"]),
    ],
)
def test_a_shell_completes_commands_options_and_names(typed: str, expected: list[str]) -> None:
    assert completed(typed) == expected


@pytest.mark.parametrize(
    ("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete")]
)
def test_the_script_for_a_shell(shell: str, word: str) -> None:
    result = run_kvquant("completion", shell)
    assert result.returncode == 0 and result.stderr == ""
    assert word in result.stdout and "_KVQUANT_COMPLETE" in result.stdout


def test_bash_takes_the_script() -> None:
    script = 'eval "$1"; complete -p kvquant'
    found = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", run_kvquant("completion", "bash").stdout],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_kvquant_completion kvquant" in found.stdout


# ---- upstream's spellings ----


@pytest.mark.parametrize(
    "typed",
    [
        "-c 4096 -ctk q8_0 -ctv q4_0 -np 2 -kvu -b 1024 -ub 256",
        "-c4096 -ctk=q8_0 -ctv=q4_0 -np=2 -kvu -b1024 -ub=256",
        "--ctx-size 4096 --cache-type-k q8_0 --cache-type-v q4_0 --parallel 2 --kv-unified "
        "--batch-size 1024 --ubatch-size 256",
    ],
)
def test_options_as_llama_server_spells_them(typed: str) -> None:
    ours = "--ctx 4k --default k=q8_0/v=q4_0 --parallel 2 --kv-unified --batch 1024 --ubatch 256"
    memory = ["memory", "--shape", "gemma-3-4b", "--json"]
    expected = CliRunner().invoke(kvquant, [*memory, *ours.split()])
    assert expected.exit_code == 0, expected.output
    assert CliRunner().invoke(kvquant, [*memory, *typed.split()]).stdout == expected.stdout


# ---- what is written where ----


def test_pipes_get_no_escape_codes() -> None:
    for arguments in (["formats"], ["analyze", "--profile", "typical", "--tokens", "32", "--heads", "1"]):
        result = run_kvquant(*arguments, FORCE_COLOR="1")
        assert result.returncode == 0
        assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}], ids=["NO_COLOR", "colours allowed"])
def test_a_terminal_gets_no_colours_either(environment: dict[str, str]) -> None:
    arguments = ["analyze", "--profile", "typical", "--tokens", "32", "--heads", "1"]
    program = f"from kvquant.cli.main import kvquant; kvquant({arguments}, standalone_mode=False)"
    shown = on_terminal(program, **environment)
    assert b"Verdict:" in shown and b"layers: 32 of 32" in shown
    assert not COLOUR.search(shown)


def test_help_is_as_wide_as_columns_says() -> None:
    wide, narrow = (run_kvquant("memory", "--help", COLUMNS=str(n)).stdout for n in (120, 60))
    for shown, width in ((narrow, 60), (wide, 100)):
        options = shown.partition("Options:")[2].splitlines()
        assert width - 10 < max(map(len, options)) <= width


# ---- progress ----

SHOW = """
from kvquant.cli.progress import StatusLine
status = StatusLine()
status.show("one"); status.show("x" * 200); status.say("stays"); status.show("two"); status.clear()
"""


def test_a_terminal_has_one_line_that_never_wraps() -> None:
    shown = on_terminal(SHOW, COLUMNS="40").decode()
    erase = "\r\x1b[K"
    assert shown == f"{erase}one{erase}{'x' * 39}{erase}kvquant: stays\r\n{erase}two{erase}"


def test_a_dumb_terminal_is_a_log() -> None:
    assert on_terminal(SHOW, TERM="dumb") == b"kvquant: stays\r\n"


def test_a_log_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with counted("chunks") as count:
        for done in range(1, 201):
            now += 1
            count(done, 200)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "kvquant: chunks: 60 of 200, 0:02:20 left",
        "kvquant: chunks: 120 of 200, 0:01:20 left",
        "kvquant: chunks: 180 of 200, 0:00:20 left",
    ]


def test_short_work_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    status = StatusLine()
    status.show("quick")
    status.clear()
    assert capsys.readouterr().err == ""
