"""What cache policies do to real language models: measured model by model, and written up from the records.

    python tools/real_models.py measure --programs "$(kvquant llama build)" --text prose.txt
    python tools/real_models.py page

`measure` runs `kvquant divergence` for each model and setting, in the order of PLAN, and goes on where it
stopped: tokens are kept under runs/real, what they come to under eval/results/real/divergence. `page` writes
eval/results/real/README.md from those records, which a test holds to it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvquant.documents import read_json, write_json
from kvquant.evals.divergence import FeedPath
from kvquant.evals.divergence_run import (
    UNROTATED,
    DivergencePlan,
    plan_policies,
    run_divergence,
)
from kvquant.files import write_atomic
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.results.divergence import DivergenceResult, PolicyDivergence

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "eval/results/real/divergence"
PAGE = ROOT / "eval/results/real/README.md"
RUNS = ROOT / "runs/real"


@dataclass(frozen=True)
class Setting:
    """One run of the program: a model by name, tokens of a chunk, the path, and scored tokens."""

    model: str
    n_ctx: int
    path: FeedPath
    n_tokens: int

    @property
    def name(self) -> str:
        """The name of its record."""
        return f"{self.model}.{self.n_ctx}.{self.path}"


PLAN = (
    Setting("qwen2.5-coder-0.5b", 512, "prefill", 255),
    Setting("smollm2-135m", 512, "prefill", 512),
    Setting("gemma3-270m", 512, "prefill", 512),
    Setting("qwen2.5-coder-1.5b", 512, "prefill", 512),
    Setting("smollm2-135m", 4096, "prefill", 2048),
    Setting("gemma3-270m", 4096, "prefill", 2048),
    Setting("qwen2.5-coder-0.5b", 4096, "prefill", 2048),
)
"""The most telling first."""

EDGE = 4
"""Layers at each end that a rule of thumb keeps at q8_0."""

TITLES = {"smollm2-135m": "SmolLM2-135M-Instruct", "gemma3-270m": "Gemma 3 270M"}
TITLES |= {f"qwen2.5-coder-{size}b": f"Qwen2.5-Coder-{size}B-Instruct" for size in ("0.5", "1.5")}


INTRODUCTION = """# Real language models

Mean KL divergence from a float16 cache in nats a token, with its 95 % interval; the share of tokens whose
most likely successor is the same; perplexity of the text. Rotation is llama.cpp's own. Each table is one run
of `kvquant divergence`, with its record beside this page. `make real` goes on with what is missing; this page
is written from the records by `tools/real_models.py page`."""


def policies_for(n_layer: int) -> dict[str, str]:
    """Return the policies by the name that the page gives them, for a model of so many layers."""
    inner = f"{EDGE}-{n_layer - EDGE - 1}"
    return {
        "q8_0": "*:q8_0",
        "k8v4": "*:k=q8_0/v=q4_0",
        "q5_1": "*:q5_1",
        "q5_0": "*:q5_0",
        "iq4_nl": "*:iq4_nl",
        "q4_1": "*:q4_1",
        "q4_0": "*:q4_0",
        "hybrid (0-10 q8_0, rest q4_0)": f"0-10:q8_0,11-{n_layer - 1}:q4_0",
        "its mirror (0-10 q4_0, rest q8_0)": f"0-10:q4_0,11-{n_layer - 1}:q8_0",
        f"first and last {EDGE} q8_0, rest q4_0": (
            f"0-{EDGE - 1}:q8_0,{inner}:q4_0,{n_layer - EDGE}-{n_layer - 1}:q8_0"
        ),
    }


def measure(
    programs: Path, setting: Setting, model: Path, text: Path, n_threads: int, *, rotated_only: bool
) -> DivergenceResult:
    """Measure what is missing of a setting and write its record."""
    opened = open_model(model)
    shape = shape_of(opened)
    texts = list(policies_for(shape.n_layer).values())
    if not rotated_only:
        texts += [f"{policy}@{UNROTATED}" for policy in texts]
    plan = DivergencePlan(
        programs=programs,
        model=opened,
        shape=shape,
        texts=(text,),
        path=setting.path,
        n_ctx=setting.n_ctx,
        n_tokens=setting.n_tokens,
        policies=plan_policies(texts, shape, setting.n_ctx, setting.path, rotation=True),
        n_threads=n_threads,
        n_jobs=n_threads,
    )

    def show(done: int, planned: int) -> None:
        print(f"\r{setting.name}: {done}/{planned} chunks of policies", end="", file=sys.stderr, flush=True)

    result = run_divergence(plan, RUNS / setting.name, ["tools/real_models.py", "measure"], show)
    print(file=sys.stderr)
    RECORDS.mkdir(parents=True, exist_ok=True)
    write_json(RECORDS / f"{setting.name}.json", result)
    return result


def records() -> list[tuple[Setting, DivergenceResult]]:
    """Read the records that are there, in the order of the plan."""
    found = []
    for setting in PLAN:
        path = RECORDS / f"{setting.name}.json"
        if path.exists():
            found.append((setting, read_json(DivergenceResult, path)))
    return found


def page(found: Sequence[tuple[Setting, DivergenceResult]]) -> str:
    """Return the page on all records."""
    lines = [INTRODUCTION]
    for setting, result in found:
        lines += ["", *_section(setting, result)]
    return "\n".join(lines) + "\n"


def _section(setting: Setting, result: DivergenceResult) -> Iterator[str]:
    start, floor = result.start, result.floor
    yield f"## {TITLES[setting.model]}, chunks of {setting.n_ctx}, {setting.path}"
    yield ""
    yield (
        f"{result.n_tokens:,} tokens of {start.texts[0].name} scored; float16 perplexity "
        f"{_digits(result.baseline_perplexity)}; floor {_digits(floor and floor.kl_mean)}."
    )
    yield f"[Record](divergence/{setting.name}.json), model sha256 `{start.model.sha256[:16]}`."
    yield ""
    yield "| policy | of f16 | KL | same top | perplexity | KL, not rotated |"
    yield "|---|---|---|---|---|---|"
    measured = {(policy.policy, policy.rotation): policy for policy in result.policies}
    n_layer = 1 + max(
        int(word) for policy in result.policies for word in re.findall(r"-(\d+)", policy.policy)
    )
    for name, policy in policies_for(n_layer).items():
        rotated, plain = measured.get((policy, True)), measured.get((policy, False))
        if rotated is not None:
            yield (
                f"| {name} | {rotated.of_f16:.3f} | {_kl(rotated)} | {_share(rotated.top1)} "
                f"| {_digits(rotated.perplexity)} | {'' if plain is None else _kl(plain)} |"
            )


def _kl(policy: PolicyDivergence) -> str:
    if policy.kl_mean is None:
        return policy.failure or "unknown"
    if policy.kl_low is None or policy.kl_high is None:
        return _digits(policy.kl_mean)
    return f"{_digits(policy.kl_mean)} ({_digits(policy.kl_low)} to {_digits(policy.kl_high)})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _digits(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}" if value < 10 else f"{value:.3g}"


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure what is missing")
    measuring.add_argument("--programs", type=Path, required=True, help="folder of llama-kv-divergence")
    measuring.add_argument("--text", type=Path, required=True, help="prose")
    measuring.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    measuring.add_argument("--rotated-only", action="store_true", help="leave the runs without rotation out")
    measuring.add_argument(
        "--only", action="append", help="settings by name, such as smollm2-135m.512.prefill"
    )
    commands.add_parser("page", help="write the page from the records")
    options = parser.parse_args()
    if options.command == "measure":
        for setting in PLAN:
            if not options.only or setting.name in options.only:
                model = _model(setting.model)
                measure(
                    options.programs,
                    setting,
                    model,
                    options.text,
                    options.threads,
                    rotated_only=options.rotated_only,
                )
                write_atomic(PAGE, page(records()))
    write_atomic(PAGE, page(records()))


def _model(name: str) -> Path:
    from kvquant.assets.find import model_path  # only here: a page needs no models

    return model_path(name, say=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    main()
