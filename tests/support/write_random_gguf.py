#!/usr/bin/env python3
"""Write a small GGUF with random weights that the pinned llama.cpp loads and generates text with.

The files are fixtures: they have the header keys, tensor names and tensor shapes of a real architecture and
nothing learned. They exist so that what llama.cpp allocates for the KV cache can be compared with what the
package computes, for every architecture the package has rules for. docs/fixtures.md describes the options.

Sources at the pinned llama.cpp: src/models/<arch>.cpp (load_arch_hparams: keys, load_arch_tensors: tensors);
src/llama-arch.cpp (names); src/llama-vocab.cpp (what a tokenizer needs at least).

Example: tests/support/write_random_gguf.py --arch gemma3 --layers 12 --kv-heads 2 --out gemma3.gguf
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

N_EXPERT = 4
N_EXPERT_USED = 2
SSM_STATE_SIZE = 32
SSM_CONV_KERNEL = 4
SHORTCONV_CACHE = 3
DEFAULT_WINDOW = 256
# Fixed in llama.cpp for gemma3n (src/llama-hparams.h: n_altup, laurel_rank, n_embd_altup).
GEMMA3N_ALTUP, GEMMA3N_LAUREL_RANK, GEMMA3N_ALTUP_WIDTH = 4, 64, 256

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class RandomModel:
    """What to write. Architectures that have no use for a field ignore it.

    n_layer: all layers, the nextn (MTP) ones included.
    head_dim: values per head of K and V. deepseek2 stores a latent of 2 * head_dim values and head_dim
        rotary values per token instead.
    width: values of the embedding; None is n_head * head_dim.
    window: sliding-window tokens, where the architecture reads them; None is 256, and no window in lfm2.
    full_every: every full_every-th layer has full attention (a sliding-window model) or attention at all
        (a hybrid model); None leaves it to the architecture's default, or to 4 where that is not a period.
    n_nextn: how many of the last layers are nextn layers (qwen35, qwen35moe, glm4moe, deepseek2).
    n_shared_kv: how many of the last layers read another layer's cache (gemma4).
    kv_heads: KV heads per layer, instead of n_head_kv in all of them (llama, qwen3moe, gemma4 and the like).
    """

    arch: str = "llama"
    n_layer: int = 4
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    width: int | None = None
    n_ff: int = 256
    n_ctx_train: int = 32768
    window: int | None = None
    full_every: int | None = None
    n_nextn: int = 0
    n_shared_kv: int = 0
    kv_heads: tuple[int, ...] | None = None
    seed: int = 0

    @property
    def n_embd(self) -> int:
        return self.width or self.n_head * self.head_dim

    @property
    def n_trunk(self) -> int:
        return self.n_layer - self.n_nextn

    def head_kv(self, il: int) -> int:
        return self.kv_heads[il] if self.kv_heads else self.n_head_kv

    def is_full(self, il: int) -> bool:
        """Whether layer il is the one in full_every (4 unless given) that attends to everything."""
        return il >= self.n_trunk or (il + 1) % (self.full_every or 4) == 0


class Builder:
    """Collects keys and tensors; shapes are given as ggml writes them, the contiguous axis first."""

    def __init__(self, model: RandomModel, path: Path) -> None:
        self.model = model
        self.writer = gguf.GGUFWriter(path, model.arch)
        self.rng = np.random.default_rng(model.seed)
        self.n_vocab = 0

    def set(self, key: str, value: bool | int | float | Sequence[int] | Sequence[bool]) -> None:
        """Set the architecture's key ``key``; integers as uint32 (int32 in arrays), floats as float32."""
        name = f"{self.model.arch}.{key}"
        if isinstance(value, bool):
            self.writer.add_bool(name, value)
        elif isinstance(value, int):
            self.writer.add_uint32(name, value)
        elif isinstance(value, float):
            self.writer.add_float32(name, value)
        else:
            self.writer.add_array(name, list(value))

    def _add(self, name: str, ne: tuple[int, ...], values: npt.NDArray[np.float32], dtype: type) -> None:
        self.writer.add_tensor(name, values.reshape(ne[::-1]).astype(dtype))

    def matrix(self, name: str, *ne: int, dtype: type = np.float16) -> None:
        """A weight whose products keep the scale of their input."""
        values = self.rng.standard_normal(int(np.prod(ne)), dtype=np.float32) / np.float32(ne[0] ** 0.5)
        self._add(name, ne, values, dtype)

    def vector(self, name: str, *ne: int, around: float) -> None:
        """A norm (around 1) or bias (around 0), in float32."""
        values = around + np.float32(0.1) * self.rng.standard_normal(int(np.prod(ne)), dtype=np.float32)
        self._add(name, ne, values.astype(np.float32), np.float32)

    def norm(self, name: str, *ne: int) -> None:
        self.vector(name, *ne, around=1.0)

    def bias(self, name: str, *ne: int) -> None:
        self.vector(name, *ne, around=0.0)

    def decay(self, name: str, *ne: int) -> None:
        """The A of a state-space layer, which must be negative or the state grows without bound."""
        values = -np.abs(self.rng.standard_normal(int(np.prod(ne)), dtype=np.float32)) - np.float32(0.1)
        self._add(name, ne, values, np.float32)


def add_tokenizer(b: Builder) -> None:
    """A SentencePiece vocabulary: control tokens, every byte, every printable ASCII character."""
    control = ["<unk>", "<s>", "</s>", "<|endoftext|>"]  # phi3 cannot do without the last
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    ascii_ = ["▁", *(chr(code) for code in range(0x21, 0x7F))]
    tokens = [*control, *bytes_, *ascii_]
    types = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * (len(control) - 1)
    types += [gguf.TokenType.BYTE] * len(bytes_) + [gguf.TokenType.NORMAL] * len(ascii_)
    b.n_vocab = len(tokens)
    b.writer.add_tokenizer_model("llama")
    b.writer.add_token_list(tokens)
    b.writer.add_token_scores([0.0] * len(tokens))
    b.writer.add_token_types(types)
    b.writer.add_bos_token_id(1)
    b.writer.add_eos_token_id(2)
    b.writer.add_unk_token_id(0)
    b.writer.add_chat_template(CHAT_TEMPLATE)


def add_common(
    b: Builder,
    *,
    layer_norm: bool = False,
    heads: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
) -> None:
    """The keys every architecture reads, and the embedding."""
    m = b.model
    b.writer.add_name(f"random {m.arch}, seed {m.seed}")
    b.set("context_length", m.n_ctx_train)
    b.set("embedding_length", m.n_embd)
    b.set("block_count", m.n_layer)
    b.set("attention.head_count", heads or m.n_head)
    b.set("attention.head_count_kv", kv_heads or m.kv_heads or m.n_head_kv)
    b.set(f"attention.layer_norm_{'' if layer_norm else 'rms_'}epsilon", 1e-5)
    if m.n_nextn:
        b.set("nextn_predict_layers", m.n_nextn)
    b.matrix("token_embd.weight", m.n_embd, b.n_vocab)


def add_attention(
    b: Builder,
    il: int,
    *,
    head_dim: int | None = None,
    qk_norm: str | None = None,
    bias: bool = False,
    out_bias: bool = False,
    fused: bool = False,
    gated: bool = False,
    own_kv: bool = True,
) -> None:
    """Q, K, V and output of layer il. qk_norm: "head" norms each head, "all" the whole projection."""
    m, blk = b.model, f"blk.{il}"
    dim = head_dim or m.head_dim
    q, kv = dim * m.n_head, dim * m.head_kv(il)
    widths = {"q": 2 * q if gated else q} | ({"k": kv, "v": kv} if own_kv else {})
    if fused:
        widths = {"qkv": sum(widths.values())}
    for side, width in widths.items():
        b.matrix(f"{blk}.attn_{side}.weight", m.n_embd, width)
        if bias:
            b.bias(f"{blk}.attn_{side}.bias", width)
    b.matrix(f"{blk}.attn_output.weight", q, m.n_embd)
    if out_bias:
        b.bias(f"{blk}.attn_output.bias", m.n_embd)
    if qk_norm:
        b.norm(f"{blk}.attn_q_norm.weight", dim if qk_norm == "head" else q)
        if own_kv:
            b.norm(f"{blk}.attn_k_norm.weight", dim if qk_norm == "head" else kv)


def add_ffn(b: Builder, il: int, *, gate: str = "separate", bias: bool = False) -> None:
    """The feed-forward of layer il. gate: "separate", "fused" (inside ffn_up) or "none"."""
    m, blk = b.model, f"blk.{il}"
    if gate == "separate":
        b.matrix(f"{blk}.ffn_gate.weight", m.n_embd, m.n_ff)
    b.matrix(f"{blk}.ffn_up.weight", m.n_embd, m.n_ff * (2 if gate == "fused" else 1))
    b.matrix(f"{blk}.ffn_down.weight", m.n_ff, m.n_embd)
    if bias:
        b.bias(f"{blk}.ffn_up.bias", m.n_ff)
        b.bias(f"{blk}.ffn_down.bias", m.n_embd)


def add_experts(
    b: Builder,
    il: int,
    *,
    parts: tuple[str, ...] = ("gate", "up", "down"),
    shared: bool = False,
    gate_shared: bool = False,
    bias: bool = False,
    router_bias: bool = False,
) -> None:
    """Routed experts of layer il, with a shared expert (and its own gate) or biases where asked."""
    m, blk = b.model, f"blk.{il}"
    b.matrix(f"{blk}.ffn_gate_inp.weight", m.n_embd, N_EXPERT, dtype=np.float32)
    for part in parts:
        ne = (m.n_ff, m.n_embd) if part == "down" else (m.n_embd, m.n_ff)
        b.matrix(f"{blk}.ffn_{part}_exps.weight", *ne, N_EXPERT)
        if bias:
            b.bias(f"{blk}.ffn_{part}_exps.bias", ne[1], N_EXPERT)
        if shared:
            b.matrix(f"{blk}.ffn_{part}_shexp.weight", *ne)
    if bias:
        b.bias(f"{blk}.ffn_gate_inp.bias", N_EXPERT)
    if router_bias:
        b.bias(f"{blk}.exp_probs_b.bias", N_EXPERT)
    if gate_shared:
        b.matrix(f"{blk}.ffn_gate_inp_shexp.weight", m.n_embd, dtype=np.float32)


def set_experts(b: Builder, *, shared: int = 0) -> None:
    b.set("expert_count", N_EXPERT)
    b.set("expert_used_count", N_EXPERT_USED)
    b.set("expert_feed_forward_length", b.model.n_ff)
    if shared:
        b.set("expert_shared_count", shared)
        b.set("expert_shared_feed_forward_length", b.model.n_ff)


def add_nextn(b: Builder, il: int) -> None:
    """What turns layer il into a nextn (MTP) layer."""
    n_embd, blk = b.model.n_embd, f"blk.{il}.nextn"
    b.matrix(f"{blk}.eh_proj.weight", 2 * n_embd, n_embd)
    b.norm(f"{blk}.enorm.weight", n_embd)
    b.norm(f"{blk}.hnorm.weight", n_embd)


def set_window(b: Builder, *, pattern: str = "period") -> None:
    """Window and pattern keys. pattern: "period" (only when asked for), "array", or "none"."""
    m = b.model
    b.set("attention.sliding_window", m.window or DEFAULT_WINDOW)
    if pattern == "array":
        b.set("attention.sliding_window_pattern", [not m.is_full(il) for il in range(m.n_layer)])
    elif pattern == "period" and m.full_every is not None:
        b.set("attention.sliding_window_pattern", m.full_every)


@dataclass(frozen=True)
class Dense:
    """A decoder whose layers are all attention plus feed-forward; the fields are where families differ."""

    layer_norm: bool = False
    pre_norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    post_norms: tuple[str, ...] = ()
    qk_norm: str | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    fused_qkv: bool = False
    gate: str = "separate"
    ffn_bias: bool = False
    # "routed", "biased", "shared" (one shared expert), "gated" (that with its own gate),
    # "after-dense" (shared, router bias, and layer 0 without experts)
    experts: str | None = None
    sinks: bool = False
    own_output: bool = False
    window: str | None = None  # the pattern argument of set_window
    keys: tuple[tuple[str, bool | int | float], ...] = ()
    sections: bool = False

    def __call__(self, b: Builder) -> None:
        m = b.model
        add_common(b, layer_norm=self.layer_norm)
        b.set("feed_forward_length", m.n_ff)
        b.set("attention.key_length", m.head_dim)
        b.set("attention.value_length", m.head_dim)
        if self.experts:
            set_experts(b, shared=1 if self.experts in ("shared", "gated", "after-dense") else 0)
        if self.window:
            set_window(b, pattern=self.window)
        if self.sections:
            quarter = m.head_dim // 8
            b.set("rope.dimension_sections", [2 * quarter, quarter, quarter, 0])
        for key, value in self.keys:
            b.set(key, value)
        for il in range(m.n_layer):
            self._add_layer(b, il)
        b.norm("output_norm.weight", m.n_embd)
        if self.layer_norm and self.ffn_bias:
            b.bias("output_norm.bias", m.n_embd)
        if self.own_output:
            b.matrix("output.weight", m.n_embd, b.n_vocab)

    def _add_layer(self, b: Builder, il: int) -> None:
        m, blk = b.model, f"blk.{il}"
        for name in (*self.pre_norms, *self.post_norms):
            b.norm(f"{blk}.{name}.weight", m.n_embd)
            if self.layer_norm and self.ffn_bias:
                b.bias(f"{blk}.{name}.bias", m.n_embd)
        add_attention(
            b, il, qk_norm=self.qk_norm, bias=self.qkv_bias, out_bias=self.out_bias, fused=self.fused_qkv
        )
        if self.sinks:
            b.bias(f"{blk}.attn_sinks.weight", m.n_head)
        if self.experts is None or (self.experts == "after-dense" and il == 0):
            add_ffn(b, il, gate=self.gate, bias=self.ffn_bias)
        else:
            add_experts(
                b,
                il,
                shared=self.experts in ("shared", "gated", "after-dense"),
                gate_shared=self.experts == "gated",
                bias=self.experts == "biased",
                router_bias=self.experts == "after-dense",
            )
        if il >= m.n_trunk:
            add_nextn(b, il)


def write_deci(b: Builder) -> None:
    """A pruned model: a layer without KV heads has no attention, and a cache of no rows."""
    m = b.model
    kv_heads = [m.head_kv(il) for il in range(m.n_layer)]
    add_common(b, heads=[m.n_head if n else 0 for n in kv_heads], kv_heads=kv_heads)
    b.set("feed_forward_length", m.n_ff)
    b.set("attention.key_length", m.head_dim)
    b.set("attention.value_length", m.head_dim)
    for il in range(m.n_layer):
        if kv_heads[il]:
            b.norm(f"blk.{il}.attn_norm.weight", m.n_embd)
            add_attention(b, il)
        b.norm(f"blk.{il}.ffn_norm.weight", m.n_embd)
        add_ffn(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_deepseek2(b: Builder) -> None:
    """Multi-head latent attention: one K row of latent and rotary values per token, no V."""
    m = b.model
    latent, rope, nope, value = 2 * m.head_dim, m.head_dim, m.head_dim, m.head_dim
    add_common(b, kv_heads=[1] * m.n_layer)
    b.set("feed_forward_length", m.n_ff)
    b.set("leading_dense_block_count", 1)
    b.set("rope.dimension_count", rope)
    b.set("attention.q_lora_rank", m.n_embd // 2)
    b.set("attention.kv_lora_rank", latent)
    b.set("attention.key_length", latent + rope)
    b.set("attention.value_length", latent)
    b.set("attention.key_length_mla", nope + rope)
    b.set("attention.value_length_mla", value)
    set_experts(b, shared=1)
    for il in range(m.n_layer):
        blk = f"blk.{il}"
        b.norm(f"{blk}.attn_norm.weight", m.n_embd)
        b.norm(f"{blk}.ffn_norm.weight", m.n_embd)
        b.norm(f"{blk}.attn_q_a_norm.weight", m.n_embd // 2)
        b.norm(f"{blk}.attn_kv_a_norm.weight", latent)
        b.matrix(f"{blk}.attn_q_a.weight", m.n_embd, m.n_embd // 2)
        b.matrix(f"{blk}.attn_q_b.weight", m.n_embd // 2, m.n_head * (nope + rope))
        b.matrix(f"{blk}.attn_kv_a_mqa.weight", m.n_embd, latent + rope)
        b.matrix(f"{blk}.attn_k_b.weight", nope, latent, m.n_head)
        b.matrix(f"{blk}.attn_v_b.weight", latent, value, m.n_head)
        b.matrix(f"{blk}.attn_output.weight", m.n_head * value, m.n_embd)
        if il == 0:
            add_ffn(b, il)
        else:
            add_experts(b, il, shared=True)
        if il >= m.n_trunk:
            add_nextn(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_gemma3n(b: Builder) -> None:
    """Gemma 3n: llama.cpp lets layers from 20 on read the caches of layers 18 and 19."""
    m = b.model
    altup = GEMMA3N_ALTUP
    Dense(post_norms=("post_attention_norm", "post_ffw_norm"), qk_norm="head", window="period")(b)
    b.matrix("altup_proj.weight", m.n_embd, m.n_embd, altup - 1)
    b.matrix("altup_unembd_proj.weight", m.n_embd, m.n_embd, altup - 1)
    b.matrix("per_layer_token_embd.weight", GEMMA3N_ALTUP_WIDTH * m.n_layer, b.n_vocab)
    b.matrix("per_layer_model_proj.weight", m.n_embd, GEMMA3N_ALTUP_WIDTH * m.n_layer)
    b.norm("per_layer_proj_norm.weight", GEMMA3N_ALTUP_WIDTH)
    for il in range(m.n_layer):
        blk = f"blk.{il}"
        b.matrix(f"{blk}.inp_gate.weight", m.n_embd, GEMMA3N_ALTUP_WIDTH)
        b.matrix(f"{blk}.proj.weight", GEMMA3N_ALTUP_WIDTH, m.n_embd)
        b.matrix(f"{blk}.altup_correct_coef.weight", altup, altup, dtype=np.float32)
        b.matrix(f"{blk}.altup_predict_coef.weight", altup, altup * altup, dtype=np.float32)
        b.matrix(f"{blk}.altup_router.weight", m.n_embd, altup, dtype=np.float32)
        b.matrix(f"{blk}.laurel_l.weight", m.n_embd, GEMMA3N_LAUREL_RANK)
        b.matrix(f"{blk}.laurel_r.weight", GEMMA3N_LAUREL_RANK, m.n_embd)
        for name in ("post_norm", "altup_correct_scale", "altup_router_norm", "laurel_post_norm"):
            b.norm(f"{blk}.{name}.weight", m.n_embd)


def write_gemma4(b: Builder) -> None:
    """Gemma 4: heads twice as wide in the full layers, and last layers that share an earlier cache."""
    m = b.model
    add_common(b)
    b.set("feed_forward_length", m.n_ff)
    b.set("attention.key_length", 2 * m.head_dim)
    b.set("attention.value_length", 2 * m.head_dim)
    b.set("attention.key_length_swa", m.head_dim)
    b.set("attention.value_length_swa", m.head_dim)
    b.set("attention.shared_kv_layers", m.n_shared_kv)
    b.set("embedding_length_per_layer_input", 0)
    b.set("rope.dimension_count", 2 * m.head_dim)
    b.set("rope.dimension_count_swa", m.head_dim)
    set_window(b, pattern="array")
    b.norm("rope_freqs.weight", m.head_dim)
    for il in range(m.n_layer):
        for name in ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"):
            b.norm(f"blk.{il}.{name}.weight", m.n_embd)
        add_attention(
            b,
            il,
            head_dim=m.head_dim * (2 if m.is_full(il) else 1),
            qk_norm="head",
            own_kv=il < m.n_layer - m.n_shared_kv,
        )
        add_ffn(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_qwen_linear(b: Builder, *, experts: bool, legacy_ba: bool = False) -> None:
    """Gated delta net layers with a full-attention layer in every full_every (4)."""
    m = b.model
    n_k_heads, n_v_heads, state = 2, 4, SSM_STATE_SIZE
    key_dim, value_dim = n_k_heads * state, n_v_heads * state
    quarter = m.head_dim // 8
    add_common(b)
    b.set("feed_forward_length", m.n_ff)
    b.set("attention.key_length", m.head_dim)
    b.set("attention.value_length", m.head_dim)
    b.set("rope.dimension_sections", [2 * quarter, quarter, quarter, 0])
    b.set("ssm.conv_kernel", SSM_CONV_KERNEL)
    b.set("ssm.inner_size", value_dim)
    b.set("ssm.state_size", state)
    b.set("ssm.time_step_rank", n_v_heads)
    b.set("ssm.group_count", n_k_heads)
    if m.full_every is not None:
        b.set("full_attention_interval", m.full_every)
    if experts:
        set_experts(b, shared=1)
    for il in range(m.n_layer):
        blk = f"blk.{il}"
        b.norm(f"{blk}.attn_norm.weight", m.n_embd)
        b.norm(f"{blk}.post_attention_norm.weight", m.n_embd)
        if m.is_full(il):
            add_attention(b, il, qk_norm="head", gated=True)
        else:
            b.matrix(f"{blk}.attn_qkv.weight", m.n_embd, 2 * key_dim + value_dim)
            b.matrix(f"{blk}.attn_gate.weight", m.n_embd, value_dim)
            b.matrix(f"{blk}.ssm_conv1d.weight", SSM_CONV_KERNEL, 2 * key_dim + value_dim, dtype=np.float32)
            b.bias(f"{blk}.ssm_dt.bias", n_v_heads)
            b.decay(f"{blk}.ssm_a", n_v_heads)
            if legacy_ba:
                b.matrix(f"{blk}.ssm_ba.weight", m.n_embd, 2 * n_v_heads)
            else:
                b.matrix(f"{blk}.ssm_beta.weight", m.n_embd, n_v_heads)
                b.matrix(f"{blk}.ssm_alpha.weight", m.n_embd, n_v_heads)
            b.norm(f"{blk}.ssm_norm.weight", state)
            b.matrix(f"{blk}.ssm_out.weight", value_dim, m.n_embd)
        if experts:
            add_experts(b, il, shared=True, gate_shared=True)
        else:
            add_ffn(b, il)
        if il >= m.n_trunk:
            add_nextn(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_lfm2(b: Builder, *, experts: bool = False) -> None:
    """Short convolutions with an attention layer in every full_every (4); with a window, these slide."""
    m = b.model
    add_common(b, kv_heads=[m.head_kv(il) if m.is_full(il) else 0 for il in range(m.n_layer)])
    b.set("feed_forward_length", m.n_ff)
    b.set("shortconv.l_cache", SHORTCONV_CACHE)
    if experts:
        set_experts(b)
        b.set("leading_dense_block_count", 1)
        b.set("expert_gating_func", 2)
    if m.window:
        set_window(b, pattern="none")
    for il in range(m.n_layer):
        blk = f"blk.{il}"
        b.norm(f"{blk}.attn_norm.weight", m.n_embd)
        b.norm(f"{blk}.ffn_norm.weight", m.n_embd)
        if m.is_full(il):
            add_attention(b, il, qk_norm="head")
        else:
            b.matrix(f"{blk}.shortconv.conv.weight", SHORTCONV_CACHE, m.n_embd, dtype=np.float32)
            b.matrix(f"{blk}.shortconv.in_proj.weight", m.n_embd, 3 * m.n_embd)
            b.matrix(f"{blk}.shortconv.out_proj.weight", m.n_embd, m.n_embd)
        if experts and il >= 1:
            add_experts(b, il, router_bias=True)
        else:
            add_ffn(b, il)
    b.norm("token_embd_norm.weight", m.n_embd)


def set_mamba(b: Builder, *, n_ssm_head: int, groups: int | None = 1, state: int = SSM_STATE_SIZE) -> None:
    b.set("ssm.conv_kernel", SSM_CONV_KERNEL)
    b.set("ssm.inner_size", 2 * b.model.n_embd)
    b.set("ssm.state_size", state)
    b.set("ssm.time_step_rank", n_ssm_head)
    if groups is not None:
        b.set("ssm.group_count", groups)


def add_mamba2(b: Builder, il: int, *, n_ssm_head: int, norm: bool = True) -> None:
    """A Mamba-2 mixer with one group and an expansion of two."""
    n_embd, blk = b.model.n_embd, f"blk.{il}"
    inner, state = 2 * n_embd, SSM_STATE_SIZE
    b.matrix(f"{blk}.ssm_in.weight", n_embd, 2 * inner + 2 * state + n_ssm_head)
    b.matrix(f"{blk}.ssm_conv1d.weight", SSM_CONV_KERNEL, inner + 2 * state, dtype=np.float32)
    b.bias(f"{blk}.ssm_conv1d.bias", inner + 2 * state)
    b.bias(f"{blk}.ssm_dt.bias", n_ssm_head)
    b.decay(f"{blk}.ssm_a", 1, n_ssm_head)
    b.norm(f"{blk}.ssm_d", 1, n_ssm_head)
    if norm:
        b.norm(f"{blk}.ssm_norm.weight", inner, 1)
    b.matrix(f"{blk}.ssm_out.weight", inner, n_embd)


def write_granite_hybrid(b: Builder) -> None:
    m = b.model
    add_common(b, kv_heads=[m.head_kv(il) if m.is_full(il) else 0 for il in range(m.n_layer)])
    b.set("feed_forward_length", m.n_ff)
    set_mamba(b, n_ssm_head=8)
    for il in range(m.n_layer):
        b.norm(f"blk.{il}.attn_norm.weight", m.n_embd)
        b.norm(f"blk.{il}.ffn_norm.weight", m.n_embd)
        if m.is_full(il):
            add_attention(b, il)
        else:
            add_mamba2(b, il, n_ssm_head=8)
        add_ffn(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_falcon_h1(b: Builder) -> None:
    """Every layer has attention and a Mamba-2 mixer side by side."""
    m = b.model
    add_common(b)
    b.set("feed_forward_length", m.n_ff)
    b.set("attention.key_length", m.head_dim)
    b.set("attention.value_length", m.head_dim)
    set_mamba(b, n_ssm_head=8)
    for il in range(m.n_layer):
        b.norm(f"blk.{il}.attn_norm.weight", m.n_embd)
        b.norm(f"blk.{il}.ffn_norm", m.n_embd)
        add_attention(b, il)
        add_mamba2(b, il, n_ssm_head=8)
        add_ffn(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_nemotron_h(b: Builder, *, experts: bool = False) -> None:
    """Layers that are each one thing: Mamba-2, feed-forward, attention, in turn."""
    m = b.model
    kinds = ["mamba", "ffn", "attention"]
    layers = [kinds[il % 3] for il in range(m.n_layer)]
    add_common(b, kv_heads=[m.head_kv(il) if kind == "attention" else 0 for il, kind in enumerate(layers)])
    b.set("attention.layer_norm_epsilon", 1e-5)
    b.set("feed_forward_length", [m.n_ff if kind == "ffn" else 0 for kind in layers])
    b.set("attention.key_length", m.head_dim)
    b.set("attention.value_length", m.head_dim)
    set_mamba(b, n_ssm_head=8)
    if experts:
        set_experts(b, shared=1)
    for il, kind in enumerate(layers):
        b.norm(f"blk.{il}.attn_norm.weight", m.n_embd)
        if kind == "mamba":
            add_mamba2(b, il, n_ssm_head=8)
        elif kind == "ffn" and experts:
            add_experts(b, il, parts=("up", "down"), shared=True, router_bias=True)
        elif kind == "ffn":
            add_ffn(b, il, gate="none")
        else:
            add_attention(b, il)
    b.norm("output_norm.weight", m.n_embd)


def write_jamba(b: Builder) -> None:
    m = b.model
    inner, state, dt_rank = 2 * m.n_embd, 16, 16
    add_common(b, kv_heads=[m.head_kv(il) if m.is_full(il) else 0 for il in range(m.n_layer)])
    b.set("feed_forward_length", m.n_ff)
    set_mamba(b, n_ssm_head=dt_rank, groups=None, state=state)
    for il in range(m.n_layer):
        blk = f"blk.{il}"
        b.norm(f"{blk}.attn_norm.weight", m.n_embd)
        b.norm(f"{blk}.ffn_norm.weight", m.n_embd)
        if m.is_full(il):
            add_attention(b, il)
        else:
            b.matrix(f"{blk}.ssm_in.weight", m.n_embd, 2 * inner)
            b.matrix(f"{blk}.ssm_conv1d.weight", SSM_CONV_KERNEL, inner, dtype=np.float32)
            b.bias(f"{blk}.ssm_conv1d.bias", inner)
            b.matrix(f"{blk}.ssm_x.weight", inner, dt_rank + 2 * state)
            b.norm(f"{blk}.ssm_dt_norm.weight", dt_rank)
            b.matrix(f"{blk}.ssm_dt.weight", dt_rank, inner)
            b.bias(f"{blk}.ssm_dt.bias", inner)
            b.norm(f"{blk}.ssm_b_norm.weight", state)
            b.norm(f"{blk}.ssm_c_norm.weight", state)
            b.decay(f"{blk}.ssm_a", state, inner)
            b.norm(f"{blk}.ssm_d", inner)
            b.matrix(f"{blk}.ssm_out.weight", inner, m.n_embd)
        add_ffn(b, il)
    b.norm("output_norm.weight", m.n_embd)


_GEMMA_POST_NORMS = ("post_attention_norm", "post_ffw_norm")
_LOGIT_SCALE = (("logit_scale", 1.0),)

ARCHITECTURES: dict[str, Callable[[Builder], None]] = {
    "llama": Dense(),
    "mistral3": Dense(),
    "smollm3": Dense(),
    "granite": Dense(keys=_LOGIT_SCALE),
    "granitemoe": Dense(keys=_LOGIT_SCALE, experts="routed"),
    "arcee": Dense(gate="none"),
    "ernie4_5": Dense(),
    "exaone": Dense(),
    "internlm2": Dense(own_output=True),
    "minicpm": Dense(),
    "seed_oss": Dense(pre_norms=("attn_norm",), post_norms=("post_attention_norm",)),
    "qwen2": Dense(qkv_bias=True),
    "qwen2vl": Dense(qkv_bias=True, sections=True),
    "qwen2moe": Dense(qkv_bias=True, experts="gated", own_output=True),
    "qwen3": Dense(qk_norm="head"),
    "qwen3moe": Dense(qk_norm="head", experts="routed"),
    "qwen3vl": Dense(qk_norm="head", sections=True),
    "qwen3vlmoe": Dense(qk_norm="head", experts="routed", sections=True),
    "phi3": Dense(fused_qkv=True, gate="fused", window="none"),
    "mpt": Dense(layer_norm=True, fused_qkv=True, gate="none", keys=(("attention.max_alibi_bias", 8.0),)),
    "starcoder2": Dense(layer_norm=True, qkv_bias=True, out_bias=True, gate="none", ffn_bias=True),
    "command-r": Dense(layer_norm=True, pre_norms=("attn_norm",), keys=_LOGIT_SCALE),
    "cohere2": Dense(layer_norm=True, pre_norms=("attn_norm",), keys=_LOGIT_SCALE, window="period"),
    "glm4": Dense(post_norms=_GEMMA_POST_NORMS, gate="fused"),
    "glm4moe": Dense(
        pre_norms=("attn_norm",),
        post_norms=("post_attention_norm",),
        qk_norm="head",
        qkv_bias=True,
        experts="after-dense",
        keys=(("leading_dense_block_count", 1),),
    ),
    "olmo2": Dense(
        pre_norms=(), post_norms=_GEMMA_POST_NORMS, qk_norm="all", own_output=True, window="period"
    ),
    "exaone4": Dense(pre_norms=(), post_norms=_GEMMA_POST_NORMS, qk_norm="head", window="period"),
    "llama4": Dense(experts="shared", keys=(("interleave_moe_layer_step", 1),)),
    "gpt-oss": Dense(
        pre_norms=("attn_norm",),
        post_norms=("post_attention_norm",),
        qkv_bias=True,
        out_bias=True,
        experts="biased",
        sinks=True,
        own_output=True,
        window="period",
    ),
    "gemma": Dense(),
    "gemma2": Dense(post_norms=_GEMMA_POST_NORMS, window="period", keys=(("attn_logit_softcapping", 5.0),)),
    "gemma3": Dense(post_norms=_GEMMA_POST_NORMS, qk_norm="head", window="period"),
    "gemma3n": write_gemma3n,
    "gemma4": write_gemma4,
    "deci": write_deci,
    "deepseek2": write_deepseek2,
    "qwen3next": lambda b: write_qwen_linear(b, experts=True, legacy_ba=True),
    "qwen35": lambda b: write_qwen_linear(b, experts=False),
    "qwen35moe": lambda b: write_qwen_linear(b, experts=True),
    "lfm2": write_lfm2,
    "lfm2moe": lambda b: write_lfm2(b, experts=True),
    "granitehybrid": write_granite_hybrid,
    "falcon-h1": write_falcon_h1,
    "nemotron_h": write_nemotron_h,
    "nemotron_h_moe": lambda b: write_nemotron_h(b, experts=True),
    "jamba": write_jamba,
}


def write_random_gguf(path: Path, model: RandomModel) -> Path:
    """Write ``model`` to ``path`` and return the path. The same model gives the same bytes.

    Raises ValueError for an architecture this tool cannot write.
    """
    if model.arch not in ARCHITECTURES:
        raise ValueError(f"no recipe for {model.arch!r}; known: {', '.join(sorted(ARCHITECTURES))}")
    builder = Builder(model, path)
    add_tokenizer(builder)
    ARCHITECTURES[model.arch](builder)
    builder.writer.write_header_to_file()
    builder.writer.write_kv_data_to_file()
    builder.writer.write_tensors_to_file()
    builder.writer.close()
    return path


def main(argv: Sequence[str] | None = None) -> int:
    defaults = {field.name: field.default for field in fields(RandomModel)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default=defaults["arch"], choices=sorted(ARCHITECTURES))
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    for flag, name, text in (
        ("--layers", "n_layer", "layers, nextn layers included"),
        ("--heads", "n_head", "query heads"),
        ("--kv-heads", "n_head_kv", "KV heads"),
        ("--head-dim", "head_dim", "values per head"),
        ("--width", "width", "values of the embedding; left out: heads x head dim"),
        ("--ff", "n_ff", "feed-forward width"),
        ("--ctx-train", "n_ctx_train", "training context"),
        ("--window", "window", f"sliding-window tokens; left out: {DEFAULT_WINDOW}, none in lfm2"),
        ("--full-every", "full_every", "one full-attention (or attention) layer in this many"),
        ("--nextn", "n_nextn", "how many of the layers are nextn (MTP) layers"),
        ("--shared-kv", "n_shared_kv", "how many of the last layers share a cache (gemma4)"),
        ("--seed", "seed", "seed of the weights"),
    ):
        parser.add_argument(flag, dest=name, type=int, default=defaults[name], help=f"{text} (%(default)s)")
    options = vars(parser.parse_args(argv))
    path: Path = options.pop("out")
    write_random_gguf(path, RandomModel(**options))
    print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
