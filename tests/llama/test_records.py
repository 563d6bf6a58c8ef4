"""The committed records of the heavy proofs say what the documents say, and what they must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvquant.shipped import checkout_root

ROOT = checkout_root() or Path()


def record(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "benchmarks/results" / name).read_text())
    return loaded


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_the_rk3588_record() -> None:
    made, text = record("rk3588.json"), document("rk3588.md")
    features = made["build"]["features"]
    assert features["sdot"] > 500
    assert features["fp16_fmla"] > 100
    assert features["system_info"]["DOTPROD"] == features["system_info"]["FP16_VA"] == 1
    assert f"- {features['sdot']:,} `sdot` and {features['fp16_fmla']} 16-bit `fmla`" in text
    assert f"needs glibc {features['glibc']}" in text
    for run in made["runs"]:
        assert run["same_cache"]
        tokens = "yes" if run["same_tokens"] else "no"
        assert f"| {run['arch']} | `{run['policy']}` | {run['n_bytes']:,} | yes | {tokens} |" in text


def test_the_patch_matrix_record() -> None:
    made, text = record("patch-matrix.json"), document("patching.md")
    assert len(made["trees"]) == 4
    assert f"`{made['series_digest'][:12]}`" in text
    for row in made["trees"]:
        fitting = f"{row['edits'] - row['skipped']} | {row['skipped']} | yes | yes"
        built = ", ".join(row["built"]) or "not run"
        assert f"| {row['sdist']} | `{row['commit'][:12]}` | {fitting} | {built} |" in text
        proven = (row["drifted"], row["git_applies"], row["same_as_apply"], row["reverts"])
        assert proven == (0, True, True, True)
        if row["built"]:
            assert {"llama-server", "llama-bench"} <= set(row["built"])
            assert row["kv_layers"]
            assert row["vectors_hold"]
            assert row["serves_mixed"]


def test_the_sanitizer_record() -> None:
    made, text = record("sanitize.json"), document("patching.md")
    assert f"{len(made['findings'])} findings" in text
    assert made["tests"].strip("= ") in text


@pytest.mark.parametrize("name", ["rk3588.json", "patch-matrix.json", "sanitize.json"])
def test_records_name_no_folder_of_the_machine_they_were_made_on(name: str) -> None:
    text = json.dumps(record(name))
    assert not any(part in text for part in ('"/home', '"/root', '"/work', '"/tmp'))
