"""A validation made up for the report's tests: every verdict, unknown numbers, a failure, many layers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from kvquant.documents import to_json
from kvquant.results.comparison import Estimate, Interval, Rate, TaskRow, Verdict
from kvquant.results.validation import (
    Chat,
    Divergence,
    Failure,
    Floor,
    LayerBytes,
    Memory,
    ModelFile,
    PolicyResult,
    PositionBin,
    Speed,
    SuiteUsed,
    ValidationResult,
    parse_result,
)

RULES = {"alpha": 0.05, "power": 0.8, "disagreement": 0.05, "safe_loss": 0.05, "broken_loss": 0.25}
CATEGORIES = ("factual", "code", "instruction", "tool calls", "recall 512", "total")
N_LAYER = 32
ROW_BYTES = {"f16": 256, "q8_0": 136, "q5_0": 88, "q4_0": 72}
N_CELLS = 4096


def memory(types: list[str], findings: tuple[str, ...] = ()) -> Memory:
    layers = tuple(
        LayerBytes(i, name, name, ROW_BYTES[name] * N_CELLS, ROW_BYTES[name] * N_CELLS)
        for i, name in enumerate(types)
    )
    size = sum(layer.k_bytes + layer.v_bytes for layer in layers)
    full = 2 * N_LAYER * ROW_BYTES["f16"] * N_CELLS
    return Memory(size, size, size, size + 180 * 2**20, size / full, findings, layers)


def tasks(n_lost: int, n_gained: int, verdict: Verdict, n: int = 40) -> tuple[TaskRow, ...]:
    rows = []
    for index, category in enumerate(CATEGORIES):
        total = category == "total"
        scale = len(CATEGORIES) - 1 if total else 1
        lost, gained = n_lost * scale // (1 if total else 1 + index), n_gained * scale
        size = n * scale
        change = (gained - lost) / size
        rows.append(
            TaskRow(
                category,
                size,
                int(size * 0.8) - lost,
                lost,
                gained,
                Rate(0.8, Interval(0.74, 0.86)),
                Rate(0.8 + change, Interval(0.73 + change, 0.87 + change)),
                Estimate(change, Interval(change - 0.12 / scale**0.5, change + 0.1 / scale**0.5)),
                0.04,
                0.2,
                0.098 / scale**0.5,
                verdict,
            )
        )
    return tuple(rows)


def divergence(mean: float) -> tuple[Divergence, ...]:
    bins = tuple(PositionBin(i * 256, i * 256 + 255, mean * (0.5 + 0.3 * i)) for i in range(8))
    tail = {"p90": 3 * mean, "p99": 20 * mean, "p999": 90 * mean, "max": 400 * mean}
    return tuple(
        Divergence(
            path,
            2048,
            factor * mean,
            Interval(0.8 * factor * mean, 1.3 * factor * mean),
            0.2 * mean,
            **tail,
            top1=Estimate(1 - mean / 2, Interval(0.9, 0.99)),
            delta_p_rms=mean**0.5 / 3,
            ppl_baseline=5.321,
            ppl_policy=5.321 * (1 + mean),
            floor=Floor(0.00004, Interval(0.00003, 0.00005)),
            by_position=bins,
        )
        for path, factor in (("prefill", 0.9), ("decode", 1.0))
    )


def speed(factor: float, n_rounds: int = 6) -> tuple[Speed, ...]:
    rows = []
    for phase, fast in (("prefill", 900.0), ("decode", 90.0)):
        for i, depth in enumerate((0, 1024, 4096)):
            ratio = factor ** (i if phase == "prefill" else i / 6)
            interval = Interval(0.95 * ratio, 1.04 * ratio) if n_rounds > 5 and factor != 1 else None
            rows.append(Speed(phase, depth, fast / (1 + i) * ratio, ratio, interval, n_rounds))
    return tuple(rows)


def policy(
    label: str, text: str, types: list[str], verdict: Verdict, mean: float, factor: float
) -> PolicyResult:
    lost = {Verdict.BROKEN: 25, Verdict.COSTS: 6}.get(verdict, 1)
    return PolicyResult(
        label,
        text,
        verdict,
        (f"lost {lost} of 200 right answers, p = 0.03", f"mean KL {mean:g} nats"),
        memory(types),
        tasks(lost, 1, verdict),
        (),
        divergence(mean),
        speed(factor),
        Chat(0.31 / factor, 60 * factor, 4, 585, 192),
    )


HYBRID = "0-10:q8_0,11-31:q4_0"
LOG = "logs/q4_0.tasks.log"
HOSTILE = "</td><script>alert(1)</script><img src=x onerror=1>&lt;|`*_[a](b)\u202e\x00\x1b[31m $x$ ${y}"


def sample() -> ValidationResult:
    baseline = PolicyResult(
        "f16",
        "*:f16",
        Verdict.BASELINE,
        (),
        memory(["f16"] * N_LAYER),
        tasks(0, 0, Verdict.SAFE),
        tasks(1, 1, Verdict.CANNOT_TELL),
        (),
        speed(1.0),
        Chat(0.31, 60.0, 4, 585, 192),
    )
    q5 = policy("q5_0", "*:q5_0", ["q5_0"] * N_LAYER, Verdict.CANNOT_TELL, 0.004, 0.7)
    broken = policy("*:k=q4_0/v=f16", "*:k=q4_0", ["q4_0"] * N_LAYER, Verdict.BROKEN, 0.9, 0.5)
    others = (
        policy("q8_0", "*:q8_0", ["q8_0"] * N_LAYER, Verdict.SAFE, 0.0003, 0.9),
        policy(HYBRID, HYBRID, ["q8_0"] * 11 + ["q4_0"] * 21, Verdict.COSTS, 0.012, 0.6),
        replace(q5, memory=None, chat=None, speed=speed(0.7, n_rounds=2)),
        replace(broken, memory=memory(["q4_0"] * N_LAYER, ("slot, a row of layer 3, V: f16 with 256 B",))),
        PolicyResult(
            "q4_0",
            "*:q4_0",
            Verdict.FAILED,
            ("llama-server ended with status 134: GGML_ASSERT(n > 0) failed",),
            failures=(Failure("tasks", "llama-server ended with status 134", LOG),),
        ),
    )
    return ValidationResult(
        ModelFile("kvquant reference", "ab" * 32, 11605952, "qwen3", N_LAYER),
        SuiteUsed("standard", "everything, as far as a small model can answer it", "0123456789abcdef", RULES),
        {
            "git_commit": "0" * 40,
            "argv": ["kvquant", "validate", "--policy", HYBRID],
            "machine": {"arch": "x86_64", "board": None, "cores": [{"index": 0}, {"index": 1}]},
            "policies_tried": ["f16", "q8_0"],
        },
        "f16",
        (baseline, *others),
    )


def sample_document() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(to_json(sample()))
    return document


def hostile_sample() -> ValidationResult:
    """The result with a text that wants out in every place for text."""

    def spoilt(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {
                (HOSTILE if key == "provenance" else name): spoilt(item, name) for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [spoilt(item, key) for item in value]
        kept = {"verdict", "path", "phase", "label", "baseline", "category"}
        return HOSTILE + value if isinstance(value, str) and key not in kept else value

    document = spoilt(sample_document())
    for policy in document["policies"]:
        policy["label"] += HOSTILE
    return parse_result({**document, "baseline": document["baseline"] + HOSTILE}, "hostile")
