"""Records name no folder of the machine they were made on, whichever command made them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kvquant
from kvquant.results.provenance import command_line

COMMANDS = sorted((Path(kvquant.__file__).parent / "cli").glob("*.py"))


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("/home/me/models/x.gguf", "x.gguf"),
        ("/home/me/out/", "out"),
        ("--llama-bin=/opt/llama/bin", "--llama-bin=bin"),
        ("@/home/me/policy.txt", "@policy.txt"),
        ("--policy=@/home/me/policy.txt", "--policy=@policy.txt"),
        ("runs/f16", "runs/f16"),
        ("*:k=q8_0/v=q4_0", "*:k=q8_0/v=q4_0"),
        ("hf:owner/name/file.gguf", "hf:owner/name/file.gguf"),
        ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
    ],
)
def test_folders_are_left_out(word: str, kept: str) -> None:
    assert command_line("kvquant", ["sweep", word]) == ["kvquant", "sweep", kept]


def raw_uses(source: str) -> list[int]:
    """Return the lines on which ``sys.argv`` is read other than for `command_line`."""
    nodes = list(ast.walk(ast.parse(source)))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    kept = {
        id(inner) for call in calls if ast.unparse(call.func) == "command_line" for inner in ast.walk(call)
    }
    return [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv" and id(node) not in kept
    ]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_record_themselves_without_folders(path: Path) -> None:
    assert raw_uses(path.read_text()) == []


def test_the_check_sees_what_is_recorded_as_typed() -> None:
    assert raw_uses('argv = ["kvquant", *sys.argv[1:]]') == [1]
    assert raw_uses('argv = command_line("kvquant", sys.argv[1:])') == []
