"""`kvquant policy` as a user meets it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from command_line import run_kvquant
from kvquant.cli.policy import policy


def _run(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(policy, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout, result.stderr


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" 11-31:Q4_0, 0-10:q8_0", "0-10:q8_0,11-31:q4_0"),
        ("hybrid", "0-10:q8_0,11-31:q4_0"),
        ("q5_1", "*:q5_1"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert _run(text) == (canonical + "\n", "")
    assert json.loads(_run(text, "--json")[0]) == {"policy": canonical}


def test_the_list_of_presets() -> None:
    lines = _run("--list")[0].splitlines()
    assert [line.split()[:2] for line in lines[:5]] == [
        ["f16", "*:f16"],
        ["q8_0", "*:q8_0"],
        ["k8v4", "*:k=q8_0/v=q4_0"],
        ["hybrid", "0-10:q8_0,11-31:q4_0"],
        ["q4_0", "*:q4_0"],
    ]
    listed = json.loads(_run("--list", "--json")[0])
    assert [preset["name"] for preset in listed["presets"]] == ["f16", "q8_0", "k8v4", "hybrid", "q4_0"]
    for preset in listed["measured"]:
        assert f"  {preset['policy']}" in lines


def test_layers_of_a_hybrid_model() -> None:
    stdout, stderr = _run("kv0-kv1:q8_0,0:f32", "--shape", "qwen3.5-2b", "--default", "k=q5_0/v=q4_0")
    assert stdout.splitlines()[0] == "0:f32,kv0-kv1:q8_0"
    rows = [line.split() for line in stdout.splitlines()[2:]]
    assert rows[:3] == [["3", "0", "q8_0", "q8_0"], ["7", "1", "q8_0", "q8_0"], ["11", "2", "q5_0", "q4_0"]]
    assert stderr.startswith(
        "kvquant: warning: policy: '0:f32' has no effect, it names no layer of Qwen3.5 2B"
    )


def test_json_of_a_hybrid_model() -> None:
    document = json.loads(_run("kv0:q8_0,40:f16", "--shape", "qwen3.5-2b", "--json")[0])
    assert document["policy"] == "40:f16,kv0:q8_0"
    assert document["layers"][0] == {"layer": 3, "kv_index": 0, "k": {"type": "q8_0"}, "v": {"type": "q8_0"}}
    assert [warning["code"] for warning in document["warnings"]] == ["clipped", "no-effect"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0-3:q80"], "column 5: unknown type 'q80', did you mean q8_0?"),
        (["q80"], "unknown preset 'q80', did you mean q8_0?"),
        ([], "no POLICY; give one such as k8v4, or --list"),
        (["*:q8_0", "--shape", "llama-3.1-8b", "--default", "q80"], "--default 'q80'"),
        (["3:f16,kv0:f16", "--shape", "qwen3.5-2b"], "both name layer 3 (kv0)"),
    ],
)
def test_errors_end_with_status_2(arguments: list[str], message: str) -> None:
    done = run_kvquant("policy", *arguments)
    assert done.returncode == 2
    assert done.stdout == "" and message in done.stderr and "Traceback" not in done.stderr
