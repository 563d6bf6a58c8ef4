"""A whole sweep of the reference model with the patched server: real rates, real buffers, real answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvquant.cli.main import kvquant
from kvquant.results.sweep import Ending
from kvquant.shipped import reference_model
from kvquant.sweep.cell import run_cell
from kvquant.sweep.plan import tasks
from kvquant.sweep.survey import survey
from llama.transforms import write_random
from sweep.small_sweeps import small_plan

pytestmark = pytest.mark.skipif(
    not os.environ.get("KVQUANT_LLAMA_BIN"), reason="KVQUANT_LLAMA_BIN names no patched build"
)

PLAN = f"""
models = ["{reference_model()}"]
policies = ["f16", "q8_0"]
threads = [1]
flash_attn = ["on", "off"]
ctx = [256]
rounds = 1
ram = ["1GiB"]
[measure]
depths = [0, 64]
n_prompt = 64
n_gen = 4
warmup = 8
[probe]
start = 256
max_ctx = 512
step = 256
times = 1
threads = 1
"""


def test_a_sweep_with_the_patched_server(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(PLAN)
    argv = ["sweep", str(plan), "--out", str(out), "--llama-bin", os.environ["KVQUANT_LLAMA_BIN"], "--json"]
    result = json.loads(CliRunner().invoke(kvquant, argv, catch_exceptions=False).stdout)
    cells = [(cell["setting"], cell["ending"]) for cell in result["cells"]]
    endings = [(setting["policy"], setting["flash_attn"], ending) for setting, ending in cells]
    assert endings == [
        ("*:f16", "on", "done"),
        ("*:q8_0", "on", "done"),
        ("*:f16", "off", "done"),
        ("*:q8_0", "off", "refused"),
    ]
    f16, q8_0 = result["rows"]
    # Bytes as llama.cpp logged them: 34 bytes hold 32 values, of which float16 makes 64.
    assert q8_0["kv_bytes"] * 64 == f16["kv_bytes"] * 34
    assert f16["host_bytes"] > f16["kv_bytes"] > 0 and f16["peak_rss_bytes"] > f16["file_bytes"] // 4
    for cell in result["cells"][:3]:
        assert [point["depth"] for point in cell["points"]] == [0, 64]
        assert all(point["prefill"] > 0 and point["decode"] > 0 for point in cell["points"])
        assert all(point["cpu_share"] is None or 0 < point["cpu_share"] < 1.5 for point in cell["points"])
    for probe in result["probes"]:
        # It knows no English: what loads is known, what it answers is not asserted.
        assert probe["loaded"] == 512 and probe["predicted"] > 512
        assert any(tried["part"] == "answer" for tried in probe["attempts"])
    page = (out / "sweep.html").read_text()
    assert page.startswith("<!doctype html>") and "The decision table" in page and "<svg" in page


def test_a_transform_is_a_setting_of_its_own(tmp_path: Path) -> None:
    model, sidecar = reference_model(), tmp_path / "t.gguf"
    write_random(sidecar, model, "centre and diagonal")
    plan = small_plan(
        policies=("q4_0", "q4_0@no-transform"), ctx=(256,), transforms={str(model): str(sidecar)}
    )
    host = survey(plan, Path(os.environ["KVQUANT_LLAMA_BIN"]))
    with_it, without = [run_cell(plan, task, host) for task in tasks(plan)]
    for record in (with_it, without):
        assert (record.ending, record.detail) == (Ending.DONE, "")
        assert [point.depth for point in record.points] == [0, 64]
    assert (with_it.setting.transform, without.setting.transform) == (str(sidecar), None)
    # It changes what keys are, not what they take.
    assert with_it.buffers and without.buffers and with_it.buffers.kv == without.buffers.kv
