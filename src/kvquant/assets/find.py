"""From what a user wrote for a model or a text to a file: a path, a known name, a file of a repository."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvquant.assets.fetch_model import Progress, Say, fetch_model, source_order
from kvquant.assets.hub import PREFIX, download_from_hub, parse_reference
from kvquant.assets.registry import models, texts, unknown
from kvquant.assets.small import TEXT_PARTS, fetch_text
from kvquant.errors import UsageError


def model_path(
    text: str,
    *,
    sources: Sequence[str] = (),
    verify: bool = False,
    say: Say = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Path:
    """Return the model file that ``text`` means, fetched first when that is needed.

    A path that exists wins; then ``hf:OWNER/REPO/FILE.gguf``; then a name of the registry. What can only be a
    path is returned as it is, for the reader to say that it is missing. sources, verify, say and progress:
    as `fetch_model` takes them. Raises UsageError for an unknown name and AssetError when a fetch fails.
    """
    if Path(text).exists():
        return Path(text)
    if text.startswith(PREFIX):
        return download_from_hub(parse_reference(text))
    if text not in models():
        if looks_like_a_path(text):
            return Path(text)
        raise unknown("model", text, models())
    return fetch_model(
        models()[text], sources=source_order(sources), verify=verify, say=say, progress=progress
    )


def text_path(value: str, *, say: Say = lambda _: None) -> Path:
    """Return the text file that ``value`` means, fetched first when that is needed.

    A path that exists wins; then NAME, NAME:held-out and NAME:calibration of the registry, a bare NAME being
    its held-out part. Raises UsageError for an unknown name and AssetError when a fetch fails.
    """
    if Path(value).exists():
        return Path(value)
    name, _, part = value.partition(":")
    part = part or TEXT_PARTS[0]
    if name in texts():
        if part not in TEXT_PARTS:
            raise UsageError(
                f"{value!r}: the text {name} has no part {part!r}; known: {', '.join(TEXT_PARTS)}"
            )
        return fetch_text(texts()[name], part, say=say)
    if looks_like_a_path(value):
        return Path(value)
    raise unknown("text", value, texts())


def looks_like_a_path(text: str) -> bool:
    """Whether ``text`` can only be meant as a path: it has a separator or the ending of a file."""
    return os.sep in text or Path(text).suffix.lower() in {".gguf", ".rkllm", ".txt", ".md", ".json", ".npz"}
