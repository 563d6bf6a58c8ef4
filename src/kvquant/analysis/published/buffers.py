"""KV buffer sizes that the RK3588 write-up logged for Qwen3.5 and described as uniform q4_0/q4_0.

Only every fourth layer of these models keeps a KV cache. The logged sizes are those of q8_0 in layers 0 to 10
over q4_0, so that is what ran.
"""

from __future__ import annotations

from kvquant.analysis.published.figure import Figure, Reading
from kvquant.memory.kv import kv_bytes
from kvquant.model.presets import load_shape
from kvquant.policy import parse_policy

SOURCE = "RK3588 write-up, logs"
UNIFORM = "*:q4_0"
HYBRID = "0-10:q8_0,11-:q4_0"
LOGGED = (("qwen3.5-2b", 32768, "140.00 MiB"), ("qwen3.5-4b", 16384, "176.00 MiB"))


def figures() -> tuple[Figure, ...]:
    """Return one figure for each logged buffer."""
    return tuple(
        Figure(
            key=f"write-up.kv_buffer.{preset}",
            source=SOURCE,
            claim=f"KV buffer of {preset} at {n_ctx} tokens, uniform q4_0",
            published=published,
            convention=Reading(kv_mebibytes(preset, HYBRID, n_ctx), f"{HYBRID}"),
            actual=Reading(kv_mebibytes(preset, UNIFORM, n_ctx), f"{UNIFORM}"),
            note="the hybrid explains the log: what ran was not uniform",
        )
        for preset, n_ctx, published in LOGGED
    )


def kv_mebibytes(preset: str, policy: str, n_ctx: int) -> float:
    """Return the KV buffer of a built-in model shape under ``policy``, one sequence, in MiB."""
    shape = load_shape(preset)
    return kv_bytes(shape, parse_policy(policy).resolve(shape), n_ctx=n_ctx).kv_bytes / 2**20
