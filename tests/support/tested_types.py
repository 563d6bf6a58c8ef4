"""The cache types of the programs under test.

KVQUANT_TESTS_UPSTREAM is set where these have llama.cpp's own alone: a patch without the rest of the series.
"""

from __future__ import annotations

import os

from kvquant.formats.registry import CACHE_TYPES, UPSTREAM_TYPES

TESTED_TYPES = UPSTREAM_TYPES if "KVQUANT_TESTS_UPSTREAM" in os.environ else CACHE_TYPES
