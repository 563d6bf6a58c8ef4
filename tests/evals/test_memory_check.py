"""Log, arithmetic and slot file agree about a real server, and a disagreement of each is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvquant.evals.memory_check import check_memory, log_findings, slot_bytes, slot_findings
from kvquant.llama.logs import KVLog, parse_kv_log
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.llama.state import SequenceState, parse_state
from kvquant.memory import KVMemory, kv_bytes
from kvquant.model.architectures import read_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from llama.proof import PATCHED, STOCK, needs_both, needs_patched
from llama.saved_sequences import MLA, PLAIN, SLIDING, SavedSequence

REFERENCE = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"
POLICY = "0-1:q8_0,2:k=q8_0/v=q4_0"
TYPES = {0: ("q8_0", "q8_0"), 1: ("q8_0", "q8_0"), 2: ("q8_0", "q4_0")}

# As a patched llama-server prints it for `PLAIN` under POLICY at 256 cells: 68 bytes a row of 64 values in
# q8_0, 36 in q4_0.
RECORDED_LOG = """
I llama_kv_cache:        CPU KV buffer size =     0.09 MiB
I llama_kv_cache: size = 0.09 MiB (   256 cells,   3 layers,  1/1 seqs), K (f16): 0.05 MiB, V (f16): 0.04 MiB
I llama_kv_cache: layer   0: K q8_0 (   0.02 MiB,      17408 B), V q8_0 (   0.02 MiB,      17408 B)
I llama_kv_cache: layer   1: K q8_0 (   0.02 MiB,      17408 B), V q8_0 (   0.02 MiB,      17408 B)
I llama_kv_cache: layer   2: K q8_0 (   0.02 MiB,      17408 B), V q4_0 (   0.01 MiB,       9216 B)
"""


def computed(shape: ModelShape = PLAIN, policy: str = POLICY) -> KVMemory:
    return kv_bytes(shape, parse_policy(policy).resolve(shape), n_ctx=256)


def state(shape: ModelShape = PLAIN, types: dict[int, tuple[str, str]] = TYPES) -> SequenceState:
    return parse_state(SavedSequence(shape, types=types).to_bytes(), shape)


def test_what_agrees_has_no_finding() -> None:
    log = parse_kv_log(RECORDED_LOG)
    assert log.n_bytes == computed().kv_bytes
    assert log_findings(log, computed()) == []
    assert slot_findings(state(), computed(), 5) == []
    assert slot_bytes(state(), computed()) == computed().kv_bytes


@pytest.mark.parametrize(
    ("log", "finding"),
    [
        (
            RECORDED_LOG.replace("V q4_0", "V q8_0"),
            "log, layer 2, V: q8_0 with 9216 B, computed q4_0 with 9216 B",
        ),
        (RECORDED_LOG.replace("9216 B", "9217 B"), "log, layer 2, V: q4_0 with 9217 B, computed"),
        (RECORDED_LOG.replace("layer   2:", "layer   7:"), "log, layer 2, K: nothing, computed q8_0"),
        (RECORDED_LOG.replace("layer   2:", "layer   7:"), "log, layer 7: a cache where none is computed"),
        (
            RECORDED_LOG.replace("size =     0.09", "size =     0.11"),
            "log: KV buffers of 0.11 MiB, computed 0.09",
        ),
    ],
)
def test_a_log_that_says_otherwise_is_a_finding(log: str, finding: str) -> None:
    found = log_findings(parse_kv_log(log), computed())
    assert any(line.startswith(finding) for line in found), found


def test_a_slot_that_holds_something_else_is_a_finding() -> None:
    wrong = state(types={**TYPES, 1: ("q8_0", "f16")})
    (found,) = slot_findings(wrong, computed(), 5)
    assert found == "slot, a row of layer 1, V: f16 with 128 B, computed q8_0 with 68 B"
    assert slot_bytes(wrong, computed()) == computed().kv_bytes + 256 * (128 - 68)
    assert slot_findings(state(), computed(), 6) == ["slot: holds 5 tokens, the prompt has 6"]
    assert slot_findings(state(), computed(), None) == []


@pytest.mark.parametrize("shape", [SLIDING, MLA])
def test_windows_and_latent_caches(shape: ModelShape) -> None:
    there = state(shape, dict.fromkeys(shape.kv_layers, ("q8_0", "q8_0")))
    memory = computed(shape, "*:q8_0")
    assert slot_findings(there, memory, 5) == []
    assert slot_bytes(there, memory) == memory.kv_bytes


def test_transposed_rows_are_counted_by_token() -> None:
    saved = SavedSequence(PLAIN, transposed=True, types=dict.fromkeys(range(3), ("q8_0", "f16")))
    there = parse_state(saved.to_bytes(), PLAIN)
    memory = computed(policy="*:k=q8_0")
    assert slot_findings(there, memory, 5) == [] and slot_bytes(there, memory) == memory.kv_bytes


def test_a_stock_log_gives_no_exact_size() -> None:
    stock = "\n".join(line for line in RECORDED_LOG.splitlines() if "layer  " not in line)
    log = parse_kv_log(stock)
    assert log.n_bytes == 0 and log_findings(log, computed()) == []
    assert log_findings(KVLog((), (), (), False), computed()) == []


@needs_patched
def test_the_real_server() -> None:
    assert PATCHED is not None
    shape = read_shape(REFERENCE)
    policy = "0-10:q8_0,11-31:k=q8_0/v=q4_0"
    options = ServerOptions(REFERENCE, n_ctx=512, n_parallel=2, n_threads=1, kv_layers=policy)
    with LlamaServer(PATCHED, options) as server:
        resolved = parse_policy(policy).resolve(shape)
        check = check_memory(server, shape, resolved)
        wrong = check_memory(server, shape, parse_policy("*:q8_0").resolve(shape))
    assert check.findings == ()
    assert check.kv_bytes_logged == check.kv_bytes_computed == check.kv_bytes_slot
    assert check.n_slot_tokens is not None and check.n_slot_tokens > 10
    assert check.peak_rss_bytes is not None and check.peak_rss_bytes > check.kv_bytes_computed
    assert len(wrong.findings) == 2 * 21 + 1, "each V of layers 11 to 31, logged and stored, and the sum"


@needs_both
def test_a_stock_server_is_known_by_its_slot() -> None:
    assert STOCK is not None
    shape = read_shape(REFERENCE)
    options = ServerOptions(REFERENCE, n_ctx=512, n_threads=1, k_type="q8_0", v_type="q8_0")
    with LlamaServer(STOCK, options) as server:
        check = check_memory(server, shape, parse_policy("*:q8_0").resolve(shape))
    assert check.findings == () and check.kv_bytes_logged is None
    assert check.kv_bytes_slot == check.kv_bytes_computed == check.kv_bytes
