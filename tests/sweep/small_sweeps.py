"""Small plans, a folder with the fake server, and records written by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvquant.results.sweep import (
    Board,
    Buffers,
    CellRecord,
    Ending,
    ProbeRecord,
    Setting,
    SpeedAt,
    SweptModel,
)
from kvquant.shipped import reference_model
from kvquant.sweep.journal import Journal, SweepStart
from kvquant.sweep.plan import Measure, Probe, SweepPlan, check_plan

FAKE = Path(__file__).with_name("fake_llama_server.py")
MODEL = str(reference_model())
MEASURE = Measure(depths=(0, 64), n_prompt=64, n_gen=5, warmup=8, timeout_seconds=5.0, start_seconds=30.0)
PROBE = Probe(start=256, max_ctx=2048, step=256, times=2)


def fake_programs(folder: Path) -> Path:
    """Make a folder of programs whose llama-server is the fake."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    server = programs / "llama-server"
    server.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    server.chmod(0o755)
    return programs


def small_plan(**changes: Any) -> SweepPlan:
    """Two policies of the reference model at one context."""
    base = SweepPlan(
        models=(MODEL,), policies=("f16", "q8_0"), threads=(1,), ctx=(512,), rounds=1, measure=MEASURE
    )
    return check_plan(replace(base, **changes))


SETTING = Setting("m", "*:f16", 1, "all", "on", 512)
MODEL_M = SweptModel("m", "M", "0" * 64, 1000, 4.5, "llama", 2048)
BOARD = Board("b", "0", None, None, {"all": "0-7"}, {"memory_n_bytes": 2**30}, (MODEL_M,))


def cell(policy: str = "*:f16", decode: float | None = 10.0, index: int = 0, **changes: Any) -> CellRecord:
    """A finished cell: depth 0 at twice the decode rate of depth 64."""
    setting_changes = {name: changes.pop(name) for name in list(changes) if hasattr(SETTING, name)}
    points = () if decode is None else (_at(0, 2 * decode), _at(64, decode))
    base = CellRecord(
        board="b",
        setting=replace(SETTING, policy=policy, **setting_changes),
        round=index,
        ending=Ending.DONE,
        detail="",
        started="2026-01-01T00:00:00+00:00",
        wall_seconds=1.0,
        points=points,
        buffers=Buffers(100, 40, None, 20, 5),
    )
    return replace(base, **changes)


def _at(depth: int, decode: float) -> SpeedAt:
    return SpeedAt(depth, 64, 10 * decode, 5, decode, 0.5)


def probe(policy: str = "*:f16", stable: int | None = 1024, **changes: Any) -> ProbeRecord:
    """A finished probe."""
    base = ProbeRecord(
        board="b",
        setting=replace(SETTING, policy=policy, n_ctx=4096),
        ending=Ending.DONE,
        detail="",
        started="2026-01-01T00:00:00+00:00",
        wall_seconds=1.0,
        times=2,
        limit=4096,
        trained=2048,
        available_n_bytes=10000,
        reserve_n_bytes=10,
        predicted=8192,
        loaded=4096,
        answered=2048,
        stable=stable,
        need_n_bytes=140,
    )
    return replace(base, **changes)


def journal_of(*records: CellRecord | ProbeRecord, **plan: Any) -> Journal:
    """A journal with one start and these records."""
    the_plan = replace(SweepPlan(models=("m",), policies=("f16", "q8_0")), **plan)
    found = Journal([SweepStart(the_plan, (BOARD,), {"started": "2026"})])
    for record in records:
        found.add(record)
    return found
