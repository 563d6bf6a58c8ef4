"""The tables of docs/attention.md, from the records of its measurements, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

SMALL_BATCH_DEPTH = 2048
BUILDS = ("stock", "patched")


def all_tables(record: dict[str, Any]) -> dict[str, str]:
    """Return name -> table: a decode and a prefill table per model, small batches, bandwidth, targets."""
    tables = {}
    for model in record["models"]:
        tables[f"decode {model}"] = speed_table(record, model, "decode")
        tables[f"prefill {model}"] = speed_table(record, model, "256")
    tables["small batches"] = small_batch_table(record)
    tables["bandwidth"] = bandwidth_table(record)
    tables["targets"] = target_table(record)
    return tables


def real_parts(record: dict[str, Any]) -> dict[str, str]:
    """Return the parts of docs/attention.md about real models, by their marks."""
    phases = {"decode": "decode", "prefill": "256"}
    speeds = {
        f"attention: {phase} {model}": speed_table(record, model, what)
        for model in record["models"]
        for phase, what in phases.items()
    }
    parts = {**speeds, "attention: bandwidth": bandwidth_table(record)}
    return {name: table.rstrip() for name, table in parts.items()}


def decode_gains(record: dict[str, Any], model: str, depth: int) -> tuple[str, ...]:
    """Return how many times as fast as stock's f16 a model decodes with f16, q8_0 and q4_0."""
    rows = (find(record, model, "patched", kind, depth, "decode") for kind in ("f16", "q8_0", "q4_0"))
    return tuple(f"{row['times_stock_f16']:.1f}" for row in rows if row is not None)


def speed_table(record: dict[str, Any], model: str, what: str) -> str:
    """Tokens per second by build and type, in parentheses the ratio to stock f16 at the same depth."""
    depths = depths_of(record)
    rows = []
    for build, policy in pairs(record):
        cells = [cell(find(record, model, build, policy, depth, what)) for depth in depths]
        rows.append([build, f"`{policy}`", *cells])
    return markdown(["build", "cache", *(f"depth {depth}" for depth in depths)], rows)


def small_batch_table(record: dict[str, Any]) -> str:
    columns = [(model, batch) for model in record["models"] for batch in ("4", "32")]
    rows = []
    for build, policy in pairs(record):
        found = (find(record, model, build, policy, SMALL_BATCH_DEPTH, batch) for model, batch in columns)
        rows.append([build, f"`{policy}`", *map(cell, found)])
    return markdown(["build", "cache", *(f"{batch} tokens, {model}" for model, batch in columns)], rows)


def bandwidth_table(record: dict[str, Any]) -> str:
    rows = [
        [
            row["model"],
            f"`{row['policy']}`",
            str(row["depth"]),
            f"{row['cache_bytes'] / 2**20:.1f}",
            f"{row['limit_ms']:.1f}",
            f"{row['added_ms']:.1f}",
            f"{row['share_of_limit']:.0%}",
        ]
        for row in record["summary"]["bandwidth"]
        if row["build"] == "patched"
    ]
    rows.sort(key=lambda row: (row[0], row[1], int(row[2])))
    head = [
        "model",
        "cache",
        "depth",
        "MiB a token",
        "limit, ms",
        "added by depth, ms",
        "of the limit's speed",
    ]
    return markdown(head, rows)


def target_table(record: dict[str, Any]) -> str:
    rows = [
        [target["what"].replace(", at least", " | at least"), f"{target['ratio']:.2f}x", met(target)]
        for target in record["summary"]["targets"]
    ]
    return markdown(["what", "target", "measured", "met"], rows)


def divergence_table(record: dict[str, Any]) -> str:
    """From the record of benchmarks/attention_divergence.py."""
    rows = [
        [
            f"`{row['policy']}`",
            row["path"],
            *(f"{mean:.2e} ± {error:.0e}" for mean, error in (row["patched"], row["stock"])),
            f"{row['difference'][0]:+.1e} ± {row['difference'][1]:.0e}",
        ]
        for row in record["rows"]
    ]
    return markdown(["policy", "path", "patched", "stock's attention", "difference"], rows)


def arm_table(record: dict[str, Any]) -> str:
    """From the record of tools/prove_attention_rk.py."""
    rows = [
        [
            f"{count['n_head'] // count['n_head_kv']} heads of {count['head_dim']}",
            f"`{count['k_type']}`",
            str(count["n_tokens"]),
            f"{count['stock']:.0f}",
            f"{count['ours']:.0f}",
            f"{count['ours'] / count['stock']:.2f}",
        ]
        for count in record["counts"]
    ]
    return markdown(["a KV head's group", "cache", "query tokens", "stock", "patched", "ratio"], rows)


def met(target: dict[str, Any]) -> str:
    return "yes" if target["met"] else "**no**"


def depths_of(record: dict[str, Any]) -> list[int]:
    return sorted({row["depth"] for row in record["summary"]["rows"]})


def pairs(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Builds and policies that were measured, stock first."""
    found = {(row["build"], row["policy"]) for row in record["summary"]["rows"]}
    policies = list(dict.fromkeys(row["policy"] for row in record["summary"]["rows"]))
    return [(build, policy) for build in BUILDS for policy in policies if (build, policy) in found]


def find(record: dict[str, Any], *key: str | int) -> dict[str, Any] | None:
    names = ("model", "build", "policy", "depth", "what")
    rows = record["summary"]["rows"]
    return next((row for row in rows if tuple(row[name] for name in names) == key), None)


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    speed = row["tokens_per_second"]
    return f"{speed:.{1 if speed < 100 else 0}f} ({row['times_stock_f16']:.2f}x)"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
