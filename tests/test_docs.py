"""What the pages say can be typed: every command, option, fixed value and link of every page exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kvquant.cli.main import kvquant
from kvquant.cli.passing_on import PassingOn
from kvquant.errors import KVQuantError
from pages.typed import PAGES, ROOT, page_name, typed_lines
from write_cli_reference import REFERENCE

PURE = {"policy", "budget", "size", "tokens"}
"""Types of values that are read without a look at any file or network; the others are taken as they are."""
PLACEHOLDER = re.compile(r"[A-Z]+")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def complaint(line: str) -> str | None:
    """Return why a typed line cannot run, or None: parsed by click, with nothing looked up or run."""
    words = shlex.split(line, comments=True)
    starts = [0, *(index + 1 for index, word in enumerate(words) if word == "|")]
    start = next((index for index in starts if words[index] == "kvquant"), 0)
    ends = [words.index(word, start) for word in (";", "|", ">", "&&") if word in words[start:]]
    words = words[start : min(ends, default=len(words))]
    if words[0] == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if words[1] in targets else f"no make target {words[1]}"
    if words[0] == "python" or re.match("(tools|tests)/", words[0]):
        return _program_complaint(words[1:] if words[0] == "python" else words)
    if words[0] != "kvquant":
        return None
    command: click.Command = kvquant
    words = words[1:]
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(context, words[0])
        if child is None and command.name == "policy":
            child = command.get_command(context, words.insert(0, "show") or "show")
        if child is None:
            return f"no command {words[0]}"
        command, words = child, words[1:]
        context = click.Context(command, context, **command.context_settings)
    if {"--help", "-h", "--version"} & set(words) or isinstance(command, PassingOn):
        return None
    try:
        given, extra, _ = command.make_parser(context).parse_args(words)
    except click.UsageError as error:
        return error.format_message()
    if extra and not isinstance(command, click.Group):
        return f"what is {' '.join(extra)}?"
    return next(
        filter(None, (_value_complaint(one, given.get(one.name or "")) for one in command.params)), None
    )


def _program_complaint(words: list[str]) -> str | None:
    """Return what is wrong with a program of the clone and its options, as far as its text says."""
    program = ROOT / words[0]
    if not program.is_file():
        return f"no program {words[0]}"
    text = program.read_text()
    unknown = [word for word in words if re.fullmatch(r"--[a-z-]+", word) and word not in text]
    return f"{words[0]} has no {unknown[0]}" if unknown else None


def _value_complaint(parameter: click.Parameter, value: object) -> str | None:
    """Return what is wrong with the value of an option or argument, as far as its text says."""
    if value is None or value == ():
        return f"{parameter.opts[0]} is needed" if parameter.required else None
    if isinstance(parameter.type, click.Choice) or parameter.type.name in PURE:
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and not text.startswith("@") and not PLACEHOLDER.fullmatch(text):
                try:
                    parameter.type.convert(text, parameter, None)
                except (click.UsageError, KVQuantError) as error:
                    return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_typed_lines_exist(page: Path) -> None:
    complaints = {line: why for line in typed_lines(page.read_text()) if (why := complaint(line))}
    assert complaints == {}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_check_sees_a_wrong_line() -> None:
    page = "```\n$ kvquant a \\\n --b\n```\nkvquant prose\n    make demo"
    assert typed_lines(page) == ["kvquant a   --b", "make demo"]
    with pytest.raises(AssertionError, match="no backslash"):
        typed_lines("    kvquant a\n        --b")
    assert complaint("kvquant no-such") == "no command no-such"
    assert complaint("kvquant memory --no-such 1") == "No such option '--no-such'."
    assert complaint("kvquant divergence --policy q8_0 --text prose") == "-m is needed"
    assert complaint("kvquant divergence -m a --text b --policy q9") is not None
    assert complaint("kvquant policy export k8v4 --to nobody") is not None
    assert complaint("kvquant memory --ctx many") is not None
    assert complaint("kvquant formats what") == "what is what?"
    assert complaint("python tools/no_such.py") == "no program tools/no_such.py"
    assert complaint("python tools/build_libggml.py --no-such") == "tools/build_libggml.py has no --no-such"
    assert complaint("tools/build_rk.sh --jobs 4") is None
    assert complaint("echo a | kvquant policy import - --from nobody") is not None
    assert complaint("make no-such") == "no make target no-such"
    assert complaint("kvquant memory --shape llama-3.1-8b --ctx 1 | head --odd") is None


def test_the_command_reference_is_current() -> None:
    # In a process of its own: click keeps a command's help option from the first time it is asked for.
    program = "from write_cli_reference import reference; print(reference(), end='')"
    made = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert made.stdout == REFERENCE.read_text(), "run: python tools/write_cli_reference.py"


def test_evaluation_shows_the_verdicts_of_the_committed_validation() -> None:
    page = (ROOT / "eval/results/standard/report.md").read_text()
    table = page[page.index("| policy |") :].split("\n\n")[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", row)[1:8] for row in (table[0], *table[2:])]
    assert len(cells) > 6
    shown = (ROOT / "docs/evaluation.md").read_text()
    for row in cells:
        assert f"|{'|'.join(row)}|\n" in shown


def test_every_patch_has_a_pull_request_text() -> None:
    patches = (ROOT / "patches/llama.cpp/series").read_text().split()
    for patch in (name for name in patches if re.fullmatch(r"\d{4}-[a-z-]+", name)):
        text = (ROOT / f"docs/upstream/{patch}.md").read_text()
        heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert heads == ["Purpose", "Design", "Tests", "Benchmarks", "Limits"], patch
