"""Options that several commands share mean and are spelled the same in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from kvquant.cli.main import kvquant
from kvquant.cli.options import default_types
from kvquant.errors import KVQuantError, PolicyError, UsageError
from write_cli_reference import commands

ALL = dict(commands("kvquant", kvquant))
SHAPE = ("--shape", "llama-3.1-8b")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(kvquant, arguments)


def document(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def failure(*arguments: str) -> KVQuantError:
    error = run(*arguments).exception
    assert isinstance(error, KVQuantError), error
    return error


def spellings(command: click.Command) -> list[set[str]]:
    return [set(option.opts) for option in command.params if isinstance(option, click.Option)]


@pytest.mark.parametrize(
    "names",
    [
        ("--policy", "--layers", "--kv-layers"),
        ("-c", "--ctx", "--ctx-size"),
        ("-t", "--threads"),
        ("-ctk", "--cache-type-k"),
        ("-ctv", "--cache-type-v"),
    ],
    ids=lambda names: names[0],
)
def test_an_option_has_the_same_spellings_in_every_command(names: tuple[str, ...]) -> None:
    together = set(names)
    found = {name: [opts for opts in spellings(command) if opts & together] for name, command in ALL.items()}
    taking = {name: opts for name, opts in found.items() if opts}
    assert len(taking) > 1
    assert {name: opts for name, opts in taking.items() if opts != [together]} == {}


def test_a_model_file_has_a_short_spelling_everywhere() -> None:
    for name, command in ALL.items():
        for option in command.params:
            if "--model" in option.opts and name != "kvquant eval":  # there it is a name that a server knows
                assert option.opts == ["-m", "--model"], name


@pytest.mark.parametrize("option", ["--policy", "--layers", "--kv-layers"])
def test_every_spelling_of_the_policy_is_read(option: str) -> None:
    found = document("memory", *SHAPE, "-c", "1k", option, "first2:q8_0,last2:q8_0,rest:q4_0")
    assert found["policy"] == "0-1:q8_0,last2:q8_0,rest:q4_0"
    assert [layer["k"]["type"] for layer in found["layers"]] == ["q8_0"] * 2 + ["q4_0"] * 28 + ["q8_0"] * 2


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ([], ("f16", "f16")),
        (["-ctk", "q8_0"], ("q8_0", "f16")),
        (["-ctv", "Q4_0"], ("f16", "q4_0")),
        (["--cache-type-k", "q8_0", "--cache-type-v", "q5_0"], ("q8_0", "q5_0")),
        (["--default", "q4_0"], ("q4_0", "q4_0")),
        (["--default", "k=q8_0", "-ctv", "q5_1"], ("q8_0", "q5_1")),
    ],
)
def test_defaults(options: list[str], types: tuple[str, str]) -> None:
    found = document("memory", *SHAPE, "--ctx", "256", *options)
    assert (found["default"]["k"], found["default"]["v"]) == types
    assert (found["layers"][0]["k"]["type"], found["layers"][0]["v"]["type"]) == types


def test_defaults_that_contradict_each_other_or_name_no_type() -> None:
    with pytest.raises(UsageError, match="-ctk q8_0 and --default q4_0 both give a type of K"):
        default_types("q4_0", "q8_0", None)
    for given in [("q9", None, None), ("q8_0,1:f16", None, None), (None, "k=q8_0", None), (None, None, "v4")]:
        with pytest.raises(PolicyError, match="known: f32"):
            default_types(*given)


def test_a_policy_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.txt"
    file.write_bytes(
        "\ufeff# the ends in 8 bits\r\nfirst2:q8_0, # –\r\nlast2:q8_0,\r\nrest:q4_0\r\n".encode()
    )
    assert run("policy", f"@{file}").stdout == "0-1:q8_0,last2:q8_0,rest:q4_0\n"
    found = document("memory", *SHAPE, "--ctx", "256", "--policy", f"@{file}")
    assert found["policy"] == "0-1:q8_0,last2:q8_0,rest:q4_0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "policy.txt: the file cannot be read: No such file or directory"),
        (b"0:q8_0,\n1:q9", "policy.txt, line 2, column 3: unknown type 'q9'"),
        (b"0:q8_0\xff", "byte 6 is not UTF-8"),
        (b"#" * ((1 << 20) + 1), "too large for a policy"),
        (b"", "policy.txt, column 1: there is no rule"),
    ],
)
def test_a_policy_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "policy.txt"
    if content is not None:
        file.write_bytes(content)
    error = failure("policy", f"@{file}")
    assert error.exit_code == 2
    assert message in str(error)


@pytest.mark.parametrize(
    ("ctx", "n_ctx"), [("32k", 32768), ("32K", 32768), ("1M", 1 << 20), ("0.5k", 512), ("4096", 4096)]
)
def test_a_context_as_people_write_it(ctx: str, n_ctx: int) -> None:
    assert document("memory", *SHAPE, "-c", ctx)["n_ctx"] == n_ctx


@pytest.mark.parametrize("ctx", ["32kb", "-1", "4096.5", "32,768", "many", ""])
def test_a_context_that_is_none(ctx: str) -> None:
    error = failure("memory", *SHAPE, "--ctx", ctx)
    assert error.exit_code == 2 and str(error).startswith("--ctx: ") and "\n" not in str(error)


def test_budgets_in_both_commands() -> None:
    """A share is one of the cache in f16: at --ctx, else at the training context."""
    whole = document("memory", *SHAPE, "--ctx", "8k", "--policy", "f16")["total"]["kv_bytes"]
    found = document("memory", *SHAPE, "--ctx", "8k", "--budget", "0.25x", "--policy", "f16")
    assert (found["n_ctx"], found["budget_bytes"]) == (2048, whole // 4)
    assert document("memory", *SHAPE, "--budget", "4G")["budget_bytes"] == 4 << 30
    assert document("memory", *SHAPE, "--budget", "50%", "--policy", "f16")["n_ctx"] == 65536
    states = document("memory", "--shape", "qwen3.5-2b", "--budget", "1.0x", "--ctx", "4k", "--policy", "f16")
    assert states["n_ctx"] == 4096, "recurrent states come on top of a share, as in search"
    for command in ("memory", "search"):
        for budget in ("0.35", "1.5", ".35"):
            error = failure(command, *SHAPE, "--budget", budget)
            assert error.exit_code == 2
            assert f"{float(budget):g}x is a share of f16" in str(error)
        assert "write 1.5GiB" in str(failure(command, *SHAPE, "--budget", "1,5GiB"))
        assert "leaves nothing" in str(failure(command, *SHAPE, "--budget", "0"))
