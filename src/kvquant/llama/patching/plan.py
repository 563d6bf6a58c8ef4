"""Computes a whole series against a tree, in memory: what each edit matches, and every file's new bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from kvquant.llama.patching.drift import Candidate, nearest
from kvquant.llama.patching.recipe import Anchor, Condition, Edit, NewFile, Patch, Series

#: Gives an unpatched file's bytes, None when the tree has no such file.
ReadFile = Callable[[str], bytes | None]

Status = Literal["matches", "skipped", "fails"]


@dataclass(frozen=True)
class Outcome:
    """What one edit, or one new file, finds in the tree.

    ``lines`` are line numbers (from 1) of the unpatched file where the anchor was found; ``reason`` says why
    an edit is skipped or fails; ``candidates`` are the nearest stretches when an anchor was not found;
    ``variant`` is the one of the edit's alternatives that matches, from 0.
    """

    patch: str
    id: str
    file: str
    status: Status
    lines: tuple[int, ...] = ()
    reason: str = ""
    candidates: tuple[Candidate, ...] = ()
    variant: int = 0


@dataclass(frozen=True)
class FileChange:
    """One file before and after; ``before`` is None for an added file."""

    path: str
    before: bytes | None
    after: bytes


@dataclass(frozen=True)
class PatchPlan:
    """One patch of a plan; ``changes`` are relative to the tree with the earlier patches applied."""

    patch: Patch
    outcomes: tuple[Outcome, ...]
    changes: tuple[FileChange, ...]


@dataclass(frozen=True)
class Plan:
    """A whole series against one tree; ``changes`` are relative to the unpatched tree, sorted by path."""

    series: Series
    patches: tuple[PatchPlan, ...]
    changes: tuple[FileChange, ...]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(outcome for patch in self.patches for outcome in patch.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "fails")


def make_plan(series: Series, read: ReadFile) -> Plan:
    """Compute ``series`` against the files ``read`` gives; a failing edit is recorded, the others still
    tried.
    """
    workspace: dict[str, _File] = {}
    patches = tuple(_plan_patch(patch, read, workspace) for patch in series.patches)
    changes = tuple(
        FileChange(path, file.pristine, file.content)
        for path, file in sorted(workspace.items())
        if file.content is not None and file.content != file.pristine
    )
    return Plan(series, patches, changes)


@dataclass
class _File:
    """A file while edits are applied to it.

    ``pristine`` is the tree's content and ``base`` what the edits started from (the same, or a file the
    series adds); ``splices`` lead from a position in ``content`` back to one in ``base``.
    """

    pristine: bytes | None
    base: bytes | None
    content: bytes | None
    splices: list[tuple[int, int, int]] = field(default_factory=list)

    def replace(self, start: int, end: int, new: bytes) -> None:
        content = self.content or b""
        self.content = content[:start] + new + content[end:]
        self.splices.append((start, end - start, len(new)))

    def base_line(self, position: int) -> int:
        for start, removed, inserted in reversed(self.splices):
            if position >= start + inserted:
                position += removed - inserted
            elif position > start:
                position = start
        return (self.base or b"").count(b"\n", 0, position) + 1


def _plan_patch(patch: Patch, read: ReadFile, workspace: dict[str, _File]) -> PatchPlan:
    outcomes = []
    before: dict[str, bytes | None] = {}

    def open_file(path: str) -> _File:
        if path not in workspace:
            content = read(path)
            workspace[path] = _File(content, content, content)
        return workspace[path]

    def touch(path: str) -> _File:
        file = open_file(path)
        before.setdefault(path, file.content)
        return file

    for new in patch.new_files:
        outcomes.append(_add_file(patch.name, new, touch(new.path)))
    for edit in patch.edits:
        unwanted = _unwanted(edit.when, open_file)
        if unwanted:
            outcomes.append(Outcome(patch.name, edit.id, edit.file, "skipped", reason=unwanted))
        else:
            outcomes.append(_apply_edit(patch.name, edit, touch(edit.file)))
    changes = tuple(
        FileChange(path, old, content)
        for path, old in sorted(before.items())
        if (content := workspace[path].content) is not None and content != old
    )
    return PatchPlan(patch, tuple(outcomes), changes)


def _add_file(patch: str, new: NewFile, file: _File) -> Outcome:
    if file.content is None:
        file.base = file.content = new.content
        return Outcome(patch, "new-file", new.path, "matches", reason="added whole")
    reason = "the tree already has this file"
    if file.content == new.content:
        reason += ", byte for byte: it was patched by other means (for example git apply); undo that first"
    return Outcome(patch, "new-file", new.path, "fails", reason=reason)


def _unwanted(condition: Condition | None, open_file: Callable[[str], _File]) -> str:
    """Why the unpatched tree does not want the edit; empty when it does."""
    if condition is None:
        return ""
    content = open_file(condition.file).pristine
    if content is None:
        return f"the tree has no {condition.file}"
    if condition.has is not None and condition.has.encode() not in content:
        return f"{condition.file} does not contain {condition.has!r}"
    if condition.lacks is not None and condition.lacks.encode() in content:
        return f"{condition.file} contains {condition.lacks!r}"
    return ""


def _apply_edit(patch: str, edit: Edit, file: _File) -> Outcome:
    if file.content is None:
        return Outcome(patch, edit.id, edit.file, "fails", reason="the tree has no such file")
    content = file.content
    newline = _newline(content)
    spans = [_find(content, anchor, newline) for anchor in edit.anchors]
    matching = [
        index
        for index, (anchor, found) in enumerate(zip(edit.anchors, spans, strict=True))
        if len(found) == anchor.count
    ]
    if len(matching) != 1:
        return _no_single_match(patch, edit, file, content, newline, spans, matching)
    anchor, starts = edit.anchors[matching[0]], spans[matching[0]]
    find, text = _in_file(anchor.find, newline), _in_file(anchor.text, newline)
    lines = tuple(file.base_line(start) for start in starts)
    if any(_already_there(content, start, find, text, anchor) for start in starts):
        return Outcome(
            patch,
            edit.id,
            edit.file,
            "fails",
            lines,
            "the text to insert is already there: the tree was patched by other means",
        )
    for start in reversed(starts):
        if anchor.action == "replace":
            file.replace(start, start + len(find), text)
        else:
            at = start if anchor.action == "insert-before" else start + len(find)
            file.replace(at, at, text)
    return Outcome(patch, edit.id, edit.file, "matches", lines, variant=matching[0])


def _no_single_match(
    patch: str,
    edit: Edit,
    file: _File,
    content: bytes,
    newline: bytes,
    spans: list[list[int]],
    matching: list[int],
) -> Outcome:
    if matching:
        reason = f"{len(matching)} of its {len(edit.anchors)} variants match; exactly one must"
        lines = tuple(sorted({file.base_line(start) for index in matching for start in spans[index]}))
        return Outcome(patch, edit.id, edit.file, "fails", lines, reason)
    reasons = []
    for number, (anchor, found) in enumerate(zip(edit.anchors, spans, strict=True), 1):
        label = f"variant {number}: " if len(edit.anchors) > 1 else ""
        reasons.append(
            f"{label}anchor found {len(found)} times, wanted {anchor.count}{_scope(content, anchor, newline)}"
        )
    lines = tuple(sorted({file.base_line(start) for found in spans for start in found}))
    candidates = [
        candidate
        for anchor, found in zip(edit.anchors, spans, strict=True)
        if not found
        for candidate in nearest(file.base or content, _in_file(anchor.find, newline))
    ]
    return Outcome(patch, edit.id, edit.file, "fails", lines, "; ".join(reasons), tuple(candidates))


def _scope(content: bytes, anchor: Anchor, newline: bytes) -> str:
    if anchor.after is None:
        return ""
    times = content.count(_in_file(anchor.after, newline))
    return f" after {anchor.after.strip()!r}" + (
        "" if times == 1 else f", which was found {times} times, wanted 1"
    )


def _find(content: bytes, anchor: Anchor, newline: bytes) -> list[int]:
    """Start offsets of the anchor; none when the text it must come ``after`` is not there exactly once."""
    position = 0
    if anchor.after is not None:
        after = _in_file(anchor.after, newline)
        if content.count(after) != 1:
            return []
        position = content.index(after) + len(after)
    find = _in_file(anchor.find, newline)
    starts = []
    while (start := content.find(find, position)) >= 0:
        starts.append(start)
        position = start + len(find)
    return starts


def _already_there(content: bytes, start: int, find: bytes, text: bytes, anchor: Anchor) -> bool:
    if anchor.action == "insert-before":
        return content[max(0, start - len(text)) : start] == text
    if anchor.action == "insert-after":
        return content.startswith(text, start + len(find))
    return False


def _newline(content: bytes) -> bytes:
    """The file's line ending: CRLF only when every line ends so; a mixed file is matched byte for byte."""
    pairs = content.count(b"\r\n")
    return b"\r\n" if pairs and pairs == content.count(b"\n") else b"\n"


def _in_file(text: str, newline: bytes) -> bytes:
    return text.encode().replace(b"\n", newline)
