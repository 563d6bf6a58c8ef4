"""What a calibration will do, and what of it can be refused before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvquant.errors import TransformError, UsageError
from kvquant.files import write_atomic
from kvquant.formats.registry import ORDERED_TYPES
from kvquant.formats.storage import NOT_QUANTIZED
from kvquant.model.gguf_file import GgufModel
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy
from kvquant.transform import Kind
from kvquant.transform.order import places

SHALLOW = 8
"""A quarter of what is fitted comes in chunks of n_ctx / SHALLOW tokens, so that short sequences count beside
the depth that is served; scored are positions from there on."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What is fitted on what.

    n_ctx: the deepest position. n_fit: tokens to fit on. n_chunks: chunks of n_ctx tokens to choose by; twice
    as many judge. policy: canonical text of what kinds are judged with. kind: for all layers, or "auto".
    centred: False for kinds without a centre. n_rounds: of `search.choose`.
    """

    programs: Path
    model: GgufModel
    shape: ModelShape
    text: Path
    n_ctx: int
    n_fit: int
    n_chunks: int
    policy: str
    kind: Kind | Literal["auto"]
    centred: bool = True
    n_rounds: int = 2
    n_threads: int | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose keys the policy quantizes."""
        resolved = parse_policy(self.policy).resolve(self.shape)
        return tuple(layer.layer for layer in resolved.layers if layer.k_type not in NOT_QUANTIZED)

    @property
    def ordered(self) -> bool:
        """Whether the policy's types want the dimensions of keys in order."""
        resolved = parse_policy(self.policy).resolve(self.shape)
        return any(layer.k_type in ORDERED_TYPES for layer in resolved.layers)

    @property
    def contexts(self) -> dict[int, int]:
        """Tokens to fit on, by the length of the chunks they come in."""
        shallow = self.n_ctx // SHALLOW
        if shallow < 64:
            return {self.n_ctx: self.n_fit}
        n_shallow = self.n_fit // 4 // shallow * shallow
        return {self.n_ctx: self.n_fit - n_shallow, shallow: n_shallow}

    @property
    def first_scored(self) -> int:
        """Position of a chunk from which tokens are scored."""
        return max(1, self.n_ctx // SHALLOW)


def sees_logits(model: GgufModel) -> str | None:
    """Say what besides the softmax sees the logits, so that keys cannot be centred; None for nothing."""
    if model.header.values.get(f"{model.arch}.attn_logit_softcapping"):
        return "caps its logits"
    sinks = any("attn_sinks" in tensor.name for shard in model.shards for tensor in shard.tensors)
    return "has attention sinks" if sinks else None


def check_plan(plan: CalibrationPlan) -> None:
    """Raise KVQuantError, one line, for what cannot be calibrated, before anything runs."""
    if plan.shape.mla:
        raise TransformError(
            f"{plan.model.shown}: its K is also its V (MLA), so no transform of K alone is exact"
        )
    if not plan.layers:
        raise UsageError(f"--policy {plan.policy}: quantizes no keys, so a transform cannot help")
    if plan.ordered:
        for layer in plan.layers:
            places(plan.shape.layers[layer].head_dim_k)
    seen = sees_logits(plan.model)
    if seen is not None and plan.centred and plan.kind == "centre":
        raise TransformError(f"{plan.model.shown} {seen}: keys cannot be centred; choose another --kind")
    if plan.shape.n_ctx_train and plan.n_ctx > plan.shape.n_ctx_train:
        raise UsageError(
            f"--ctx {plan.n_ctx}: {plan.model.name} was trained on {plan.shape.n_ctx_train} tokens; give at "
            "most as many"
        )
    if plan.n_fit < plan.n_ctx:
        raise UsageError(f"--tokens {plan.n_fit}: fewer than --ctx {plan.n_ctx}; give at least one chunk")


def split_text(text: str, shares: Sequence[int]) -> list[str]:
    """Cut a text into parts of these shares, at the first line's end behind each cut where one is near."""
    parts, at, total = [], 0, sum(shares)
    for index in range(1, len(shares)):
        cut = max(at, len(text) * sum(shares[:index]) // total)
        near = text.find("\n", cut, cut + 4096)
        cut = cut if near < 0 else near + 1
        parts.append(text[at:cut])
        at = cut
    return [*parts, text[at:]]


def write_parts(plan: CalibrationPlan, work: Path) -> tuple[Path, Path, Path]:
    """Write the parts of the text, as long as what they are for needs them to be."""
    try:
        text = plan.text.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--text {plan.text}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {plan.text}: byte {error.start} is not UTF-8; give a text file") from error
    n_choosing = plan.n_chunks * plan.n_ctx
    paths = tuple(work / f"{name}.txt" for name in ("fitting", "choosing", "judging"))
    for path, part in zip(paths, split_text(text, (plan.n_fit, n_choosing, 2 * n_choosing)), strict=True):
        if not path.exists():
            write_atomic(path, part)
    return paths[0], paths[1], paths[2]
