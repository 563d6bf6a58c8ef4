"""Model files that cannot be what their name says: empty, cut off, another format, another chip."""

from __future__ import annotations

import re
from pathlib import Path

from kvquant.errors import KVQuantError, ModelFileError
from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.model.first_bytes import FIRST_BYTES, MAGIC, named_by_first_bytes
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.gguf_header import shown
from kvquant.units import format_n_bytes

LEAST_RKLLM_BYTES = 2**20
"""No converted language model is as small: the smallest have hundreds of MB."""

_CHIPS = re.compile(r"rk3588|rk3576|rk3562|rv1126b", re.IGNORECASE)
"""Target platforms of the RKLLM converter, as people write them into file names."""


def check_gguf(path: Path) -> tuple[GgufModel | None, list[Finding]]:
    """Return the model at ``path``, None when the file is none or is damaged, with what was found."""
    try:
        model = open_model(path)
    except ModelFileError as error:
        return None, [failed(path, error)]
    return model, [failed(path, ModelFileError(line)) for line in model.not_loadable()]


def failed(path: Path, error: KVQuantError) -> Finding:
    """What must be fixed about the file at ``path``: the line that every command prints, cut in two."""
    what, _, fix = str(error).removeprefix(shown(path)).lstrip(": ").rpartition("; ")
    return Finding(Severity.FIX, shown(path), what or fix, fix if what else "give another model file")


def check_rkllm(path: Path, soc: str | None) -> list[Finding]:
    """Check an .rkllm file by its size, its first bytes and the chip in its name; its format is not public.

    soc: the chip of this machine, None when unknown.
    """
    subject = shown(path)
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        return [Finding(Severity.FIX, subject, f"cannot be read: {error.strerror}", "give a model file")]
    head = _head(path)
    if head.startswith(MAGIC):
        what = "is a GGUF file: the NPU cannot load it"
        return [
            Finding(Severity.FIX, subject, what, "run it with llama.cpp, or convert the model with RKLLM")
        ]
    other = named_by_first_bytes(head)
    if other is not None:
        return [Finding(Severity.FIX, subject, f"is {other[0]}", other[1])]
    if n_bytes < LEAST_RKLLM_BYTES:
        what = f"has only {format_n_bytes(n_bytes)}: the download was cut off"
        return [Finding(Severity.FIX, subject, what, "get the file again")]
    return [*_platform(path, soc), Finding(Severity.NOTE, subject, _RKLLM_NOTE)]


_RKLLM_NOTE = "is for the NPU: KV-cache policies do not apply there, and a context has at most 4096 tokens"


def _platform(path: Path, soc: str | None) -> list[Finding]:
    named = _CHIPS.search(path.name)
    if named is None:
        what = "does not say in its name which chip it was converted for"
        return [
            Finding(
                Severity.WARNING, shown(path), what, "ask where it came from; the NPU refuses another chip's"
            )
        ]
    chip = named[0].lower()
    if soc is None or not soc.startswith(("rk", "rv")):
        what = f"is for {chip}, and this machine is not a Rockchip board"
        return [Finding(Severity.NOTE, shown(path), what)]
    # rk3588s is the same chip with fewer pins.
    if not soc.startswith(chip):
        what = f"is for {chip}, this machine is {soc}: the NPU says 'invalid model'"
        return [
            Finding(Severity.FIX, shown(path), what, f"convert it with target_platform='{soc.rstrip('s')}'")
        ]
    return []


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(FIRST_BYTES)
    except OSError:
        return b""
