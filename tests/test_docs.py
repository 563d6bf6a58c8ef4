"""What the pages say can be typed: every command, option and link in README and docs exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from kvquant.cli.main import kvquant
from write_cli_reference import REFERENCE

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = re.compile(r"^ *(?:\$ )?(?:\.venv/bin/)?(kvquant .*|make [a-z0-9-]+.*)$")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def typed_lines(text: str) -> list[str]:
    """Return the command lines in a page's code blocks, continued lines joined."""
    lines = []
    inside = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif (inside or line.startswith("    ")) and (match := COMMAND.match(line)):
            lines.append(match[1])
    return lines


def complaint(line: str) -> str | None:
    """Return why a typed line cannot run, or None. Values are not judged, only commands and option names."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return None if words[1] in targets else f"no make target {words[1]}"
    command: click.Command = kvquant
    words = words[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        if child is None:
            return f"no command {words[0]}"
        command, words = child, words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return None
    known = {"--help", "-h", "--version"}
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    for word in words:
        if word in {";", "|", ">", "&&"}:
            break
        if word.startswith("--") and word.partition("=")[0] not in known:
            return f"no option {word}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_typed_lines_exist(page: Path) -> None:
    complaints = {line: why for line in typed_lines(page.read_text()) if (why := complaint(line))}
    assert complaints == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_check_sees_a_wrong_line() -> None:
    page = "```\n$ kvquant a \\\n --b\n```\nkvquant prose\n    make demo"
    assert typed_lines(page) == ["kvquant a   --b", "make demo"]
    assert complaint("kvquant no-such") == "no command no-such"
    assert complaint("kvquant memory --no-such 1") == "no option --no-such"
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
    cells = [re.split(r"(?<!\\)\|", row)[1:7] for row in (table[0], *table[2:])]
    assert len(cells) > 6
    shown = (ROOT / "docs/evaluation.md").read_text()
    for row in cells:
        assert f"|{'|'.join(row)}|\n" in shown
