"""Records of validations, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvquant.evals.outcome import Outcome
from kvquant.evals.records import CountedTest, Run, RunInfo, SampleRecord
from kvquant.evals.speed import SpeedPoint, SpeedRound
from kvquant.evals.suite import Rules
from kvquant.evals.validation.records import Journal, NamedPolicy, Records, Start
from kvquant.results.validation import ModelFile, SuiteUsed

RULES = Rules(alpha=0.05, power=0.8, disagreement=0.05, safe_loss=0.05, broken_loss=0.25)
POLICIES = (NamedPolicy("f16", "*:f16"), NamedPolicy("q8_0", "*:q8_0"), NamedPolicy("q4_0", "*:q4_0"))
PARTS: dict[str, Any] = {"n_ctx": 512, "divergence": {"paths": ["prefill"]}, "speed": None, "memory": True}

START = Start(
    model=ModelFile("m", "0" * 64, 1, "llama", 2),
    suite=SuiteUsed("s", "about", "d" * 64, asdict(RULES)),
    parts=PARTS,
    n=400,
    seed=0,
    n_ctx=512,
    n_threads=None,
    policies=POLICIES,
    build=None,
    provenance={"argv": ["kvquant"]},
)

INFO = RunInfo(
    suite="s",
    suite_digest="d" * 64,
    seed=0,
    n=400,
    model="m",
    model_report=None,
    base_url="http://127.0.0.1:1/v1",
    tests=(CountedTest("easy", "math", 1.0), CountedTest("hard", "code", 1.0)),
    argv=("kvquant",),
    started="2026-01-01T00:00:00+00:00",
    kvquant_version="0",
    git_commit=None,
    machine={},
)


def run_of(easy: str, hard: str = "") -> Run:
    """A run from one letter per sample: 1 right, 0 wrong."""
    samples = [
        SampleRecord(
            f"{test}/{i}", test, category, Outcome.RIGHT if letter == "1" else Outcome.WRONG, "", 1.0
        )
        for test, category, letters in (("easy", "math", easy), ("hard", "code", hard))
        for i, letter in enumerate(letters)
    ]
    return Run(Path("x"), INFO, tuple(samples))


def kl(mean: float, half: float = 0.0005) -> dict[str, Any]:
    """What the journal holds of a path whose interval is ``half`` to both sides."""
    return {
        "path": "prefill",
        "n_tokens": 1000,
        "mean": mean,
        "interval": [mean - half, mean + half],
        "median": mean,
        "p90": mean,
        "p99": mean,
        "p999": mean,
        "max": mean,
        "top1": {"value": 0.99, "interval": [0.98, 1.0]},
        "delta_p_rms": 0.01,
        "ppl_baseline": 4.0,
        "ppl_policy": 4.1,
    }


def memory(n_bytes: int, findings: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the journal holds of a cache whose three sources say the same."""
    return {
        "kv_bytes_logged": n_bytes,
        "kv_bytes_computed": n_bytes,
        "kv_bytes_slot": n_bytes,
        "peak_rss_bytes": 10 * n_bytes,
        "findings": list(findings),
    }


def rounds_of(speeds: Mapping[str, list[float]]) -> tuple[SpeedRound, ...]:
    """Rounds of one decode timing each, by policy."""
    return tuple(
        SpeedRound(policy, index, policy, "t", 1.0, (SpeedPoint("decode", 64, 8, speed),))
        for policy, found in speeds.items()
        for index, speed in enumerate(found)
    )


RIGHT = "1" * 400


def records(
    q8_0: str = RIGHT,
    q4_0: str = RIGHT,
    kl_of: Mapping[str, float] | None = None,
    **changes: Any,
) -> Records:
    """A validation of three policies that found nothing, but for what is given."""
    kls = {"*:f16": 0.001, "*:q8_0": 0.002, "*:q4_0": 0.003, **(kl_of or {})}
    measured: dict[tuple[str, str], dict[str, Any]] = {}
    for policy, mean in kls.items():
        measured[policy, "divergence prefill"] = kl(mean)
        measured[policy, "tasks"] = {"n_samples": 400}
        measured[policy, "memory"] = memory({"*:f16": 1600, "*:q8_0": 850, "*:q4_0": 450}[policy])
    measured.update(changes.pop("measured", {}))
    dropped = changes.pop("dropped", ())
    kept = {key: value for key, value in measured.items() if key not in dropped}
    journal = Journal(START, kept, {}, (), {})
    runs = {"*:f16": run_of(RIGHT), "*:q8_0": run_of(q8_0), "*:q4_0": run_of(q4_0)}
    return Records(replace(journal, **changes), runs, run_of(RIGHT))
