"""What K transforms, first tokens kept exact, and formats of fewer bits do to real models, in Torch.

    python benchmarks/transform_study.py --model qwen.gguf --fit code.txt --judge prose.txt --out study.jsonl
    python benchmarks/transform_study.py --study weights --model qwen.gguf --fit code.txt --judge prose.txt \\
        --fit-tokens 8192 --judge-tokens 1024 --out weights.jsonl

A prototype's bench: nothing here runs in llama.cpp. The model's attention gets K and V as a cache would give
them back; the KL divergence is from the same model with K and V as they are, over the second half of each
chunk. Each line of the output is one setting; settings that are there already are passed over, so a run can
be resumed. Runs on the CPU, or with --device cuda on a GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kvquant.formats.hadamard import llama_block
from kvquant.formats.storage import storage_format
from kvquant.formats.turboquant.codebook import lloyd_max
from kvquant.torch.writing import stored
from kvquant.transform import KINDS, FitOptions, HeadMoments, LayerMoments, LayerTransform, fit_layer

GGML_TYPES = ("q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")
RECIPES = ("centre", "diagonal", "diagonal-uncentred", "balanced", "balanced-uncentred")
BLOCK = 64


@dataclass(frozen=True)
class Setting:
    """One measurement.

    k, v: a ggml type, "f16" for as it is, "tqN" for N-bit Lloyd-Max codes of blocks of 64 with a float16
    norm, "sAB" for blocks of 64 of which the stronger half gets A bits and the weaker B (K only), "lAB" the
    same with Lloyd-Max codes. transform: a recipe, or "none". fit_ctx: tokens of the chunks it was fitted
    on. exact_first: rows of a sequence that keep K and V as they are. rotate: llama.cpp's rotation of ggml
    types. weights: of keys and queries in the moments, a name of WEIGHTS.
    """

    n_ctx: int
    k: str
    v: str = "f16"
    transform: str = "none"
    fit_ctx: int = 512
    exact_first: int = 0
    rotate: bool = True
    shrink: float = 0.0
    floor: float = 1e-4
    scale: str = "norm"
    weights: str = "none"


WEIGHTS = ("none", "softmax", "output")
"""What moments are weighed by. "none": nothing. "softmax": how far an error of a logit moves its probability,
p (1 - p); "output": how far it moves what attention returns, p² |v - o|². A query counts by the sum over the
keys it sees, a key by that over the queries that see it.
"""


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells records apart: the model and the setting, whose fields a record may be older than."""
    return (record["model"], *(record.get(name, default) for name, default in asdict(Setting(0, "")).items()))


def weighted_settings(_: int) -> Iterator[Setting]:
    """The settings that show what weights of the moments change."""
    yield Setting(512, "q4_0")
    for transform, shrink in (("diagonal", 0.0), ("balanced", 0.3)):
        for weights in WEIGHTS:
            yield Setting(512, "q4_0", transform=transform, shrink=shrink, weights=weights)


def settings(n_ctx_max: int) -> Iterator[Setting]:
    """The settings of the study, the most telling first."""
    for transform in ("none", *RECIPES):
        for k in ("q4_0", "q5_0", "q8_0", "iq4_nl", "q4_1", "q5_1", "tq3", "tq2"):
            yield Setting(512, k, transform=transform)
    for k in GGML_TYPES:
        yield Setting(512, k, rotate=False)
    for v in (*GGML_TYPES, "tq3", "tq2"):
        yield Setting(512, "f16", v)
    for transform in ("none", "diagonal", "balanced-uncentred"):
        for k, v in (
            ("q4_0", "q4_0"),
            ("q8_0", "q4_0"),
            ("q5_0", "q5_0"),
            ("q8_0", "tq3"),
            ("q8_0", "tq2"),
            ("q5_0", "tq3"),
            ("q4_0", "tq3"),
            ("tq3", "tq3"),
            ("tq2", "tq2"),
        ):
            yield Setting(512, k, v, transform)
    for transform in ("diagonal", "balanced", "balanced-uncentred"):
        for k in ("s53", "s62", "s42", "s33", "s31", "l53", "l42", "l33", "l31"):
            yield Setting(512, k, transform=transform)
        for exact_first in (1, 4):
            for k in ("q4_0", "q5_0"):
                yield Setting(512, k, transform=transform, exact_first=exact_first)
    for transform in ("none", "diagonal", "balanced-uncentred"):
        yield Setting(512, "s42", "tq3", transform)
        yield Setting(512, "s53", "q4_0", transform)
    for scale in ("corrected", "searched"):
        for v in ("tq3", "tq2"):
            yield Setting(512, "f16", v, scale=scale)
        for k in ("tq3", "tq2"):
            yield Setting(512, k, transform="diagonal", scale=scale)
    for shrink in (0.1, 0.5):
        yield Setting(512, "q4_0", transform="balanced", shrink=shrink)
    for floor in (1e-6, 1e-3, 1e-2):
        yield Setting(512, "q4_0", transform="diagonal", floor=floor)
    for n_ctx in (4096, 16384):
        if n_ctx <= n_ctx_max:
            for k, v in (("q4_0", "f16"), ("q4_0", "q4_0")):
                yield Setting(n_ctx, k, v)
                for transform in RECIPES:
                    yield Setting(n_ctx, k, v, transform, fit_ctx=512)
                for fit_ctx in (4096, 16384):
                    if fit_ctx <= n_ctx:
                        for transform in ("diagonal", "diagonal-uncentred", "balanced", "balanced-uncentred"):
                            yield Setting(n_ctx, k, v, transform, fit_ctx=fit_ctx)
            for k in ("q8_0", "q5_0", "tq3"):
                yield Setting(n_ctx, k)
                yield Setting(n_ctx, k, transform="diagonal", fit_ctx=512)
            yield Setting(n_ctx, "q4_0", transform="diagonal", fit_ctx=512, exact_first=4)


STUDIES = {"kinds": settings, "weights": weighted_settings}
"""The settings of a study, by its name and the longest context."""


# ---- quantizers that are no formats of the package yet ----


def hadamard_matrix(n: int, device: torch.device) -> Tensor:
    """The orthonormal Walsh-Hadamard matrix in natural order, float32 (n, n)."""
    matrix = torch.ones(1, 1, device=device)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    return matrix / math.sqrt(n)


def half(x: Tensor) -> Tensor:
    """Round to float16."""
    return x.half().float()


def coded(x: Tensor, bits: int, scale: str) -> Tensor:
    """Blocks, float32 (..., n), as Lloyd-Max codes with one float16 scale give them back.

    scale: "norm", the norm of the block; "corrected", so that the norm comes back; "searched", the least
    squares scale for the codes that the norm gave.
    """
    n = x.shape[-1]
    book = lloyd_max(n, bits)
    centroids = torch.tensor(book.centroids, dtype=torch.float32, device=x.device)
    boundaries = torch.tensor(book.boundaries, dtype=torch.float32, device=x.device)
    norm = x.norm(dim=-1, keepdim=True)
    codes = centroids[torch.bucketize(x / norm.clamp(min=1e-30), boundaries)]
    if scale == "corrected":
        norm = norm / codes.norm(dim=-1, keepdim=True)
    elif scale == "searched":
        norm = (x * codes).sum(-1, keepdim=True) / (codes * codes).sum(-1, keepdim=True)
    return half(norm) * codes


def absmax(x: Tensor, bits: int) -> Tensor:
    """Blocks, float32 (..., n), by q4_0's rule at any width: the value of largest magnitude becomes
    -2^(bits-1).
    """
    low = 2 ** (bits - 1)
    peak = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = half(peak / -low)
    inverse = torch.where(scale != 0, 1 / scale, 0.0)
    return ((x * inverse + low + 0.5).floor().clamp(0, 2 * low - 1) - low) * scale


def tq(x: Tensor, bits: int, scale: str) -> Tensor:
    """Rows (..., head_dim) through a Hadamard matrix in blocks of 64, coded, and back."""
    matrix = hadamard_matrix(BLOCK, x.device)
    blocks = x.float().unflatten(-1, (-1, BLOCK)) @ matrix
    return (coded(blocks, bits, scale) @ matrix).flatten(-2)


def split(x: Tensor, order: Tensor, strong: int, weak: int, lloyd: bool) -> Tensor:
    """Rows (B, n_head_kv, T, head_dim) in blocks of 64, half of each of the dimensions with the most energy.

    order: int64 (n_head_kv, head_dim), dimensions by falling energy.
    """
    d = x.shape[-1]
    n_blocks = d // BLOCK
    # Block b takes every n_blocks-th strong dimension and every n_blocks-th weak one.
    ranks = torch.arange(d, device=x.device).view(2, -1, n_blocks).permute(2, 0, 1).reshape(-1)
    index = order[:, ranks]
    taken = (
        x.float()
        .gather(-1, index[None, :, None].expand(*x.shape[:3], d))
        .unflatten(-1, (n_blocks, 2, BLOCK // 2))
    )
    matrix = hadamard_matrix(BLOCK // 2, x.device)
    rotated = taken @ matrix
    halves = [
        coded(rotated[..., i, :], bits, "searched") if lloyd else absmax(rotated[..., i, :], bits)
        for i, bits in enumerate((strong, weak))
    ]
    back = (torch.stack(halves, -2) @ matrix).flatten(-3)
    out = torch.empty_like(back)
    return out.scatter(-1, index[None, :, None].expand(*x.shape[:3], d), back)


# ---- the model ----


def seen(n: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees, bool (n, n): those before it and itself, the last ones of a window."""
    back = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)[None]
    return (back >= 0) & (back < (window or n))


def pair_weights(
    query: Tensor, key: Tensor, value: Tensor, weights: str, scale: float, mask: Tensor
) -> Tensor:
    """How much an error of each logit counts, a name of WEIGHTS but "none": float32 (n_head, n, n).

    query (1, n_head, n, head_dim), key and value (1, n_head_kv, n, head_dim). mask: what `seen` returns.
    """
    group = query.shape[1] // key.shape[1]
    keys, values = (x[0].repeat_interleave(group, 0).float() for x in (key, value))
    p = (query[0].float() @ keys.mT * scale).masked_fill(~mask, -torch.inf).softmax(-1)
    if weights == "softmax":
        return p * (1 - p)
    out = p @ values
    square = (values**2).sum(-1)[:, None] - 2 * out @ values.mT + (out**2).sum(-1)[..., None]
    return p**2 * square.clamp(min=0)


class Treated:
    """What attention does with K and V; given to transformers as an attention function."""

    def __init__(self) -> None:
        self.treat: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        self.watch: Callable[[int, Tensor, Tensor, Callable[[str], Tensor]], None] | None = None

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        del attention_mask, dropout
        layer = module.layer_idx
        n = query.shape[2]
        window = sliding_window if sliding_window and sliding_window < n else None
        group = query.shape[1] // key.shape[1]
        if self.watch is not None:
            scale, visible = scaling or query.shape[-1] ** -0.5, seen(n, window, query.device)
            exact = key, value
            self.watch(
                layer, query, key, lambda weights: pair_weights(query, *exact, weights, scale, visible)
            )
        if self.treat is not None:
            key, value = self.treat(layer, key, value)
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        mask = None if window is None else seen(n, window, query.device)
        out = scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scaling)
        return out.transpose(1, 2).contiguous(), None


def load(path: Path, device: torch.device) -> tuple[Any, Any, Treated]:
    """Return a model, its tokenizer, and what treats its K and V."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    treated = Treated()
    ALL_ATTENTION_FUNCTIONS.register("kv_study", treated)
    folder, name = str(path.parent), path.name
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model.config._attn_implementation = "kv_study"
    model.set_attn_implementation("kv_study")
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder, gguf_file=name), treated


def moments_of(layer: int, query: Tensor, key: Tensor, pairs: Tensor | None) -> LayerMoments:
    """Moments of a layer over one chunk.

    query (1, n_head, n, head_dim), key (1, n_head_kv, n, head_dim). pairs: weights, (n_head, n, n), or None.
    """
    keys, queries = key[0].double(), query[0].double().unflatten(0, (len(key[0]), -1))
    of_keys, of_queries = torch.ones_like(keys[..., 0]), torch.ones_like(queries[..., 0])
    if pairs is not None:
        of_groups = pairs.double().unflatten(0, (len(keys), -1))
        of_keys, of_queries = of_groups.sum((1, 2)), of_groups.sum(3)
    weighed_keys = keys * of_keys[..., None]
    weighed_queries = (queries * of_queries[..., None]).flatten(1, 2)
    heads = zip(
        of_keys.sum(1).tolist(),
        of_queries.sum((1, 2)).tolist(),
        weighed_keys.sum(1).cpu().numpy(),
        (weighed_keys.mT @ keys).cpu().numpy(),
        (weighed_queries.mT @ queries.flatten(1, 2)).cpu().numpy(),
        strict=True,
    )
    return LayerMoments(layer, tuple(HeadMoments(*head) for head in heads))


Order = Callable[[int], Tensor]
"""The dimensions of a layer's keys by falling energy, int64 (n_head_kv, head_dim)."""

Coder = Callable[[Tensor, str, Any, int], Tensor]
"""Rows (1, n_head_kv, n, head_dim), what they are stored as, the side and the layer, to what is read back."""


class Study:
    """One model and its texts; measures settings."""

    def __init__(
        self, model_path: Path, fit: Path, judge: Path, n_fit: int, n_judge: int, device: torch.device
    ) -> None:
        self.device = device
        self.model, tokenizer, self.treated = load(model_path, device)
        self.fit_tokens = self._tokens(tokenizer, fit)[:n_fit]
        self.judge_tokens = self._tokens(tokenizer, judge)
        self.n_judge = n_judge
        self.n_ctx_max = int(self.model.config.get_text_config().max_position_embeddings)
        self._moments: dict[tuple[int, str], dict[int, LayerMoments]] = {}
        self._transforms: dict[tuple[Any, ...], dict[int, LayerTransform]] = {}
        self._baselines: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def _tokens(self, tokenizer: Any, path: Path) -> Tensor:
        text = path.read_text(encoding="utf-8")
        return torch.tensor(tokenizer(text, verbose=False)["input_ids"], device=self.device)

    def chunks(self, n_ctx: int) -> list[Tensor]:
        """Whole chunks, so many that their second halves hold the tokens that are scored."""
        n = max(1, round(self.n_judge / (n_ctx / 2)))
        return [
            self.judge_tokens[i * n_ctx : (i + 1) * n_ctx]
            for i in range(min(n, len(self.judge_tokens) // n_ctx))
        ]

    @torch.inference_mode()
    def logits(self, chunk: Tensor) -> Tensor:
        """Log probabilities after the second half of a chunk, at most its last 1,024 tokens; float32."""
        n = min(len(chunk) // 2, 1024)
        hidden = self.model.model(chunk[None]).last_hidden_state[0, -n:]
        return torch.log_softmax(self.model.lm_head(hidden).float(), -1)

    def baseline(self, n_ctx: int) -> list[tuple[Tensor, Tensor]]:
        """Chunks and their exact log probabilities."""
        if n_ctx not in self._baselines:
            self._baselines.clear()
            self.treated.treat = None
            self._baselines[n_ctx] = [(chunk, self.logits(chunk)) for chunk in self.chunks(n_ctx)]
        return self._baselines[n_ctx]

    def moments(self, n_ctx: int, weights: str) -> dict[int, LayerMoments]:
        """Moments by layer, over the fitting text in chunks of n_ctx."""
        if (n_ctx, weights) not in self._moments:
            sums: dict[int, LayerMoments] = {}

            def watch(layer: int, query: Tensor, key: Tensor, pairs: Callable[[str], Tensor]) -> None:
                new = moments_of(layer, query, key, None if weights == "none" else pairs(weights))
                sums[layer] = sums[layer] + new if layer in sums else new

            self.treated.treat, self.treated.watch = None, watch
            with torch.inference_mode():
                for start in range(0, len(self.fit_tokens), n_ctx):
                    self.model.model(self.fit_tokens[start : start + n_ctx][None])
            self.treated.watch = None
            self._moments[n_ctx, weights] = sums
        return self._moments[n_ctx, weights]

    def transforms(self, setting: Setting) -> dict[int, LayerTransform]:
        """The transforms of a setting, by layer."""
        key = (setting.transform, setting.fit_ctx, setting.shrink, setting.floor, setting.weights)
        if setting.transform != "none" and key not in self._transforms:
            kind, _, uncentred = setting.transform.partition("-")
            options = FitOptions(setting.floor, setting.shrink, centred=not uncentred)
            moments = self.moments(setting.fit_ctx, setting.weights)
            known = next(name for name in KINDS if name == kind)
            self._transforms[key] = {i: fit_layer(m, known, options) for i, m in moments.items()}
        return self._transforms.get(key, {})

    def order(self, layer: int, setting: Setting, transform: LayerTransform | None) -> Tensor:
        """Dimensions by falling energy of transformed keys, int64 (n_head_kv, head_dim)."""
        rows = []
        for index, head in enumerate(self.moments(setting.fit_ctx, setting.weights)[layer].heads):
            if transform is None:
                energy = np.diag(head.key_energy(np.zeros(head.width)))
            else:
                p = head.key_energy(transform.centre[index].astype(np.float64))
                m = (
                    np.eye(head.width)
                    if transform.forward is None
                    else transform.forward[index].astype(np.float64)
                )
                m = np.diag(m) if m.ndim == 1 else m
                energy = np.diag(m @ p @ m.T)
            rows.append(np.argsort(-energy, kind="stable"))
        return torch.tensor(np.stack(rows), device=self.device)

    def coder(self, setting: Setting, order: Order) -> Coder:
        """What stores one side of a layer and gives it back, by the names of a setting."""

        def one(x: Tensor, name: str, side: Any, layer: int) -> Tensor:
            if name.startswith("tq"):
                return tq(x, int(name[2:]), setting.scale)
            if name[0] in "sl" and name[1:].isdigit():
                return split(x, order(layer), int(name[1]), int(name[2]), name[0] == "l")
            width = x.shape[-1]
            rotated = setting.rotate and llama_block(width, side) is not None
            return stored(x, storage_format(name, width, side, rotate=rotated))

        return one

    def treatment(self, setting: Setting) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What a setting does to K (1, n_head_kv, n, head_dim) and V of a layer."""
        transforms = self.transforms(setting)
        one = self.coder(setting, cache(lambda layer: self.order(layer, setting, transforms.get(layer))))

        def treat(layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            transform = transforms.get(layer)
            changed = key
            if setting.k != "f16":
                changed = key.transpose(1, 2)
                changed = changed if transform is None else transform.apply_k(changed)
                changed = one(changed.transpose(1, 2), setting.k, "k", layer).transpose(1, 2)
                changed = (changed if transform is None else transform.undo_k(changed)).transpose(1, 2)
            values = value if setting.v == "f16" else one(value, setting.v, "v", layer)
            n = setting.exact_first
            if n:
                changed = torch.cat([key[:, :, :n], changed[:, :, n:]], 2)
                values = torch.cat([value[:, :, :n], values[:, :, n:]], 2)
            return changed, values

        return treat

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Return the record of a setting: mean KL in nats a token and by chunk, top-1 agreement."""
        baseline = self.baseline(setting.n_ctx)
        self.treated.treat = self.treatment(setting)
        kl, same = [], []
        for chunk, exact in baseline:
            found = self.logits(chunk)
            kl.append(float((exact.exp() * (exact - found)).sum(-1).double().mean()))
            same.append(float((exact.argmax(-1) == found.argmax(-1)).double().mean()))
        self.treated.treat = None
        return {
            **asdict(setting),
            "kl": float(np.mean(kl)),
            "kl_by_chunk": kl,
            "top1": float(np.mean(same)),
            "n_tokens": sum(len(exact) for _, exact in baseline),
        }


def provenance(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was run on what, as the line that begins a run."""

    def sha256(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    cuda = options.device.startswith("cuda")
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": name,
        "model_sha256": sha256(options.model),
        "fit_sha256": sha256(options.fit),
        "fit_tokens": options.fit_tokens,
        "judge_sha256": sha256(options.judge),
        "judge_tokens": options.judge_tokens,
        "device": torch.cuda.get_device_name(options.device) if cuda else "CPU",
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", choices=STUDIES, default="kinds", help="which settings (%(default)s)")
    parser.add_argument("--model", type=Path, required=True, help="a GGUF that transformers reads")
    parser.add_argument("--name", help="of the model in the records; else its file's")
    parser.add_argument("--fit", type=Path, required=True, help="text that transforms are fitted on")
    parser.add_argument("--judge", type=Path, required=True, help="text that settings are measured on")
    parser.add_argument("--fit-tokens", type=int, default=16384, help="(%(default)s)")
    parser.add_argument("--judge-tokens", type=int, default=2048, help="scored, at least (%(default)s)")
    parser.add_argument("--device", default="cpu", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--ctx-max", type=int, default=16384, help="(%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSONL; gone on with")
    options = parser.parse_args()
    begun = time.monotonic()
    name = options.name or options.model.name
    done = set()
    if options.out.exists():
        for line in options.out.read_text().splitlines():
            record = json.loads(line)
            if "started" in record:
                continue
            done.add(key_of(record))
    torch.backends.cuda.matmul.allow_tf32 = False
    study = Study(
        options.model,
        options.fit,
        options.judge,
        options.fit_tokens,
        options.judge_tokens,
        torch.device(options.device),
    )
    with options.out.open("a") as file:
        file.write(json.dumps(provenance(name, options)) + "\n")
        for setting in STUDIES[options.study](min(study.n_ctx_max, options.ctx_max)):
            if key_of({"model": name, **asdict(setting)}) in done:
                continue
            if time.monotonic() - begun > options.seconds:
                break
            record = {"model": name, **study.measure(setting)}
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{name} {setting} {record['kl']:.4g}", file=sys.stderr)


if __name__ == "__main__":
    main()
