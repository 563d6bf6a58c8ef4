"""The ends of the logs that a validation names: why something failed is mostly in their last lines."""

from __future__ import annotations

from pathlib import Path

from kvquant.report.validation_document import Document, each

N_LINES = 20
_N_BYTES = 8192


def read_excerpts(document: Document, folder: Path) -> dict[str, str]:
    """Return the last lines of every log that a failure names, by its name in the document.

    A log that is missing or unreadable is left out, and so is a name that leads out of ``folder``.
    """
    names = {row["log"] for _, row in each(document, "failures") if row["log"] is not None}
    found = {name: _end_of(folder, name) for name in sorted(names)}
    return {name: text for name, text in found.items() if text is not None}


def _end_of(folder: Path, name: str) -> str | None:
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _N_BYTES))
            text = file.read().decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
    return "\n".join(text.splitlines()[-N_LINES:])
