"""Computed memory against what llama-server logs, for every architecture with rules.

KVQUANT_LLAMA_BIN names the folder of llama-server; `make test` sets it. A stock build prints one line per
cache with sizes to 0.01 MiB; a patched one also prints every layer's bytes. Where the line is all there is,
contexts are long enough for the rounded sizes to determine every byte (checks.RESOLVED_CELLS).
Measured against a stock and a patched build of the pin: no difference for any architecture in any run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvquant.formats.registry import UPSTREAM_TYPES
from kvquant.llama.logs import parse_kv_log
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.memory import ContextOptions, KVMemory, memory_of
from kvquant.memory.cells import SERVER_PARALLEL
from kvquant.model.architectures import RULES, read_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy, policy_from_layers
from memory.checks import RESOLVED_CELLS, against_log
from memory.fixtures import RANDOM_MODELS
from write_random_gguf import ARCHITECTURES, write_random_gguf

PROGRAMS = os.environ.get("KVQUANT_LLAMA_BIN", "")

needs_llama = pytest.mark.skipif(
    not (PROGRAMS and (Path(PROGRAMS) / "llama-server").is_file()),
    reason="KVQUANT_LLAMA_BIN does not name a folder with llama-server",
)


@dataclass(frozen=True)
class Run:
    """One start of the server: its context options and its uniform cache types."""

    options: ContextOptions
    k_type: str = "f16"
    v_type: str = "f16"

    def __str__(self) -> str:
        o = self.options
        flags = "".join(
            f" {flag}"
            for flag, on in (("kvu", o.kv_unified), ("full", o.swa_full), ("nofa", not o.flash_attn))
            if on
        )
        return f"c{o.n_ctx} np{o.n_parallel} b{o.n_batch} ub{o.n_ubatch} {self.k_type}/{self.v_type}{flags}"

    def arguments(self) -> tuple[str, ...]:
        o = self.options
        return (
            "--kv-unified" if o.kv_unified else "--no-kv-unified",
            *(("--swa-full",) if o.swa_full else ()),
            *("--batch-size", str(o.n_batch), "--ubatch-size", str(o.n_ubatch)),
            *("--flash-attn", "auto" if o.flash_attn else "off"),
        )


# Every architecture: all in one buffer as the server does by default, and sequences apart in two types.
EVERYWHERE = (
    Run(ContextOptions(12000, n_parallel=4, kv_unified=True)),
    Run(ContextOptions(25000, n_parallel=2, n_ubatch=100), "q8_0", "q8_0"),
)

# The representatives of each kind of memory: the corners of rounding, batches and types.
IN_DEPTH = (
    Run(ContextOptions(64)),
    Run(ContextOptions(257, n_ubatch=1)),
    Run(ContextOptions(513, n_parallel=3)),
    Run(ContextOptions(12001, n_parallel=5), "q4_0", "q4_0"),
    Run(ContextOptions(12001, n_parallel=5, kv_unified=True, n_batch=64)),
    Run(ContextOptions(16384, swa_full=True), "q5_1", "q5_1"),
    Run(ContextOptions(16384, n_parallel=3, kv_unified=True, swa_full=True), "bf16", "bf16"),
    Run(ContextOptions(11000, flash_attn=False)),
    Run(ContextOptions(40960, n_ubatch=2048, n_batch=2048), "iq4_nl", "iq4_nl"),
    Run(ContextOptions(12032), "f32", "f32"),
)
MIXED = (
    Run(ContextOptions(12032), "q8_0", "q4_0"),
    Run(ContextOptions(12032, flash_attn=False), "q8_0", "f16"),
    Run(ContextOptions(12032), "q4_1", "q5_0"),
)
DEPTH = ("llama", "gemma3", "gemma4", "qwen35", "lfm2", "deepseek2")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def written(arch: str) -> Path:
        path = folder / f"{arch}.gguf"
        return path if path.exists() else write_random_gguf(path, RANDOM_MODELS[arch])

    return written


def computed(shape: ModelShape, run: Run) -> KVMemory:
    policy = parse_policy(f"*:k={run.k_type}/v={run.v_type}").resolve(shape)
    return memory_of(shape, policy, run.options)


def takes_policies() -> bool:
    """Whether the server is a patched one."""
    program = [str(Path(PROGRAMS) / "llama-server"), "--help"]
    return b"--kv-layers" in subprocess.run(program, capture_output=True, check=False).stdout


def compare(model: Path, run: Run) -> None:
    """Start the server once and hold every line of its log about memory against the computed one."""
    shape = read_shape(model)
    options = ServerOptions(
        model,
        n_ctx=run.options.n_ctx,
        n_parallel=run.options.n_parallel,
        k_type=run.k_type,
        v_type=run.v_type,
        n_threads=1,
        extra=run.arguments(),
    )
    with LlamaServer(Path(PROGRAMS), options) as server:
        log = server.log_text()
    memory = computed(shape, run)
    problems = against_log(shape, memory, run.options.n_parallel, (run.k_type, run.v_type), log)
    assert not problems, "\n".join([f"{model.stem}, {run}:", *problems])


def test_every_recipe_has_a_random_model() -> None:
    assert set(RANDOM_MODELS) == set(ARCHITECTURES) <= set(RULES)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_the_first_run_resolves_every_byte(arch: str, model_file: Callable[[str], Path]) -> None:
    """Its caches are long enough for the rounded sizes, and a window shortens the second one."""
    memory = computed(read_shape(model_file(arch)), EVERYWHERE[0])
    assert all(layer.n_cells >= RESOLVED_CELLS for layer in memory.layers)
    windowed = [layer.n_cells for layer in memory.layers if layer.windowed and arch != "llama4"]
    assert all(n_cells < memory.cells.base for n_cells in windowed)


@needs_llama
@pytest.mark.parametrize("run", EVERYWHERE, ids=str)
@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture(arch: str, run: Run, model_file: Callable[[str], Path]) -> None:
    compare(model_file(arch), run)


@needs_llama
@pytest.mark.parametrize("run", IN_DEPTH, ids=str)
@pytest.mark.parametrize("arch", DEPTH)
def test_in_depth(arch: str, run: Run, model_file: Callable[[str], Path]) -> None:
    compare(model_file(arch), run)


@needs_llama
@pytest.mark.parametrize("arch", ["gemma3", "qwen35"])
def test_the_server_s_own_defaults(arch: str, model_file: Callable[[str], Path]) -> None:
    """-np -1 is what the server starts with; the options that `kvquant memory` takes in its place."""
    shape = read_shape(model_file(arch))
    options = ServerOptions(model_file(arch), n_ctx=12000, n_threads=1, extra=("--parallel", "-1"))
    with LlamaServer(Path(PROGRAMS), options) as server:
        log = server.log_text()
    context = ContextOptions(12000, n_parallel=SERVER_PARALLEL, kv_unified=True)
    memory = memory_of(shape, parse_policy("*:f16").resolve(shape), context)
    assert not against_log(shape, memory, SERVER_PARALLEL, ("f16", "f16"), log)


@needs_llama
@pytest.mark.parametrize("run", MIXED, ids=str)
@pytest.mark.parametrize("arch", [arch for arch in DEPTH if arch != "deepseek2"])
def test_k_and_v_apart(arch: str, run: Run, model_file: Callable[[str], Path]) -> None:
    compare(model_file(arch), run)


@needs_llama
@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {"deepseek2"}))
def test_every_layer_in_types_of_its_own(arch: str, model_file: Callable[[str], Path]) -> None:
    """The patched server prints every layer's bytes. Latent attention takes no policy."""
    if not takes_policies():
        pytest.skip("the server is a stock build, which has no --kv-layers")
    shape = read_shape(model_file(arch))
    n = len(UPSTREAM_TYPES)
    types = [(UPSTREAM_TYPES[i % n], UPSTREAM_TYPES[(3 * i + 1) % n]) for i in range(len(shape.kv_layers))]
    policy = policy_from_layers((layer, k, v) for layer, (k, v) in zip(shape.kv_layers, types, strict=True))
    context = ContextOptions(700, n_parallel=2)
    options = ServerOptions(
        model_file(arch),
        n_ctx=context.n_ctx,
        n_parallel=context.n_parallel,
        kv_layers=str(policy),
        n_threads=1,
        extra=Run(context).arguments(),
    )
    with LlamaServer(Path(PROGRAMS), options) as server:
        log = server.log_text()
    assert parse_kv_log(log).layers
    memory = memory_of(shape, policy.resolve(shape), context)
    problems = against_log(shape, memory, context.n_parallel, ("f16", "f16"), log)
    assert not problems, "\n".join([f"{arch}, {policy}:", *problems])


@needs_llama
def test_a_wrong_size_would_be_seen(model_file: Callable[[str], Path]) -> None:
    """The comparison is not blind: a row one byte larger in one layer is reported."""
    shape, run = read_shape(model_file("llama")), EVERYWHERE[0]
    options = ServerOptions(
        model_file("llama"), n_ctx=run.options.n_ctx, n_parallel=4, n_threads=1, extra=run.arguments()
    )
    with LlamaServer(Path(PROGRAMS), options) as server:
        log = server.log_text()
    memory = computed(shape, run)
    first = memory.layers[0]
    larger = replace(first, k_bytes=first.k_bytes + first.n_cells)
    wrong = replace(memory, layers=(larger, *memory.layers[1:]))
    types = ("f16", "f16")
    assert not against_log(shape, memory, 4, types, log)
    assert against_log(shape, wrong, 4, types, log)
