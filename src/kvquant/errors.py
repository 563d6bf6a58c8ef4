"""Every error this package raises on purpose, each with the exit code the command line ends with.

A message is one line: what was given, the rule it breaks, and the next step or the known names.
"""

from __future__ import annotations

from typing import ClassVar


class KVQuantError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line."""

    exit_code: ClassVar[int] = 1


class UsageError(KVQuantError):
    """Options or arguments that do not fit together."""

    exit_code = 2


class PolicyError(KVQuantError):
    """A policy text that does not parse, or does not fit the model it is resolved against.

    `code` names the rule that was broken (docs/policy-language.md lists them); `line` and `column` are
    1-based, None when no single place in a text is at fault.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, code: str, column: int | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.line = line
        self.column = column


class FormatError(KVQuantError):
    """An unknown format name, or an array whose width or dtype the format cannot take."""


class ShapeError(KVQuantError):
    """A model shape that is inconsistent, unknown, or needs to be given by hand."""


class ModelFileError(KVQuantError):
    """A model file that is missing, truncated, hostile, or not GGUF."""


class CaptureError(KVQuantError):
    """A K/V capture or llama.cpp state file that is damaged or has the wrong axes."""


class TransformError(KVQuantError):
    """A K transform, its moments or its file: damaged, of another model, or not for this layer."""


class LlamaError(KVQuantError):
    """Trouble with a llama.cpp source tree, build, or running program."""


class AssetError(KVQuantError):
    """A model, text or task set that cannot be fetched, or is not what was pinned."""


class EndpointError(KVQuantError):
    """An HTTP endpoint that cannot be reached, fails, or answers something else than what was asked for."""


class PatchError(LlamaError):
    """A patch that does not fit the tree at hand, or a tree that was changed underneath it."""


class CheckFailed(KVQuantError):
    """A check ran to its end and its answer is no."""

    exit_code = 3
