"""Write docs/cli.md from the help of every command; tests/test_docs.py compares the file with it.

python tools/write_cli_reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from kvquant.cli.main import WIDTH, kvquant
from kvquant.files import write_atomic

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
HEAD = """# Command reference

Written by `tools/write_cli_reference.py` from the commands' own help. Exit codes: 0 done, 1 failed, 2 usage,
3 the check says no, 130 interrupted. Data goes to stdout, everything else to stderr.
"""


def commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and, for a group, everything below it, in the order its help lists them."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None, child_name
            yield from commands(f"{name} {child_name}", child)


def help_text(name: str, command: click.Command) -> str:
    """Return a command's help as the user sees it: reached through the group, with the group's -h."""
    settings = {**kvquant.context_settings, **command.context_settings}
    context = click.Context(command, info_name=name, terminal_width=WIDTH, **settings)
    return command.get_help(context).rstrip()


def reference() -> str:
    """Return the whole page."""
    sections = (
        f"\n## {name}\n\n```text\n{help_text(name, command)}\n```\n"
        for name, command in commands("kvquant", kvquant)
    )
    return HEAD + "".join(sections)


if __name__ == "__main__":
    write_atomic(REFERENCE, reference())
