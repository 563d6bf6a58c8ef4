"""What tools/backend_ops.py makes of the output of test-backend-ops."""

from __future__ import annotations

import pytest

from backend_ops import summary
from kvquant.errors import LlamaError

OUTPUT = """Testing 1 devices

Backend 1/1: CPU
  ABS(type=f16,ne_a=[128,2,2,2],v=0): \x1b[1;32mOK\x1b[0m
  ABS(type=f32,ne_a=[5,7,11,13],v=1): not supported [CPU]
  FLASH_ATTN_EXT(hsk=64,type_KV=q8_0): [FLASH_ATTN_EXT] NMSE = 0.5 > 0.0005 \x1b[1;31mFAIL\x1b[0m
  MUL_MAT(type_a=f32,m=1): skipping large tensors for speed
  1/2 tests passed
  Backend CPU: \x1b[1;31mFAIL\x1b[0m
"""


def test_cases_are_counted_per_operation_and_failures_kept_whole() -> None:
    assert summary(OUTPUT.splitlines()) == {
        "passed": 1,
        "run": 2,
        "failed": ["FLASH_ATTN_EXT(hsk=64,type_KV=q8_0): [FLASH_ATTN_EXT] NMSE = 0.5 > 0.0005 FAIL"],
        "operations": {
            "ABS": {"not supported": 1, "ok": 1},
            "FLASH_ATTN_EXT": {"failed": 1},
            "MUL_MAT": {"not supported": 1},
        },
    }


def test_a_run_that_was_cut_short_gives_no_summary() -> None:
    with pytest.raises(LlamaError, match="without a total"):
        summary(OUTPUT.splitlines()[:6])
