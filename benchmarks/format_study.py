"""What the choices behind tq3, tq2, k5x3 and k4x2 do to real models, in Torch.

    python benchmarks/format_study.py --model smollm2.gguf --name smollm2-135m --fit code.txt
    --judge prose.txt --out benchmarks/results/format-study.jsonl

`transform_study.py` with quantizers that are spelled out, one for each choice; the models, texts, fits and
the KL divergence are its own. Settings that are there already are passed over.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvquant.formats.hadamard import llama_block
from kvquant.formats.turboquant.codebook import MAX_WIDTH, lloyd_max
from transform_study import BLOCK, Coder, Order, Setting, Study, hadamard_matrix, half, key_of, provenance

_PART = re.compile(r"(?P<n>\d+)(?P<rule>[lgpa])(?P<bits>\d)(?P<scale>[ncsb])(?P<tries>\d+)")
_NORM_STEP = 0.14
"""Between two norms that a search tries, as a share of the plain one."""

_PEAK_STEP = 0.25
"""Between two places of the peak that a search tries with q4_0's rule, in steps of the scale."""

PEAKS = {
    3: ((1.17,), (1.13, 1.29), (1.05, 1.17, 1.29)),
    4: ((1.01,), (1.01, 1.09), (0.95, 1.01, 1.09)),
    5: ((1.01,), (0.85, 1.01), (0.85, 0.98, 1.01)),
}
"""Bits and number of tries to where a search puts the peak, as shares of the largest level."""


@dataclass(frozen=True)
class Quantizer:
    """How one part of a block is coded, written as in ``32l5c1``.

    n: values with a scale of their own. rule: l, the Lloyd-Max codebook for n values on a sphere, brought to
    their norm; p, the same, brought to their peak; g, the codebook's Gaussian limit; a, q4_0's. scale: n, of
    the values' norm (for a, q4_0's); c, so that the norm comes back; s, least squares; b, so that the product
    with the values comes back. tries: norms or places of the peak, of which the one with the least angle
    wins.
    """

    n: int
    rule: str
    bits: int
    scale: str
    tries: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return what comes back for blocks, float32 (..., n)."""
        norm = x.norm(dim=-1, keepdim=True).clamp(min=1e-30)
        best, best_cosine = None, None
        for index in range(self.tries):
            step = index - (self.tries - 1) / 2
            if self.rule == "a":
                codes = self._evenly(x, step)
            elif self.rule == "p":
                codes = self._looked_up(x * self._to_peak(x, index))
            else:
                codes = self._looked_up(x / norm * (1 + _NORM_STEP * step))
            cosine = (x * codes).sum(-1, keepdim=True) ** 2 / (codes * codes).sum(-1, keepdim=True).clamp(
                min=1e-30
            )
            if best is None or best_cosine is None:
                best, best_cosine = codes, cosine
            else:
                best, best_cosine = (
                    torch.where(cosine > best_cosine, codes, best),
                    cosine.maximum(best_cosine),
                )
        assert best is not None
        return half(self._scale(x, best, norm)) * best

    def _looked_up(self, x: Tensor) -> Tensor:
        levels, boundaries = _book(self.n, self.rule, self.bits)
        return levels.to(x.device)[torch.bucketize(x, boundaries.to(x.device))]

    def _to_peak(self, x: Tensor, index: int) -> Tensor:
        top = _book(self.n, self.rule, self.bits)[0][-1].to(x.device)
        return PEAKS[self.bits][self.tries - 1][index] * top / x.abs().amax(-1, keepdim=True).clamp(min=1e-30)

    def _evenly(self, x: Tensor, step: float) -> Tensor:
        low = 2 ** (self.bits - 1)
        peak = x.gather(-1, x.abs().argmax(-1, keepdim=True))
        scale = peak / -(low + _PEAK_STEP * step)
        codes = (x / torch.where(scale != 0, scale, 1.0) + low + 0.5).floor().clamp(0, 2 * low - 1) - low
        return codes * scale

    def _scale(self, x: Tensor, codes: Tensor, norm: Tensor) -> Tensor:
        squares = (codes * codes).sum(-1, keepdim=True).clamp(min=1e-30)
        product = (x * codes).sum(-1, keepdim=True)
        return {
            "n": torch.ones_like(norm) if self.rule == "a" else norm,
            "c": norm / squares.sqrt(),
            "s": product / squares,
            "b": norm**2 / product.clamp(min=1e-30),
        }[self.scale]


@cache
def _book(n: int, rule: str, bits: int) -> tuple[Tensor, Tensor]:
    """Levels and boundaries for unit vectors of n values, float32."""
    book = lloyd_max(MAX_WIDTH if rule == "g" else n, bits)
    factor = math.sqrt(MAX_WIDTH / n) if rule == "g" else 1.0
    levels, boundaries = book.centroids * factor, book.boundaries * factor
    return torch.tensor(levels, dtype=torch.float32), torch.tensor(boundaries, dtype=torch.float32)


@cache
def quantizers(name: str) -> tuple[Quantizer, ...]:
    """Read ``32l5c1+32l3c1``: the parts of a block, the strongest dimensions first."""
    found = [_PART.fullmatch(part) for part in name.split("+")]
    if not all(found):
        raise SystemExit(f"format_study: {name!r} is no quantizer")
    return tuple(
        Quantizer(int(m["n"]), m["rule"], int(m["bits"]), m["scale"], int(m["tries"])) for m in found if m
    )


def split(x: Tensor, order: Tensor, parts: tuple[Quantizer, ...]) -> Tensor:
    """Rows (B, n_head_kv, T, head_dim) in blocks whose parts take dimensions in the order of their energy.

    order: int64 (n_head_kv, head_dim), dimensions by falling energy; in wider heads than a block every block
    gets an equal share of each part's.
    """
    d, n_blocks = x.shape[-1], x.shape[-1] // BLOCK
    back = torch.empty_like(x, dtype=torch.float32)
    start = 0
    for part in parts:
        width = part.n * n_blocks
        taken = (
            order[:, start : start + width]
            .reshape(len(order), part.n, n_blocks)
            .mT.reshape(len(order), width)
        )
        index = taken[None, :, None].expand(*x.shape[:3], width)
        matrix = hadamard_matrix(part.n, x.device)
        blocks = x.float().gather(-1, index).unflatten(-1, (n_blocks, part.n))
        back = back.scatter(-1, index, (part(blocks @ matrix) @ matrix).flatten(-2))
        start += width
    assert start == d
    return back


class FormatStudy(Study):
    """The study, with `Quantizer`s for K and V."""

    def coder(self, _setting: Setting, order: Order) -> Coder:
        def one(x: Tensor, name: str, side: Any, layer: int) -> Tensor:
            parts = quantizers(name)
            if len(parts) > 1:
                return split(x, order(layer), parts)
            width = llama_block(x.shape[-1], side)
            assert width is not None
            matrix = hadamard_matrix(width, x.device)
            rotated = (x.float().unflatten(-1, (-1, width)) @ matrix).flatten(-2)
            coded = parts[0](rotated.unflatten(-1, (-1, parts[0].n))).flatten(-2)
            return (coded.unflatten(-1, (-1, width)) @ matrix).flatten(-2)

        return one


_HALVES = ("a{}n1", "l{}c1", "p{}c1", "p{}c2", "p{}c3", "p{}b2", "a{}c3")
"""Quantizers of both halves, to be filled with their bits."""


def filled(how: str, bits: int) -> str:
    """Fill in the bits; two are always brought to the norm, few values reach far enough to go by the peak."""
    return (how.replace("p", "l") if bits == 2 else how).format(bits)


def settings() -> Iterator[Setting]:
    """The settings, the most telling first."""
    scales = ("p{}c2", "p{}b2", "l{}c1", "l{}n1")
    for bits in (3, 2):
        for how in scales:
            yield Setting(512, "f16", "64" + filled(how, bits))
            yield Setting(512, "64" + filled(how, bits), transform="diagonal")
    for how in ("p{}c2", "p{}b2", "a{}n1", "l{}c1"):
        for strong, weak in ((5, 3), (4, 2)):
            yield Setting(512, halves(how, strong, weak), transform="balanced")
    for k in ("32a4n1", "32a4s3", "32p4c2"):
        yield Setting(512, k, transform="balanced")
    for how in ("a{}n1", "p{}c2"):
        for strong, weak in ((5, 3), (4, 2)):
            yield Setting(512, thirds(how, strong, weak), transform="balanced")
    for transform in ("diagonal", "balanced"):
        for how in _HALVES:
            for strong, weak in ((5, 3), (4, 2)):
                yield Setting(512, halves(how, strong, weak), transform=transform)
        for k in ("32a4n1", "32a4s1", "32a4c3", "32a4s3", "32p4c2"):
            yield Setting(512, k, transform=transform)
    for bits in (3, 2):
        for how in ("l{}b1", "p{}c1", "p{}c3", "g{}c1"):
            yield Setting(512, "f16", "64" + filled(how, bits))


def halves(how: str, strong: int, weak: int) -> str:
    """Return two halves, coded alike."""
    return f"32{filled(how, strong)}+32{filled(how, weak)}"


def thirds(how: str, strong: int, weak: int) -> str:
    """Return a quarter with the stronger bits, one with a bit less, a half with the weaker; as many bytes."""
    return f"16{filled(how, strong)}+16{filled(how, strong - 1)}+32{filled(how, weak)}"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a GGUF that transformers reads")
    parser.add_argument("--name", required=True, help="of the model in the records")
    parser.add_argument("--fit", type=Path, required=True, help="text that transforms are fitted on")
    parser.add_argument("--judge", type=Path, required=True, help="text that settings are measured on")
    parser.add_argument("--fit-tokens", type=int, default=4096, help="(%(default)s)")
    parser.add_argument("--judge-tokens", type=int, default=512, help="scored, at least (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--out", type=Path, required=True, help="JSONL; gone on with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    records = [record for record in map(json.loads, lines) if "started" not in record]
    done = {key_of(record) for record in records}
    device = torch.device(options.device)
    study = FormatStudy(
        options.model, options.fit, options.judge, options.fit_tokens, options.judge_tokens, device
    )
    with options.out.open("a") as file:
        file.write(json.dumps(provenance(options.name, options)) + "\n")
        for setting in settings():
            key = key_of({"model": options.name, **asdict(setting)})
            if key in done:
                continue
            done.add(key)
            if time.monotonic() - begun > options.seconds:
                break
            record = {"model": options.name, **study.measure(setting)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{options.name} {setting} {record['kl']:.4g}", file=sys.stderr)


if __name__ == "__main__":
    main()
