"""The patch series on disk: ``series`` names the patches, each folder has ``recipe.toml``, new ``files/``.

The format is described in patches/llama.cpp/README.md. Everything read here is checked before any tree is
looked at.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from kvquant.errors import PatchError, UsageError

Action = Literal["insert-before", "insert-after", "replace"]
ACTIONS: tuple[Action, ...] = ("insert-before", "insert-after", "replace")

#: The folder in a patched tree that belongs to kvquant; no patch may touch it.
STATE_FOLDER = ".kvquant"

_PATCH_NAME = re.compile(r"\d{4}-[a-z0-9]+(-[a-z0-9]+)*")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RECIPE_KEYS = frozenset({"purpose", "programs", "edit"})
_ANCHOR_KEYS = frozenset({"find", "count", "action", "text", "after"})
_EDIT_KEYS = _ANCHOR_KEYS | {"id", "why", "file", "when", "variant"}
_CONDITION_KEYS = frozenset({"file", "has", "lacks"})


@dataclass(frozen=True)
class Condition:
    """When an edit is wanted: the unpatched tree has ``file``, with ``has`` in it and without ``lacks``."""

    file: str
    has: str | None
    lacks: str | None


@dataclass(frozen=True)
class Anchor:
    """One way to make an edit: ``find`` occurs exactly ``count`` times behind the only occurrence of
    ``after``.
    """

    find: str
    count: int
    action: Action
    text: str
    after: str | None


@dataclass(frozen=True)
class Edit:
    """One change of one upstream file. Exactly one of its ``anchors`` must match; ``why`` is its purpose."""

    id: str
    why: str
    file: str
    anchors: tuple[Anchor, ...]
    when: Condition | None


@dataclass(frozen=True)
class NewFile:
    """A file the patch adds; ``path`` is relative to the tree, with forward slashes."""

    path: str
    content: bytes


@dataclass(frozen=True)
class Patch:
    """One patch of the series; ``programs`` are the cmake targets it adds to the tree."""

    name: str
    purpose: str
    programs: tuple[str, ...]
    new_files: tuple[NewFile, ...]
    edits: tuple[Edit, ...]
    digest: str


@dataclass(frozen=True)
class Series:
    """All patches in order; ``digest`` covers every byte of recipes and new files."""

    patches: tuple[Patch, ...]
    digest: str

    @property
    def programs(self) -> tuple[str, ...]:
        return tuple(program for patch in self.patches for program in patch.programs)

    def only(self, names: Collection[str]) -> Series:
        """The named patches as a series of their own, in the same order.

        Raises UsageError for a name that is not in the series.
        """
        known = [patch.name for patch in self.patches]
        for name in names:
            if name not in known:
                raise UsageError(f"the series has no patch {name!r}; known: {', '.join(known)}")
        return _series_of(patch for patch in self.patches if patch.name in names)


def load_series(folder: Path) -> Series:
    """Read and check the series in ``folder``.

    Raises PatchError when a named patch has no folder, a folder is not named, or a recipe breaks the format.
    """
    try:
        lines = (folder / "series").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PatchError(
            f"cannot read {folder / 'series'}: {error.strerror}; name a folder with a series file"
        ) from error
    names = [name for line in lines if (name := line.split("#", 1)[0].strip())]
    _check_names(folder, names)
    return _series_of(load_patch(folder / name) for name in names)


def _series_of(patches: Iterable[Patch]) -> Series:
    kept = tuple(patches)
    summary = "".join(f"{patch.name} {patch.digest}\n" for patch in kept)
    return Series(kept, hashlib.sha256(summary.encode()).hexdigest())


def _check_names(folder: Path, names: list[str]) -> None:
    for name in names:
        if not _PATCH_NAME.fullmatch(name):
            raise PatchError(
                f"{folder / 'series'}: bad patch name {name!r}; names look like 0001-policy-core"
            )
    if names != sorted(set(names)):
        raise PatchError(
            f"{folder / 'series'}: names must be unique and in ascending order, got {', '.join(names)}"
        )
    unlisted = sorted({path.parent.name for path in folder.glob("*/recipe.toml")} - set(names))
    if unlisted:
        raise PatchError(
            f"{folder / 'series'} does not name {', '.join(unlisted)}; add a line or delete the folder"
        )


def load_patch(folder: Path) -> Patch:
    """Read ``recipe.toml`` and ``files/`` of one patch. Raises PatchError with the recipe and the broken
    rule.
    """
    recipe = folder / "recipe.toml"
    try:
        raw = recipe.read_bytes()
        table = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise PatchError(f"cannot read {recipe}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PatchError(f"{recipe} is not valid TOML: {error}") from error
    reader = _RecipeReader(str(recipe))
    reader.known_keys("the recipe", table, _RECIPE_KEYS)
    purpose = reader.text("the recipe", table, "purpose")
    programs = reader.names("the recipe", table, "programs")
    new_files = _load_new_files(folder / "files", reader)
    edits = tuple(
        reader.edit(number, edit) for number, edit in enumerate(reader.tables("the recipe", table, "edit"), 1)
    )
    ids = [edit.id for edit in edits]
    repeated = sorted({name for name in ids if ids.count(name) > 1})
    if repeated:
        raise PatchError(f"{recipe}: edit ids must be unique, repeated: {', '.join(repeated)}")
    return Patch(folder.name, purpose, programs, new_files, edits, _digest_patch(raw, new_files))


def _load_new_files(folder: Path, reader: _RecipeReader) -> tuple[NewFile, ...]:
    if not folder.is_dir():
        return ()
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise PatchError(f"{path} is a link; new files are written out whole")
        if path.is_file():
            relative = reader.path("files/", path.relative_to(folder).as_posix())
            found.append(NewFile(relative, path.read_bytes()))
    return tuple(found)


def _digest_patch(recipe: bytes, new_files: Iterable[NewFile]) -> str:
    digest = hashlib.sha256()
    for name, content in [
        ("recipe.toml", recipe),
        *((f"files/{file.path}", file.content) for file in new_files),
    ]:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


@dataclass(frozen=True)
class _RecipeReader:
    """Takes typed values out of parsed TOML; every complaint starts with the recipe's path."""

    source: str

    def fail(self, where: str, rule: str) -> PatchError:
        return PatchError(f"{self.source}: {where}: {rule}")

    def known_keys(self, where: str, table: Mapping[str, Any], known: frozenset[str]) -> None:
        unknown = sorted(set(table) - known)
        if unknown:
            raise self.fail(where, f"unknown key {unknown[0]!r}; known keys: {', '.join(sorted(known))}")

    def optional_text(self, where: str, table: Mapping[str, Any], key: str) -> str | None:
        value = table.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.fail(where, f"{key} must be a non-empty string")
        return value

    def text(self, where: str, table: Mapping[str, Any], key: str) -> str:
        value = self.optional_text(where, table, key)
        if value is None:
            raise self.fail(where, f"{key} is missing")
        return value

    def tables(self, where: str, table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.fail(where, f"{key} must be an array of tables, written [[{key}]]")
        return value

    def names(self, where: str, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(
            isinstance(item, str) and _NAME.fullmatch(item) for item in value
        ):
            raise self.fail(where, f"{key} must be an array of names: lower-case words joined by hyphens")
        return tuple(value)

    def path(self, where: str, text: str) -> str:
        path = PurePosixPath(text)
        parts = path.parts
        if path.is_absolute() or ".." in parts or str(path) != text or "\\" in text or "\0" in text:
            raise self.fail(
                where, f"{text!r} is not a plain path inside the tree, such as src/llama-context.cpp"
            )
        if parts[0] in (STATE_FOLDER, ".git"):
            raise self.fail(where, f"{text!r} lies in {parts[0]}, which no patch may touch")
        return text

    def edit(self, number: int, table: Mapping[str, Any]) -> Edit:
        edit_id = self.text(f"edit {number}", table, "id")
        where = f"edit {edit_id}"
        if not _NAME.fullmatch(edit_id):
            raise self.fail(where, "an id is lower-case words and digits joined by hyphens")
        self.known_keys(where, table, _EDIT_KEYS)
        shared = {key: table[key] for key in _ANCHOR_KEYS if key in table}
        variants = self.tables(where, table, "variant")
        anchors = [self.anchor(where, shared)] if "find" in table or not variants else []
        for position, variant in enumerate(variants, 1):
            label = f"{where}, variant {position}"
            self.known_keys(label, variant, _ANCHOR_KEYS)
            anchors.append(self.anchor(label, {**shared, "find": None, **variant}))
        return Edit(
            edit_id,
            self.text(where, table, "why"),
            self.path(where, self.text(where, table, "file")),
            tuple(anchors),
            self.condition(where, table),
        )

    def anchor(self, where: str, table: Mapping[str, Any]) -> Anchor:
        action = self.text(where, table, "action")
        if action not in ACTIONS:
            raise self.fail(where, f"unknown action {action!r}; known actions: {', '.join(ACTIONS)}")
        count = table.get("count", 1)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise self.fail(where, f"count must be a whole number of at least 1, got {count!r}")
        text = table.get("text")
        if not isinstance(text, str) or (not text and action != "replace"):
            raise self.fail(where, "text must be a string, empty only for the action replace")
        find = self.text(where, table, "find")
        if find == text:
            raise self.fail(where, "text equals find, so the edit changes nothing")
        return Anchor(find, count, action, text, self.optional_text(where, table, "after"))

    def condition(self, where: str, table: Mapping[str, Any]) -> Condition | None:
        value = table.get("when")
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(where, "when must be a table such as { file = 'src/x.cpp', has = 'text' }")
        self.known_keys(f"{where}, when", value, _CONDITION_KEYS)
        return Condition(
            self.path(where, self.text(f"{where}, when", value, "file")),
            self.optional_text(f"{where}, when", value, "has"),
            self.optional_text(f"{where}, when", value, "lacks"),
        )
