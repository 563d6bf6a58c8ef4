"""The built libggml, for tests that compare with it live."""

from __future__ import annotations

import os
from functools import cache

import pytest

from libggml import LibGGML, find_library

HOW = 'python tools/build_libggml.py --source "$(kvquant llama fetch)"'


@cache
def _load() -> LibGGML | None:
    path = find_library()
    return LibGGML(path) if path else None


def libggml() -> LibGGML:
    """Return the oracle. Without one the test is skipped, but fails under CI=true, which has to build it."""
    found = _load()
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI=true but there is no libggml; run: {HOW}")
    pytest.skip(f"no libggml to compare with; run: {HOW}")
