"""Proof: a slot saved under a mixed policy shows each layer's types, restores under it, and only there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvquant.errors import LlamaError
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.model.architectures import read_shape
from kvquant.policy import parse_policy
from llama.proof import PATCHED, PROMPT, STOCK, WITH_V, generate, needs_both, needs_patched, run, small

Model = Callable[[str], Path]

MIXED = "kv0:q8_0,kv1-:k=q5_1/v=q4_0"


def restored(folder: Path | None, options: ServerOptions, saved: bytes) -> LlamaServer:
    """Start a server and restore the saved slot in it. Raises LlamaError when the server refuses it."""
    assert folder is not None
    server = LlamaServer(folder, options)
    try:
        (server.slot_folder / "saved").write_bytes(saved)
        server.restore_slot(name="saved")
    except BaseException:
        server.stop()
        raise
    return server


def check_goes_on(options: ServerOptions) -> None:
    """A restored slot is saved again as it was, is used, and goes on as the saved one did."""
    assert PATCHED is not None
    with LlamaServer(PATCHED, options) as server:
        first = generate(server, n_predict=4)
        saved = server.save_slot().read_bytes()
        prompt = [*server.tokenize(PROMPT), *first["tokens"]]
        went_on = generate(server, n_predict=6, prompt=prompt)
    with restored(PATCHED, options, saved) as server:
        assert server.save_slot(name="again").read_bytes() == saved
        later = generate(server, n_predict=6, prompt=prompt)
    assert later["timings"]["prompt_n"] == 1, "the restored slot was not used"
    assert later["content"] == went_on["content"]
    assert later["completion_probabilities"] == went_on["completion_probabilities"]


@needs_patched
@pytest.mark.parametrize("arch", WITH_V)
@pytest.mark.parametrize("policy", [MIXED, "0-1:q8_0,2-:q4_0", "1-2:f32", "*:k=iq4_nl"])
def test_the_saved_slot_shows_the_policy(arch: str, policy: str, proof_model: Model) -> None:
    model = proof_model(arch)
    shape = read_shape(model)
    state = run(PATCHED, small(model, kv_layers=policy)).state(shape)
    resolved = parse_policy(policy).resolve(shape)
    assert [(layer.layer, layer.k_type, layer.v_type) for layer in resolved.layers] == [
        (stored.layer, stored.k.type, stored.v.type if stored.v else None) for stored in state.layers
    ]


@needs_patched
@pytest.mark.parametrize("arch", WITH_V)
def test_a_restored_slot_is_saved_again_as_it_was(arch: str, proof_model: Model) -> None:
    options = small(proof_model(arch), kv_layers=MIXED)
    saved = run(PATCHED, options).saved
    with restored(PATCHED, options, saved) as server:
        assert server.save_slot(name="again").read_bytes() == saved


@needs_patched
@pytest.mark.parametrize("arch", [arch for arch in WITH_V if not arch.startswith("gemma")])
def test_a_restored_slot_goes_on_as_the_saved_one(arch: str, proof_model: Model) -> None:
    """Not for sliding windows: there llama-server, stock too, reads the prompt again after a restore."""
    check_goes_on(small(proof_model(arch), kv_layers=MIXED))


@needs_patched
@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen35"])
@pytest.mark.parametrize("other", ["kv0:q8_0,kv1-:k=q5_1/v=q5_0", "kv0:q8_0,kv1-:k=q4_0", "*:q8_0", None])
def test_another_policy_refuses_it(arch: str, other: str | None, proof_model: Model) -> None:
    model = proof_model(arch)
    saved = run(PATCHED, small(model, kv_layers=MIXED)).saved
    with pytest.raises(LlamaError, match="Unable to restore slot"):
        restored(PATCHED, small(model, kv_layers=other), saved).stop()


CONDITIONS: dict[str, dict[str, Any]] = {
    "f16": {},
    "f16, rotation off": {"rotation": False},
    "*:f16": {"kv_layers": "*:f16"},
    "q4_0": {"k_type": "q4_0", "v_type": "q4_0"},
    "q4_0, rotation off": {"k_type": "q4_0", "v_type": "q4_0", "rotation": False},
    "*:q4_0": {"kv_layers": "*:q4_0"},
    "*:q4_0, rotation off": {"kv_layers": "*:q4_0", "rotation": False},
    "*:q8_0": {"kv_layers": "*:q8_0"},
    "mixed": {"kv_layers": MIXED},
    "mixed, rotation off": {"kv_layers": MIXED, "rotation": False},
    "V only": {"kv_layers": "*:v=q4_0"},
    "V only, rotation off": {"kv_layers": "*:v=q4_0", "rotation": False},
}
"""What a slot may be saved under, by name."""

SAME = [
    {"f16", "f16, rotation off", "*:f16"},
    {"q4_0", "*:q4_0"},
    {"q4_0, rotation off", "*:q4_0, rotation off"},
]
"""Those that store the same bytes and mean the same by them exchange slots."""


@needs_patched
@pytest.mark.parametrize("restoring", CONDITIONS)
def test_a_slot_loads_under_the_conditions_it_was_saved_with_and_no_others(
    restoring: str, proof_model: Model, saved_under: dict[str, bytes]
) -> None:
    """Without its rotation the bytes have the same types and sizes, but mean something else."""
    assert PATCHED is not None
    with LlamaServer(PATCHED, small(proof_model("llama"), **CONDITIONS[restoring])) as server:
        for saving, saved in saved_under.items():
            (server.slot_folder / "saved").write_bytes(saved)
            if saving == restoring or any({saving, restoring} <= group for group in SAME):
                assert server.restore_slot(name="saved")["n_restored"] > 0, saving
                continue
            with pytest.raises(LlamaError) as refused:
                server.restore_slot(name="saved")
            same_types = saving.partition(",")[0].lstrip("*:") == restoring.partition(",")[0].lstrip("*:")
            reason = "rotation" if same_types else "mismatched|rotation"
            assert re.search(f"Unable to restore slot: .*({reason})", str(refused.value)), (
                saving,
                refused.value,
            )


@pytest.fixture(scope="module")
def saved_under(proof_model: Model) -> dict[str, bytes]:
    """A slot of the same prompt, saved under each of the conditions."""
    model = proof_model("llama")
    return {name: run(PATCHED, small(model, **changes)).saved for name, changes in CONDITIONS.items()}


@needs_both
def test_stock_and_patched_exchange_uniform_slots_only(proof_model: Model) -> None:
    model = proof_model("llama")
    uniform, policy = small(model, k_type="q8_0", v_type="q8_0"), small(model, kv_layers="*:q8_0")
    restored(PATCHED, policy, run(STOCK, uniform).saved).stop()
    restored(STOCK, uniform, run(PATCHED, policy).saved).stop()
    with pytest.raises(LlamaError, match="Unable to restore slot"):
        restored(STOCK, uniform, run(PATCHED, small(model, kv_layers=MIXED)).saved).stop()
