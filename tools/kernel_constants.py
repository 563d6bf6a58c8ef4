"""Constants of the attention kernels, read from their sources, so that what plans with them cannot drift."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = (
    Path(__file__).resolve().parent.parent / "patches/llama.cpp/0004-kv-attention/files/ggml/src/ggml-cpu"
)


def constant(name: str) -> int:
    """Return a constant of the kernels' sources. Raises ValueError where it stands in none or in several."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir()))
    found = [int(match) for text in texts for match in re.findall(rf"\b{name}\s*=\s*(\d+);", text)]
    if len(found) != 1:
        raise ValueError(f"{name} stands {len(found)} times in {SOURCES.name}, wanted once")
    return found[0]
