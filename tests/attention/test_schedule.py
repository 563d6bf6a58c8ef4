"""The simulated schedule is that of the kernels' constants, and the page shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark_scripts import FOLDER, load_benchmark

schedule = load_benchmark("attention_schedule")


def test_the_page_shows_the_schedule() -> None:
    assert schedule.PAGE.read_text(encoding="utf-8") == schedule.page(), (
        "run benchmarks/attention_schedule.py"
    )


@given(
    n_group=st.integers(1, 16),
    n_head_kv=st.integers(1, 16),
    head_dim=st.sampled_from([32, 64, 128, 256, 576]),
    n_tokens=st.sampled_from([1, 2, 7, 64, 512]),
    n_kv=st.integers(1, 40_000),
    n_threads=st.integers(1, 64),
)
def test_items_are_the_whole_operation_and_no_schedule_beats_its_bounds(
    n_group: int, n_head_kv: int, head_dim: int, n_tokens: int, n_kv: int, n_threads: int
) -> None:
    operation = schedule.Operation(n_group * n_head_kv, n_head_kv, head_dim, n_tokens, n_kv)
    items = operation.items()
    assert sum(items) == n_group * n_head_kv * n_tokens * n_kv
    share = schedule.efficiency(items, n_threads)
    assert 0 < share <= 1
    assert schedule.efficiency(items, 1) == 1
    # No thread is done later than one whole item after the time that all need together.
    longest = sum(items) / (share * n_threads)
    assert max(items) <= longest <= sum(items) / n_threads + max(items)


def test_threads_take_the_next_item_as_they_get_free() -> None:
    assert schedule.efficiency([4, 1, 1, 1, 1], 2) == 1
    assert schedule.efficiency([1, 1, 1, 1, 4], 2) == 8 / 12
    assert schedule.efficiency([1], 2) == 0.5


@pytest.mark.parametrize("script", ["attention_schedule", "attention_peers"])
def test_the_script_finds_what_it_imports_wherever_it_is_started(script: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path[0] = {str(FOLDER)!r}; import {script}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_constant_that_the_sources_lack_is_an_error() -> None:
    with pytest.raises(ValueError, match="NO_SUCH stands 0 times"):
        schedule.constant("NO_SUCH")
