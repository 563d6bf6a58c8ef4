"""The command line as a process: exit codes, where output goes, and that every command documents itself."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from command_line import run_kvquant
from kvquant.cli import main as cli
from kvquant.errors import CheckFailed, KVQuantError, UsageError
from write_cli_reference import commands, help_text


@pytest.mark.parametrize(
    ("name", "command"),
    list(commands("kvquant", cli.kvquant)),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_command_has_help_with_an_example(name: str, command: click.Command) -> None:
    text = help_text(name, command)
    assert "Example" in text, f"{name} --help shows no example"
    assert name in text.partition("Example")[2]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"


def test_version_and_help() -> None:
    assert run_kvquant("--version").stdout.startswith("kvquant ")
    assert "analyze" in run_kvquant("--help").stdout


@pytest.mark.parametrize("arguments", [["no-such-command"], ["formats", "--no-such-option"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = run_kvquant(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KVQuantError("a"), 1), (UsageError("a"), 2), (CheckFailed("a"), 3), (KeyboardInterrupt(), 130)],
)
def test_errors_become_exit_codes(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(cli.kvquant, "main", fail)
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_a_closed_pipe_is_not_a_traceback() -> None:
    program = f"{sys.executable} -m kvquant formats | true"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.stderr == ""
