"""Model files that cannot be what their name says: empty, cut off, another format, another chip."""

from __future__ import annotations

import re
from pathlib import Path

from kvquant.errors import ModelFileError
from kvquant.evals.doctor.finding import Finding, Severity
from kvquant.model.gguf_header import MAGIC, GgufHeader, read_header
from kvquant.units import format_n_bytes

LEAST_RKLLM_BYTES = 2**20
"""No converted language model is as small: the smallest have hundreds of MB."""

_CHIPS = re.compile(r"rk3588|rk3576|rk3562|rv1126b", re.IGNORECASE)
"""Target platforms of the RKLLM converter, as people write them into file names."""

_HEAD_BYTES = 512

# How files start that are something else: (magic, what it is, what to do).
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer and not the file", "download it with git lfs pull"),
    (b"<", "a web page", "download the file itself, not its page"),
    (b"PK\x03\x04", "a ZIP archive or a PyTorch checkpoint", "give the converted model"),
)


def check_gguf(path: Path) -> tuple[GgufHeader | None, list[Finding]]:
    """Return the header of a GGUF file, None when it is none or is damaged, with what was found."""
    try:
        return read_header(path), []
    except ModelFileError as error:
        what, _, fix = str(error).removeprefix(str(path)).strip().rpartition("; ")
        other = _other(_head(path))
        if other is not None:
            what, fix = f"is {other[0]}", other[1]
        return None, [Finding(Severity.FIX, str(path), what or fix, fix if what else "name a model file")]


def check_rkllm(path: Path, soc: str | None) -> list[Finding]:
    """Check an .rkllm file by its size, its first bytes and the chip in its name; its format is not public.

    soc: the chip of this machine, None when unknown.
    """
    subject = str(path)
    try:
        n_bytes = path.stat().st_size
    except OSError as error:
        return [Finding(Severity.FIX, subject, f"cannot be read: {error.strerror}", "name a model file")]
    head = _head(path)
    if n_bytes == 0:
        return [Finding(Severity.FIX, subject, "is empty: a download that failed", "get the file again")]
    if head.startswith(MAGIC):
        what = "is a GGUF file: the NPU cannot load it"
        return [
            Finding(Severity.FIX, subject, what, "run it with llama.cpp, or convert the model with RKLLM")
        ]
    other = _other(head)
    if other is not None:
        return [Finding(Severity.FIX, subject, f"is {other[0]}", other[1])]
    if not any(head):
        what = f"starts with {len(head)} zero bytes: a download that did not finish"
        return [Finding(Severity.FIX, subject, what, "get the file again")]
    if n_bytes < LEAST_RKLLM_BYTES:
        what = f"has only {format_n_bytes(n_bytes)}: a download that was cut off"
        return [Finding(Severity.FIX, subject, what, "get the file again")]
    return [*_platform(path, soc), Finding(Severity.NOTE, subject, _RKLLM_NOTE)]


_RKLLM_NOTE = "is for the NPU: KV-cache policies do not apply there, and a context has at most 4096 tokens"


def _platform(path: Path, soc: str | None) -> list[Finding]:
    named = _CHIPS.search(path.name)
    if named is None:
        what = "does not say in its name which chip it was converted for"
        return [
            Finding(
                Severity.WARNING, str(path), what, "ask where it came from; the NPU refuses another chip's"
            )
        ]
    chip = named[0].lower()
    if soc is None or not soc.startswith(("rk", "rv")):
        what = f"is for {chip}, and this machine is no Rockchip board"
        return [Finding(Severity.NOTE, str(path), what)]
    # rk3588s is the same chip with fewer pins.
    if not soc.startswith(chip):
        what = f"is for {chip}, this machine is {soc}: the NPU says 'invalid model'"
        return [
            Finding(Severity.FIX, str(path), what, f"convert it with target_platform='{soc.rstrip('s')}'")
        ]
    return []


def _other(head: bytes) -> tuple[str, str] | None:
    return next((other[1:] for other in _OTHERS if head.lstrip().startswith(other[0])), None)


def _head(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""
