"""A small suite, runs of it in this process, and what they left."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from kvquant.cli.main import kvquant
from kvquant.errors import KVQuantError
from kvquant.evals.outcome import Outcome
from kvquant.evals.records import read_run

RULES = """
[rules]
alpha = 0.05
power = 0.8
disagreement = 0.05
safe_loss = 0.05
broken_loss = 0.25
"""

# Small and without code to run, so that a run takes a fraction of a second.
SUITE = f"""
[suite]
name = "small"
about = "for tests"
n = 4
max_tokens = 64
{RULES}[[test]]
task = "speed_distance"
category = "math"
weight = 1.0
[[test]]
task = "calculator"
category = "tools"
weight = 2.0
[[test]]
task = "web_search"
category = "tools"
weight = 2.0
"""


def write_suite(folder: Path) -> Path:
    """Write the suite; its runs go beside it, to ``out``."""
    path = folder / "small.toml"
    path.write_text(SUITE)
    return path


def run(url: str, suite: Path, *more: str) -> Result:
    arguments = ["eval", "--base-url", url, "--suite", str(suite), "--out", str(suite.parent / "out"), *more]
    return CliRunner().invoke(kvquant, arguments)


def failure(result: Result, kind: type[KVQuantError]) -> str:
    assert isinstance(result.exception, kind), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


def outcomes(suite: Path) -> list[Outcome]:
    return [sample.outcome for sample in read_run(suite.parent / "out").samples]
