"""ggml's flash attention on the CPU, one operation at a time, and the same operation in float64.

`llama-kv-attention-op`, which the patch series adds, computes cases that it reads from a pipe: natively,
under sanitizers, or on another processor behind an emulator. GGML_KV_ATTN=0 makes it compute as stock
llama.cpp does.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kvquant.formats.registry import get_format
from kvquant.llama.state import GGML_TYPE_NAMES

PROGRAM = "llama-kv-attention-op"

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

_FLOAT32 = np.finfo(np.float32)
_FLOAT_TYPES = ("f32", "f16", "bf16")
_BLOCK = 32
_TILE = 64
_SCALES = {
    "q8_0": ((0,), (128,)),
    "q4_0": ((0,), (8,)),
    "q4_1": ((0,), (15,)),
    "q5_0": ((0,), (16,)),
    "q5_1": ((0,), (31,)),
    "iq4_nl": ((0,), (127,)),
    "tq3": ((0, 0), (66, 66)),
    "tq2": ((0, 0), (10, 10)),
    "k5x3": ((0, 22), (127, 66)),
    "k4x2": ((0, 18), (80, 10)),
}
"""Of each 32 values of a block: where its float16 scale is, in bytes, and how large a code can be."""

_SUM_ULPS = 32
_SCORE_ULPS = 4

_HEADER = struct.Struct("=16i3f")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionCase:
    """One attention over a cache.

    q: float32 (n_stream, n_tokens, n_head, head_dim_k). k, v: packed rows, uint8 (n_stream, n_rows,
    n_head_kv, bytes of a head); rows from n_kv on must not matter. v None: V is the first head_dim_v values
    of each K row, as in models with a latent cache. mask: float16 (mask_streams, mask_heads, n_tokens,
    n_kv), added to the scores, times the head's slope when max_bias > 0. sinks: float32 (n_head,).
    softcap: 0 is off.
    """

    k_type: str
    v_type: str
    q: Float32Array
    k: Bytes
    v: Bytes | None
    head_dim_v: int
    n_kv: int
    scale: float
    mask: npt.NDArray[np.float16] | None = None
    sinks: Float32Array | None = None
    max_bias: float = 0.0
    softcap: float = 0.0

    def __repr__(self) -> str:
        masked = None if self.mask is None else f"{self.mask.shape}, {np.isinf(self.mask).mean():.0%} -inf"
        return (
            f"<{self.k_type}/{self.v_type} q {self.q.shape} n_kv {self.n_kv} k {self.k.shape} head_dim_v "
            f"{self.head_dim_v}{' in k' if self.v is None else ''} scale {self.scale} mask {masked} "
            f"sinks {self.sinks} max_bias {self.max_bias} softcap {self.softcap}>"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints instead of every number."""
        printer.text("..." if cycle else repr(self))

    def message(self, n_threads: int, n_runs: int) -> bytes:
        """Return the case as the program reads it."""
        n_stream, n_tokens, n_head, head_dim_k = self.q.shape
        _, n_rows, n_head_kv, _ = self.k.shape
        mask_streams, mask_heads = (0, 0) if self.mask is None else self.mask.shape[:2]
        numbers = {name: number for number, name in GGML_TYPE_NAMES.items()}
        types = (numbers[name] for name in (self.k_type, self.v_type))
        sizes = (head_dim_k, self.head_dim_v, n_head, n_head_kv, n_tokens, self.n_kv, n_rows, n_stream)
        flags = (self.v is None, mask_heads, mask_streams, self.sinks is not None)
        arrays = (self.q, self.k, self.v, self.mask, self.sinks)
        return b"".join(
            (
                _HEADER.pack(
                    *types, *sizes, *flags, n_threads, n_runs, self.scale, self.max_bias, self.softcap
                ),
                *(np.ascontiguousarray(array).tobytes() for array in arrays if array is not None),
            )
        )


@dataclass(frozen=True)
class Computed:
    """An output, float32 (n_stream, n_tokens, n_head, head_dim_v), and the seconds of the fastest run."""

    output: Float32Array
    seconds: float


class AttentionProgram:
    """A running `llama-kv-attention-op`; as a context manager it ends with the block."""

    def __init__(self, command: Sequence[str | Path], *, kv_attention: bool = True) -> None:
        """Start ``command``: the program's path, behind the emulator's and its arguments where needed."""
        environment = {**os.environ, "GGML_KV_ATTN": "1" if kv_attention else "0"}
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def compute(self, case: AttentionCase, *, n_threads: int = 1, n_runs: int = 1) -> Computed:
        """Compute a case. Raises RuntimeError when the program does not answer."""
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        if pipe_in is None or pipe_out is None:
            raise RuntimeError(f"{PROGRAM} has no pipes")
        n_stream, n_tokens, n_head, _ = case.q.shape
        shape = (n_stream, n_tokens, n_head, case.head_dim_v)
        n_bytes = 8 + 4 * n_stream * n_tokens * n_head * case.head_dim_v
        try:
            pipe_in.write(case.message(n_threads, n_runs))
            pipe_in.flush()
        except BrokenPipeError:
            pass  # what it exited with says more
        answer = pipe_out.read(n_bytes)
        if len(answer) != n_bytes:
            raise RuntimeError(f"{PROGRAM} ended with status {self._process.wait()} in the middle of a case")
        return Computed(
            np.frombuffer(answer, np.float32, offset=8).reshape(shape), struct.unpack_from("=d", answer)[0]
        )

    def close(self) -> int:
        """End the input and return the program's exit status."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_bandwidth(program: Path, mib: int, n_threads: int) -> int:
    """How fast ``n_threads`` read that many MiB of memory, in bytes per second."""
    argv = [str(program), "--bandwidth", str(mib), str(n_threads)]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


@dataclass(frozen=True)
class Rounding:
    """What an implementation may round to 16-bit integers where a side is quantized, as kernels of some
    processors do; stock rounds the query to 8 bits. query: by block of 32 values. weights: by block of V and
    tile of cache rows, each times the block's scale.
    """

    query: bool = False
    weights: bool = False


FLOATS = Rounding()
"""Nothing beyond float32."""


def rounding_of(program: Path) -> Rounding:
    """Ask a program what its kernels round."""
    done = subprocess.run([program, "--rounding"], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    return Rounding(query="query" in words, weights="weights" in words)


@dataclass(frozen=True)
class Exact:
    """A case in float64. output: (n_stream, n_tokens, n_head, head_dim_v). tolerance, of the same shape: by
    how much an implementation may be off that rounds every product, sum and exponential to float32 once.
    """

    output: Float64Array
    tolerance: Float64Array


def exact_attention(case: AttentionCase, rounding: Rounding = FLOATS) -> Exact:
    """Compute attention head by head over the dequantized cache. A row without any score is zero.

    rounding: what an implementation may round beyond float32.
    """
    n_stream, n_tokens, n_head, head_dim_k = case.q.shape
    n_head_kv = case.k.shape[2]
    k = _values(case.k[:, : case.n_kv], case.k_type, head_dim_k)
    v = (
        k[..., : case.head_dim_v]
        if case.v is None
        else _values(case.v[:, : case.n_kv], case.v_type, case.head_dim_v)
    )
    slopes = _slopes(n_head, case.max_bias)
    v_packed = (case.k if case.v is None else case.v)[:, : case.n_kv]
    output = np.zeros((n_stream, n_tokens, n_head, case.head_dim_v))
    tolerance = np.zeros_like(output)
    for stream, head in np.ndindex(n_stream, n_head):
        keys, values = (
            k[stream, :, head // (n_head // n_head_kv)],
            v[stream, :, head // (n_head // n_head_kv)],
        )
        q = case.q[stream, :, head].astype(np.float64)
        rounds = rounding.query and case.k_type not in _FLOAT_TYPES
        query_steps = _query_steps(q) if rounds else np.zeros_like(q)
        scores = q @ keys.T * case.scale
        spread = np.abs(q) @ np.abs(keys).T * abs(case.scale)
        query_error = query_steps @ np.abs(keys).T * abs(case.scale)
        if case.softcap:
            scores = case.softcap * np.tanh(scores / case.softcap)
        if case.mask is not None:
            mask = case.mask[stream % len(case.mask), head % case.mask.shape[1]].astype(np.float64)
            bias = slopes[head] * mask
            scores = scores + bias
            spread = np.where(np.isinf(mask), 0.0, spread + np.abs(bias))
            query_error = np.where(np.isinf(mask), 0.0, query_error)
        sink = -np.inf if case.sinks is None else float(case.sinks[head])
        top = np.maximum(scores.max(axis=1, initial=-np.inf), sink)[:, None]
        weights = np.exp(scores - np.where(np.isinf(top), 0.0, top))
        total = weights.sum(axis=1, keepdims=True) + np.exp(sink - np.where(np.isinf(top), 0.0, top))
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        output[stream, :, head] = weights @ values
        # A score is off by a few units in the last place of what was summed to it, its weight by as much
        # relatively, and the sum over the cache by some more; what is subnormal has no relative precision.
        relative = _FLOAT32.eps * (_SUM_ULPS + _SCORE_ULPS * spread.max(axis=1, initial=0.0))
        relative += 2 * query_error.max(axis=1, initial=0.0)
        underflow = (case.n_kv + 1) * _FLOAT32.smallest_subnormal
        tolerance[stream, :, head] = relative[:, None] * (weights @ np.abs(values)) + underflow
        if rounding.weights and case.v_type not in _FLOAT_TYPES:
            packed = v_packed[stream, :, head // (n_head // n_head_kv)]
            tolerance[stream, :, head] += _weight_error(weights, packed, case.v_type)[:, : case.head_dim_v]
    return Exact(output, tolerance)


def _query_steps(q: Float64Array) -> Float64Array:
    """Half the step of 16-bit integers that reach the largest value of each block, for every value of q."""
    largest = np.abs(q).reshape(len(q), -1, _BLOCK).max(axis=-1)
    return np.repeat(largest / (2 * 127 * 256), _BLOCK, axis=1)


def _weight_error(weights: Float64Array, packed: Bytes, type_name: str) -> Float64Array:
    """By how much rounded weights (n_tokens, n_kv) change the values of a head, (n_tokens, head dim).

    packed: V, uint8 (n_kv, bytes). Half a step for each cache row that has a weight, times the largest code.
    """
    places, largest = _SCALES[type_name]
    blocks = packed.reshape(len(packed), -1, get_format(type_name).block_bytes)
    halves = [blocks[..., at : at + 2].copy().view(np.float16) for at in places]
    scales = np.abs(np.concatenate(halves, axis=-1).astype(np.float64))  # (n_kv, blocks, scales of a block)
    error = np.zeros((len(weights), *scales.shape[1:]))
    for t in range(0, len(packed), _TILE):
        part = np.abs(weights[:, t : t + _TILE])
        steps = (part[:, :, None, None] * scales[t : t + _TILE]).max(axis=1) / (2 * 127 * 256)
        error += steps * np.count_nonzero(part, axis=1)[:, None, None]
    return np.repeat((error * largest).reshape(len(weights), -1), _BLOCK, axis=1)


def _values(packed: Bytes, type_name: str, width: int) -> Float64Array:
    return np.asarray(get_format(type_name).dequantize(packed, width), np.float64)


def _slopes(n_head: int, max_bias: float) -> Float64Array:
    """ALiBi's slope of each head: powers of 2^(-max_bias/n) for the first n heads, n the largest power of two
    that fits, and every second power of its square root for the rest.
    """
    if max_bias <= 0:
        return np.ones(n_head)
    n = 1 << (n_head.bit_length() - 1)
    heads = np.arange(n_head)
    exponents = np.where(heads < n, heads + 1, (2 * (heads - n) + 1) / 2)
    return np.asarray(2.0 ** (-max_bias / n * exponents))
