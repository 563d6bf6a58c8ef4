"""What llama.cpp's log says about its KV cache, and which line explains a failure.

Sizes appear at verbosity 4 (``-lv 4``) only. Stock prints each cache's size in MiB with two decimals; the
patch adds a line per layer with the types in use and the exact bytes. Source: llama_kv_cache's constructor in
src/llama-kv-cache.cpp at the pin, and patches/llama.cpp/0001-kv-layers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class LoggedTensor:
    """The K or V cache of one layer: its type, its bytes, whether it is stored after a Hadamard rotation."""

    type: str
    n_bytes: int
    rotated: bool


@dataclass(frozen=True)
class LoggedLayer:
    """One layer's cache. `v` is None where V is not stored (multi-head latent attention)."""

    layer: int
    k: LoggedTensor
    v: LoggedTensor | None


@dataclass(frozen=True)
class LoggedCache:
    """One cache (a sliding-window model has two). Sizes in MiB, rounded to two decimals by llama.cpp.

    k_type and v_type are the types asked for, which a policy overrides per layer.
    """

    n_cells: int
    n_layer: int
    n_seq: int
    n_stream: int
    k_type: str
    v_type: str
    k_mib: float
    v_mib: float


@dataclass(frozen=True)
class KVLog:
    """All a log says: the caches, the layers in ascending order (patched builds), the buffer sizes in MiB.

    rotated: whether any layer's K or V is stored after a Hadamard rotation.
    """

    caches: tuple[LoggedCache, ...]
    layers: tuple[LoggedLayer, ...]
    buffers_mib: tuple[float, ...]
    rotated: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of all layers' K and V; 0 for a stock build, which does not print them."""
        return sum(layer.k.n_bytes + (layer.v.n_bytes if layer.v else 0) for layer in self.layers)


@dataclass(frozen=True)
class LoggedBuffers:
    """Sizes in MiB of what a server allocated, each summed over its buffers; None for a kind without a line.

    Compute and output buffers are made anew when a graph needs more: the last of each device counts.
    """

    model: float | None
    kv: float | None
    recurrent: float | None
    compute: float | None
    output: float | None


_TENSOR = r"(\w+) +\( *[\d.]+ MiB, +(\d+) B\)( rotated)?"
_LAYER = re.compile(rf"layer +(\d+): K {_TENSOR}, V (?:none|{_TENSOR})")
_CACHE = re.compile(
    r"size = +[\d.]+ MiB \( *(\d+) cells, +(\d+) layers, +(\d+)/(\d+) seqs\), "
    r"K \(([^)]*)\): +([\d.]+) MiB, V \(([^)]*)\): +([\d.]+) MiB"
)
_ROTATED = re.compile(r"attn_rot_[kv] = 1\b")
_BUFFER = re.compile(r"KV buffer size = +([\d.]+) MiB")
_ANY_BUFFER = re.compile(r"(\S+) +(model|KV|RS|compute|output) buffer size = +([\d.]+) MiB")

# A failure starts with the line that knows why; what follows repeats that something failed.
_CAUSES = (
    re.compile(r"(GGML_ASSERT\(.*|GGML_ABORT.*)"),
    re.compile(r"^[\d.]+ E (.*)"),
    re.compile(r"^(error\b.*)", re.IGNORECASE),
    re.compile(r"^(cannot start .*)"),
)


def parse_kv_log(text: str) -> KVLog:
    """Collect the KV cache lines of a log that holds one context; lines of another kind are passed over."""
    layers = [
        LoggedLayer(int(m[1]), _tensor(m[2], m[3], m[4]), _tensor(m[5], m[6], m[7]) if m[5] else None)
        for m in _LAYER.finditer(text)
    ]
    caches = [
        LoggedCache(int(m[1]), int(m[2]), int(m[3]), int(m[4]), m[5], m[7], float(m[6]), float(m[8]))
        for m in _CACHE.finditer(text)
    ]
    buffers = [float(m[1]) for m in _BUFFER.finditer(text)]
    by_index = sorted(layers, key=lambda layer: layer.layer)
    return KVLog(tuple(caches), tuple(by_index), tuple(buffers), _ROTATED.search(text) is not None)


def parse_buffers(text: str) -> LoggedBuffers:
    """Sum up the sizes of buffers in a log that holds one context."""
    found: dict[str, dict[object, float]] = {}
    for number, (device, kind, mib) in enumerate(_ANY_BUFFER.findall(text)):
        of_kind = found.setdefault(kind, {})
        of_kind[device if kind in {"compute", "output"} else number] = float(mib)
    sums = {kind: sum(sizes.values()) for kind, sizes in found.items()}
    return LoggedBuffers(*(sums.get(kind) for kind in ("model", "KV", "RS", "compute", "output")))


def failure_line(text: str) -> str:
    """Return the line of a failed program's log that says why, without its time stamp; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for cause in _CAUSES:
        for line in lines:
            if match := cause.search(line):
                return match[1].strip()
    return lines[-1] if lines else "it printed nothing"


def _tensor(type_name: str, n_bytes: str, rotated: str | None) -> LoggedTensor:
    return LoggedTensor(type_name, int(n_bytes), rotated is not None)
