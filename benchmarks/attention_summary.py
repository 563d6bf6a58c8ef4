"""What the runs of benchmarks/attention.py say: medians, ratios to stock f16, targets, bandwidth."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

QUANTIZED = ("q8_0", "q4_0", "0-10:q8_0,11-27:q4_0", "*:k=q8_0/v=q4_0")
NOT_SLOWER = 0.97
"""A ratio from here on is not called slower: two runs of the same build differ by about as much."""
AS_FAST_AS_F16 = 0.98
"""What a quantized cache may cost at depth 0 of a real model."""

Key = tuple[str, str, str, int, str]
"""Model, build, policy, depth, and "decode" or the tokens of the batch."""


def speeds(record: dict[str, Any]) -> dict[Key, list[float]]:
    """Return the tokens per second of every run."""
    found: dict[Key, list[float]] = defaultdict(list)
    for run in record["runs"]:
        for point in run["points"]:
            for what, speed in {"decode": point["decode"], **point["batches"]}.items():
                found[run["model"], run["build"], run["policy"], point["depth"], str(what)].append(speed)
    return found


def summarize(record: dict[str, Any]) -> dict[str, Any]:
    """Return medians with their ratio to stock f16, the targets, and how near decoding is to the memory."""
    found = speeds(record)
    medians = {key: statistics.median(values) for key, values in found.items()}
    rows = [
        {
            **dict(zip(("model", "build", "policy", "depth", "what"), key, strict=True)),
            "tokens_per_second": round(median, 2),
            "least_and_most": [round(min(found[key]), 2), round(max(found[key]), 2)],
            "times_stock_f16": _rounded(_ratio(medians, key)),
            "times_stock": _rounded(_ratio(medians, key, key[2])),
        }
        for key, median in medians.items()
    ]
    bandwidth = statistics.median(run["bandwidth"] for run in record["runs"])
    return {
        "n_rounds": len({run["round"] for run in record["runs"]}),
        "worst_others_share": max(run["others_share"] for run in record["runs"]),
        "bandwidth_gb_per_s": round(bandwidth / 1e9, 2),
        "rows": rows,
        "targets": [
            target
            for model, about in record["models"].items()
            for target in (random_targets if "arch" in about else real_targets)(medians, model)
        ],
        "bandwidth": list(bandwidth_shares(record, medians, bandwidth)),
    }


def _ratio(medians: dict[Key, float], key: Key, policy: str = "f16") -> float | None:
    model, _, _, depth, what = key
    stock = medians.get((model, "stock", policy, depth, what))
    return medians[key] / stock if stock else None


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 3)


def check(
    medians: dict[Key, float], least: float, key: Key, build: str = "stock", than: str = "f16"
) -> Iterator[dict[str, Any]]:
    """Yield one target with the ratio that was measured, if both sides were."""
    model, _, policy, depth, what = key
    other = (model, build, than, depth, what)
    if key in medians and other in medians:
        ratio = medians[key] / medians[other]
        named = "decode" if what == "decode" else f"{what} tokens"
        yield {
            "what": f"{model}, {policy}, {named} at depth {depth}, at least {least}x {build} {than}",
            "ratio": round(ratio, 3),
            "met": ratio >= least,
        }


def random_targets(medians: dict[Key, float], model: str) -> Iterator[dict[str, Any]]:
    """Yield what is asked of models that spend most of their time in attention."""
    for policy in QUANTIZED:
        yield from check(medians, 1.0, (model, "patched", policy, 2048, "256"))
        yield from check(medians, 2.5, (model, "patched", policy, 2048, "decode"))
        yield from check(medians, 4.0, (model, "patched", policy, 8192, "decode"))
    for what in ("decode", "4", "32", "256"):
        for depth in (0, 512, 2048, 8192):
            yield from check(medians, NOT_SLOWER, (model, "patched", "f16", depth, what))
        for policy in ("q8_0", "q4_0"):
            yield from check(medians, NOT_SLOWER, (model, "patched", policy, 0, what), than=policy)


def real_targets(medians: dict[Key, float], model: str) -> Iterator[dict[str, Any]]:
    """Yield what is asked of real models: nowhere slower than stock's f16, at depth 0 as fast as f16."""
    depths = sorted({key[3] for key in medians if key[0] == model})
    for policy in ("f16", *QUANTIZED):
        for depth in depths:
            yield from check(medians, NOT_SLOWER, (model, "patched", policy, depth, "256"))
            yield from check(medians, NOT_SLOWER, (model, "patched", policy, depth, "decode"))
    for policy in QUANTIZED:
        for what in ("decode", "256"):
            yield from check(medians, AS_FAST_AS_F16, (model, "patched", policy, 0, what), build="patched")


def bandwidth_shares(
    record: dict[str, Any], medians: dict[Key, float], bandwidth: float
) -> Iterator[dict[str, Any]]:
    """Yield, for every decode behind a filled cache, the time that reading the cache takes at the measured
    bandwidth, and the time the depth adds to a token.
    """
    for key, median in medians.items():
        model, build, policy, depth, what = key
        if what != "decode" or depth == 0:
            continue
        n_bytes = depth * record["models"][model]["cache_bytes_per_token"][policy]
        added = 1 / median - 1 / medians[(model, build, policy, 0, "decode")]
        yield {
            **dict(zip(("model", "build", "policy", "depth"), key, strict=False)),
            "cache_bytes": n_bytes,
            "limit_ms": round(1e3 * n_bytes / bandwidth, 2),
            "added_ms": round(1e3 * added, 2),
            "share_of_limit": round(n_bytes / bandwidth / added, 3),
        }
