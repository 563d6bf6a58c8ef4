"""What a calibrated K transform does to real models in llama.cpp, on text it was not fitted on.

    python benchmarks/transform_real.py list
    python benchmarks/transform_real.py run --programs "$(kvquant llama build)" smollm2-135m.512

`run` calibrates a model at a context (kvquant calibrate, prose:calibration) and measures policies with and
without the file (kvquant divergence) on held-out prose and on code. Records go to
benchmarks/results/transform, work to runs/transform, from where the same command goes on. docs/transform.md
shows them (benchmarks/transform_tables.py), and a test holds it to them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kvquant.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks/results/transform"
RUNS = ROOT / "runs/transform"
POLICIES = ("q4_0", "q5_0", "*:k=q4_0/v=q8_0")
ROTATED = (
    "q5_0",
    "q4_0",
    *(
        f"*:k={k}/v={v}"
        for k, v in (("q8_0", "q4_0"), ("q8_0", "tq3"), ("q8_0", "tq2"), ("q5_0", "tq3"), ("q4_0", "tq3"))
    ),
    "tq3",
    "tq2",
)
ORDERED = ("*:k=k5x3/v=q4_0", "*:k=k5x3/v=tq3", "*:k=k4x2/v=tq3")
"""Policies of the types that the series adds, beside uniform ones."""

TEXTS = {"prose": "prose:held-out", "code": "code:held-out"}
FITTED_ON = "prose:calibration"


@dataclass(frozen=True)
class Setting:
    """A model calibrated to a context and used at one. fitted_at: None for the context it is used at.

    n_tokens: scored, of each text. n_fit, n_chunks, rounds: of the calibration. types: calibrated for the
    series' own types, ordered, and measured with them.
    """

    model: str
    n_ctx: int
    n_tokens: int
    n_fit: int
    n_chunks: int
    rounds: int = 0
    fitted_at: int | None = None
    policies: tuple[str, ...] = POLICIES
    types: bool = False

    @property
    def name(self) -> str:
        """Of its records."""
        at = "" if self.fitted_at is None else f".fitted-{self.fitted_at}"
        return f"{self.model}.{self.n_ctx}{at}{'.types' * self.types}"

    @property
    def caches(self) -> list[str]:
        """The policies with the transform and without; ordered keys are nothing without."""
        pairs = [name for policy in self.policies for name in (policy, f"{policy}@no-transform")]
        return [*pairs, *(ORDERED if self.types else ())]

    @property
    def sidecar(self) -> Path:
        """The file that is calibrated, or was for another setting."""
        return RUNS / f"{self.model}.{self.fitted_at or self.n_ctx}{'.types' * self.types}.kvt.gguf"


# Fewer tokens of Gemma and Qwen, whose vocabularies of 262,144 and 151,936 take longer than all else.
SETTINGS = (
    Setting("smollm2-135m", 512, 255, 16384, 8),
    Setting("gemma3-270m", 512, 255, 16384, 2),
    Setting("qwen2.5-coder-0.5b", 512, 255, 16384, 2),
    Setting("smollm2-135m", 512, 255, 4096, 2, policies=ROTATED, types=True),
    Setting("gemma3-270m", 512, 255, 4096, 2, policies=ROTATED, types=True),
    Setting("qwen2.5-coder-0.5b", 512, 255, 4096, 2, policies=ROTATED, types=True),
    Setting("qwen2.5-coder-1.5b", 512, 255, 4096, 2, policies=ROTATED, types=True),
    Setting("smollm2-135m", 4096, 2047, 0, 0, fitted_at=512, policies=("*:k=q4_0/v=f16",)),
    Setting("qwen2.5-coder-0.5b", 4096, 2047, 0, 0, fitted_at=512, policies=("*:k=q4_0/v=f16",)),
    Setting("smollm2-135m", 4096, 2047, 16384, 1, policies=("q4_0", "*:k=q4_0/v=f16")),
    Setting("gemma3-270m", 4096, 256, 16384, 1, policies=("q4_0", "*:k=q4_0/v=f16")),
    Setting("gemma3-270m", 16384, 256, 0, 0, fitted_at=4096, policies=("q4_0",)),
    Setting("qwen2.5-coder-0.5b", 4096, 2047, 16384, 1, policies=("q4_0", "*:k=q4_0/v=f16")),
    Setting("qwen2.5-coder-0.5b", 16384, 256, 0, 0, fitted_at=4096, policies=("q4_0",)),
)


def run(setting: Setting, programs: Path, n_threads: int) -> None:
    """Calibrate and measure what is not there yet."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    common = ["--model", setting.model, "--llama-bin", str(programs), "--threads", str(n_threads), "--json"]
    record = RECORDS / f"{setting.name}.calibration.json"
    if setting.fitted_at is None and not record.exists():
        chosen = ["--ctx", str(setting.n_ctx), "--tokens", str(setting.n_fit)]
        chosen += ["--chunks", str(setting.n_chunks), "--rounds", str(setting.rounds)]
        chosen += ["--policy", ORDERED[-1]] if setting.types else []
        work = RUNS / f"{setting.name}.work"
        where = ["--text", FITTED_ON, "--output", str(setting.sidecar), "--work", str(work)]
        keep(["calibrate", *common, *where, *chosen], record, also=(3,))
    if not setting.sidecar.exists():
        print(f"{setting.name}: no transform helps; nothing to measure", file=sys.stderr)
        return
    for name, text in TEXTS.items():
        found = RECORDS / f"{setting.name}.{name}.json"
        if found.exists():
            continue
        options = [part for policy in setting.caches for part in ("--policy", policy)]
        where = ["--out", str(RUNS / f"{setting.name}.{name}"), "--ctx", str(setting.n_ctx)]
        tokens = ["--tokens", str(setting.n_tokens), "--transform", str(setting.sidecar)]
        keep(["divergence", *common, "--text", text, *where, *tokens, *options], found)


def keep(words: list[str], record: Path, also: tuple[int, ...] = ()) -> None:
    """Run a command of kvquant and keep the document it prints; exit codes that are answers count as well."""
    done = subprocess.run([sys.executable, "-m", "kvquant", *words], stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, *also):
        raise SystemExit(f"kvquant {words[0]} ended with {done.returncode}")
    write_atomic(record, json.dumps(json.loads(done.stdout), indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the names of the settings")
    running = commands.add_parser("run", help="calibrate and measure")
    running.add_argument("--programs", type=Path, required=True, help="folder of the patched programs")
    running.add_argument("--threads", type=int, default=1)
    running.add_argument("names", nargs="*", help="settings; all where none is named")
    options = parser.parse_args()
    if options.command == "list":
        print("\n".join(setting.name for setting in SETTINGS))
        return
    for setting in SETTINGS:
        if not options.names or setting.name in options.names:
            run(setting, options.programs, options.threads)


if __name__ == "__main__":
    main()
