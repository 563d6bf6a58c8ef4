"""From what a user wrote for a model to a file: a path, a known name, or a file of a Hugging Face repo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kvquant.assets.fetch_model import Progress, Say, fetch_model, source_order
from kvquant.assets.hub import PREFIX, download_from_hub, parse_reference
from kvquant.assets.registry import models, unknown


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


def looks_like_a_path(text: str) -> bool:
    """Whether ``text`` can only be meant as a path: it has a separator or the ending of a file."""
    return os.sep in text or Path(text).suffix.lower() in {".gguf", ".txt", ".md", ".json", ".npz"}
