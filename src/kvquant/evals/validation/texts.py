"""The texts that divergence is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import UsageError
from kvquant.evals.suite_parts import REFERENCE_TEXT, DivergencePart
from kvquant.files import write_atomic
from kvquant.reference.tasks import Size, Split, held_out_documents

MOST_PAIRS = 64
"""Facts in a document of the reference model at most."""


@dataclass(frozen=True)
class Texts:
    """UTF-8 files, each a document. parse_special: names of special tokens in them stand for these tokens."""

    files: tuple[Path, ...]
    parse_special: bool


def check_text(part: DivergencePart) -> None:
    """Raise UsageError when the suite names a file that is not there."""
    if part.text != REFERENCE_TEXT and not Path(part.text).is_file():
        raise UsageError(f"[kld]: text {part.text!r} is neither {REFERENCE_TEXT} nor a file")


def texts_of(part: DivergencePart, seed: int, folder: Path) -> Texts:
    """Return the texts of a suite; documents that are made, not read, are written into ``folder``.

    Raises UsageError when the suite names a file that is not there.
    """
    check_text(part)
    if part.text != REFERENCE_TEXT:
        return Texts((Path(part.text),), parse_special=False)
    folder.mkdir(exist_ok=True)
    size = Size(part.n_tokens, MOST_PAIRS)
    documents = held_out_documents(seed, Split.TEST, part.n_documents, size)
    files = tuple(folder / f"{index}-{document.kind}.txt" for index, document in enumerate(documents))
    for file, document in zip(files, documents, strict=True):
        write_atomic(file, document.text)
    return Texts(files, parse_special=True)
