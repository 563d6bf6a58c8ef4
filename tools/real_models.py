"""What cache policies do to real language models: measured model by model, and written up from the records.

    python tools/real_models.py measure --programs "$(kvquant llama build)" --text prose.txt
    python tools/real_models.py page

`measure` does what `kvquant divergence` does for each model and setting, in the order of PLAN, and goes on
where it stopped: tokens are kept under runs/real, what they come to under eval/results/real/divergence.
`page` writes from those records eval/results/real/README.md, the table in README.md and
docs/figures/real-models.svg; a test holds them to it.
"""

from __future__ import annotations

import argparse
import sys
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
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import open_model
from kvquant.results.divergence import DivergenceResult

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "eval/results/real/divergence"
RUNS = ROOT / "runs/real"


UNIFORM = ("q8_0", "k8v4", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")
HYBRID, MIRROR = "hybrid (0-10 q8_0, rest q4_0)", "its mirror (0-10 q4_0, rest q8_0)"
EDGE = 4
"""Layers at each end that a rule of thumb keeps at q8_0."""
EDGES = f"first and last {EDGE} q8_0, rest q4_0"
ALL = (*UNIFORM, HYBRID, MIRROR, EDGES)
SIDES = ("q4_0 keys, f16 values", "f16 keys, q4_0 values")
"""Which side carries the error."""
CRITICAL = "keys of layers 0, 1, 2 and 8 q8_0, rest q4_0"
"""The layers in which KVmix finds the critical heads of Qwen2.5-0.5B; and as many others, to compare with."""
FIRST_KEYS, LAST_KEYS = (
    "keys of the first 4 layers q8_0, rest q4_0",
    "keys of the last 4 layers q8_0, rest q4_0",
)
FEW = ("q8_0", "k8v4", "q5_0", "q4_0", HYBRID, MIRROR, EDGES)
DEEP = ("q8_0", "k8v4", "q5_0", "q4_0", HYBRID)
"""Where a pass takes half a minute, and where it takes minutes."""


@dataclass(frozen=True)
class Setting:
    """One run of the program: a model by name, tokens of a chunk, the path, and scored tokens.

    policies: by the page's names. unrotated: those that are measured without llama.cpp's rotation, too.
    """

    model: str
    n_ctx: int
    path: FeedPath
    n_tokens: int
    policies: tuple[str, ...] = ALL
    unrotated: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its record."""
        return f"{self.model}.{self.n_ctx}.{self.path}"


PLAN = (
    Setting("qwen2.5-coder-0.5b", 512, "prefill", 255, (*ALL, *SIDES, CRITICAL, FIRST_KEYS, LAST_KEYS), ALL),
    Setting("smollm2-135m", 512, "prefill", 510, (*ALL, *SIDES), ALL),
    Setting("gemma3-270m", 512, "prefill", 255, (*ALL, *SIDES), ("q8_0", "q5_0", "q4_0", HYBRID)),
    Setting("qwen2.5-coder-1.5b", 512, "prefill", 255, (*ALL, *SIDES), ALL),
    Setting("smollm2-135m", 512, "decode", 128, FEW),
    Setting("qwen2.5-coder-0.5b", 512, "decode", 128, FEW),
    Setting("gemma3-270m", 512, "decode", 128, FEW),
    Setting("smollm2-135m", 4096, "prefill", 256, DEEP),
    Setting("gemma3-270m", 4096, "prefill", 256, DEEP),
    Setting("qwen2.5-coder-0.5b", 4096, "prefill", 256, DEEP),
    Setting("qwen2.5-coder-1.5b", 512, "decode", 64, FEW),
    Setting("gemma3-270m", 16384, "prefill", 256, DEEP),
    Setting("smollm2-135m", 4096, "decode", 128, DEEP),
    Setting("gemma3-270m", 4096, "decode", 128, DEEP),
    Setting("qwen2.5-coder-0.5b", 4096, "decode", 128, DEEP),
    Setting("qwen2.5-coder-1.5b", 4096, "prefill", 256, DEEP),
    Setting("qwen2.5-coder-0.5b", 16384, "prefill", 256, DEEP),
    Setting("qwen2.5-coder-1.5b", 4096, "decode", 64, DEEP),
    Setting("qwen2.5-coder-1.5b", 16384, "prefill", 256, DEEP),
)
"""The most telling first. SmolLM2 was trained on 8192 tokens. The second half of a chunk is scored: 255
tokens are one chunk of 512, and the first 256 of a chunk of 4096 are those at depth 2048 to 2303.
"""


def policies_for(n_layer: int) -> dict[str, str]:
    """Return the policies by the name that the page gives them, for a model of so many layers."""
    inner, last = f"{EDGE}-{n_layer - EDGE - 1}", n_layer - 1
    keys = "k=q8_0/v=q4_0"
    return {
        **{name: f"*:{name}" for name in UNIFORM},
        "k8v4": "*:k=q8_0/v=q4_0",
        HYBRID: f"0-10:q8_0,11-{last}:q4_0",
        MIRROR: f"0-10:q4_0,11-{last}:q8_0",
        EDGES: f"0-{EDGE - 1}:q8_0,{inner}:q4_0,{n_layer - EDGE}-{last}:q8_0",
        SIDES[0]: "*:k=q4_0/v=f16",
        SIDES[1]: "*:k=f16/v=q4_0",
        CRITICAL: f"0-2:{keys},3-7:q4_0,8:{keys},9-{last}:q4_0",
        FIRST_KEYS: f"0-3:{keys},4-{last}:q4_0",
        LAST_KEYS: f"0-{n_layer - 5}:q4_0,{n_layer - 4}-{last}:{keys}",
    }


def measure(programs: Path, setting: Setting, model: Path, text: Path, n_threads: int) -> DivergenceResult:
    """Measure what is missing of a setting and write its record."""
    opened = open_model(model)
    shape = shape_of(opened)
    by_name = policies_for(shape.n_layer)
    texts = [by_name[name] for name in setting.policies]
    texts += [f"{by_name[name]}@{UNROTATED}" for name in setting.unrotated]
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
    measuring.add_argument(
        "--only", action="append", help="settings by name, such as smollm2-135m.512.prefill"
    )
    commands.add_parser("page", help="write the page from the records")
    options = parser.parse_args()
    if options.command == "measure":
        for setting in PLAN:
            if not options.only or setting.name in options.only:
                model = _model(setting.model)
                measure(options.programs, setting, model, options.text, options.threads)
                write_pages()
    write_pages()


def write_pages() -> None:
    """Write everything that shows the records."""
    from real_models_page import write_all  # only here: it reads the plan of this module

    write_all(records())


def _model(name: str) -> Path:
    from kvquant.assets.find import model_path  # only here: a page needs no models

    return model_path(name, say=lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    main()
