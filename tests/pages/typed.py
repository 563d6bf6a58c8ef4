"""The command lines that the pages tell a reader to type."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks/README.md",
        ROOT / "eval/results/README.md",
    ]
)
COMMAND = re.compile(
    r" *(?:\$ )?(?:\.venv/bin/)?"
    r"((?:kvquant|make|python|git clone|curl|dask|echo|tools/\w+\.\w+|tests/\w+/\w+\.py) .*"
    r"|eval \".*|build/\S+ --.*)"
)


def page_name(page: Path) -> str:
    """How tests call a page: its path in the clone."""
    return page.relative_to(ROOT).as_posix()


def typed_lines(text: str) -> list[str]:
    """Return the command lines in a page's code blocks, lines continued by a backslash joined.

    Raises AssertionError where options follow on the next line without a backslash: a shell would run the
    first line alone.
    """
    lines: list[str] = []
    inside = is_typed = False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside or line.startswith("    "):
            match = COMMAND.fullmatch(line)
            assert match or not is_typed or not re.match(r" +--?[a-z]", line), f"no backslash before {line!r}"
            if match:
                lines.append(match[1])
            is_typed = match is not None
    return lines


def python_blocks(text: str) -> list[str]:
    """Return the Python of a page's code blocks."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
