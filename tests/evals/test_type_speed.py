"""`kvquant search --min-speed`: which types are timed, which are left out, and what is kept of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError, LlamaError, UsageError
from kvquant.evals.type_speed import N_ROUNDS, SpeedPlan, fast_enough, slow_types, type_speeds
from kvquant.results.search import TypeSpeed
from kvquant.results.validation import Speed
from kvquant.schemas import schema_text
from kvquant.shipped import reference_model

HERE = Path(__file__).parent
RATES = {"f16": 100.0, "q8_0": 95.0, "q5_0": 60.0, "q4_0": 80.0}

BENCH = """
import itertools, json, sys
from pathlib import Path
options = dict(itertools.pairwise(sys.argv))
policy, depth = options["--kv-layers"], int(options["--n-depth"])
here = Path(__file__).parent
with (here / "runs").open("a") as file:
    print(policy, depth, file=file)
rates = json.loads((here / "rates").read_text())
rate = rates[policy.removeprefix("*:")]
if rate is None:
    sys.exit("error: failed to create context")
for n_prompt, n_gen in ((int(options["--n-prompt"]), 0), (0, int(options["--n-gen"]))):
    print(json.dumps({"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth, "kv_layers": policy,
                      "avg_ts": rate if n_gen else 1000.0}))
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "llama-bench": BENCH,
        "llama-kv-divergence": (HERE / "fake_divergence_by_costs.py").read_text(),
    }
    for name, script in scripts.items():
        (folder / f"{name}.py").write_text(script)
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {folder / name}.py "$@"\n')
        (folder / name).chmod(0o755)
    (folder / "rates").write_text(json.dumps(RATES))
    for name in ("fit", "held-out"):
        (tmp_path / name).write_text(f"the {name} text")
    return folder


def runs(programs: Path) -> list[str]:
    return (programs / "runs").read_text().splitlines()


def search(programs: Path, *more: str) -> Result:
    texts = ["--text", str(programs.parent / "fit"), "--held-out", str(programs.parent / "held-out")]
    argv = ["search", "--model", str(reference_model()), *texts, "--llama-bin", str(programs)]
    argv += ["--chunk", "256", "--tokens", "191", "--random", "0", "--ctx", "1024", "--budget", "0.6x"]
    return CliRunner().invoke(kvquant, [*argv, "--types", "q8_0,q5_0,q4_0", *more])


def test_slow_types_are_left_out_and_said(programs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = search(programs, "--min-speed", "0.75", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    jsonschema.validate(found, json.loads(schema_text("search")))
    assert found["types"] == ["f16", "q8_0", "q4_0"] and "q5_0" not in found["policy"]
    assert found["min_speed"] == 0.75
    assert {entry["type"]: entry["decode"]["ratio"] for entry in found["speeds"]} == {
        "f16": 1.0, "q8_0": 0.95, "q5_0": 0.6, "q4_0": 0.8,
    }  # fmt: skip
    assert all(entry["decode"]["depth"] == 512 for entry in found["speeds"])  # half of --ctx
    assert "q5_0 is left out: slower than 0.75 times f16" in done.stderr
    assert "were left out" in (out / "search.html").read_text()
    n_runs = len(runs(programs))
    assert n_runs == N_ROUNDS * len(RATES)
    again = search(programs, "--min-speed", "0.5", "--out", str(out))
    assert again.exit_code == 0 and len(runs(programs)) == n_runs, "timed again what is known"
    assert [line.split()[0] for line in again.stdout.splitlines() if line.endswith("yes")] == list(RATES)


def test_without_the_option_nothing_is_timed(programs: Path) -> None:
    done = search(programs, "--json")
    assert done.exit_code == 0 and not (programs / "runs").exists()
    assert (json.loads(done.stdout)["min_speed"], json.loads(done.stdout)["speeds"]) == (None, [])


@pytest.mark.parametrize(
    ("rates", "min_speed", "kind", "says"),
    [
        ({}, "0.99", UsageError, "leaves no type but f16; the fastest, q8_0, reaches 0.950 of its rate"),
        ({"q5_0": None}, "0.5", LlamaError, "timing q5_0: llama-bench ended with status 1: "),
        ({"q8_0": 0.0}, "0.5", LlamaError, "timing q8_0: llama-bench: 0 tokens/s at depth 512"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    rates: dict[str, float | None], min_speed: str, kind: type[KVQuantError], says: str, programs: Path
) -> None:
    (programs / "rates").write_text(json.dumps(RATES | rates))
    done = search(programs, "--min-speed", min_speed)
    assert isinstance(done.exception, kind) and says in str(done.exception)
    assert "\n" not in str(done.exception)


def test_finished_rounds_are_kept_and_other_depths_are_others(programs: Path, tmp_path: Path) -> None:
    (programs / "rates").write_text(json.dumps(RATES | {"q4_0": None}))
    types, folder = tuple(RATES), tmp_path / "out"
    plan = SpeedPlan(programs, reference_model(), 256)
    with pytest.raises(LlamaError, match="timing q4_0"):
        type_speeds(plan, types, "f16", folder)
    (programs / "rates").write_text(json.dumps(RATES))
    found = type_speeds(plan, types, "f16", folder)
    assert [one.decode.n_rounds for one in found] == [N_ROUNDS] * 4
    assert len(runs(programs)) == 4 * N_ROUNDS + 1  # the failed one alone ran twice
    deeper = type_speeds(SpeedPlan(programs, reference_model(), 512), types, "f16", folder)
    assert {one.decode.depth for one in deeper} == {512} and len(runs(programs)) == 8 * N_ROUNDS + 1


def speed(name: str, ratio: float | None) -> TypeSpeed:
    return TypeSpeed(name, Speed("decode", 256, 10.0, ratio, None, 3))


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 2), max_size=6), st.floats(0.01, 1))
def test_what_is_kept_reaches_the_share(ratios: dict[str, float], least: float) -> None:
    speeds = [speed("f16", 1.0), *(speed(name, ratio) for name, ratio in ratios.items())]
    enough = {name for name, ratio in ratios.items() if ratio >= least}
    assert set(slow_types(speeds, least)) == ratios.keys() - enough
    if ratios and not enough:
        with pytest.raises(UsageError, match="leaves no type"):
            fast_enough(speeds, least, "f16")
    else:
        assert fast_enough(speeds, least, "f16") == ("f16", *(name for name in ratios if name in enough))
