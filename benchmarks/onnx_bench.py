"""Attention of ONNX Runtime over a cache of its own types; run by a Python that has it (attention_onnx.py).

    python -m venv ort && ort/bin/pip install onnxruntime==1.32.0 onnx==1.23.2 numpy
    echo '{"n_head": 14, "n_head_kv": 2, "head_dim": 64, "depth": 8192, "n_tokens": 1, "type": "int8",
        "n_threads": 1, "n_runs": 5}' | tr -d '\\n' | ort/bin/python benchmarks/onnx_bench.py

Reads a JSON object a line and answers each with one: the seconds of the fastest run, and by how much the
output is off attention in float64 over the same codes. The operator is GroupQueryAttention of
com.microsoft; new tokens are written into the cache's own memory. int8 and int4 have a scale for each
channel.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

TYPES = {"float32": (TensorProto.FLOAT, 0), "int8": (TensorProto.INT8, 8), "int4": (TensorProto.UINT8, 4)}
"""The type of a cache's elements, and the bits of a code."""


def graph(n_head: int, n_head_kv: int, head_dim: int, kind: str) -> bytes:
    """Return a model that is one GroupQueryAttention over a cache of a kind."""
    element, bits = TYPES[kind]
    width = head_dim // 2 if kind == "int4" else head_dim
    sizes: dict[str, tuple[int, list[int | str]]] = {
        "q": (TensorProto.FLOAT, [1, "n", n_head * head_dim]),
        "k": (TensorProto.FLOAT, [1, "n", n_head_kv * head_dim]),
        "v": (TensorProto.FLOAT, [1, "n", n_head_kv * head_dim]),
        "past_k": (element, [1, n_head_kv, "n_kv", width]),
        "past_v": (element, [1, n_head_kv, "n_kv", width]),
        "last": (TensorProto.INT32, [1]),
        "total": (TensorProto.INT32, [1]),
    }
    attributes: dict[str, Any] = {"num_heads": n_head, "kv_num_heads": n_head_kv}
    names = list(sizes)
    if bits:
        scales = {name: (TensorProto.FLOAT, [n_head_kv * head_dim]) for name in ("k_scale", "v_scale")}
        sizes |= scales
        names += [*[""] * 5, *scales]
        attributes |= {
            "kv_cache_bit_width": bits,
            "k_quant_type": "PER_CHANNEL",
            "v_quant_type": "PER_CHANNEL",
        }
    outputs = {"out": sizes["q"], "k_out": sizes["past_k"], "v_out": sizes["past_v"]}
    node = helper.make_node("GroupQueryAttention", names, list(outputs), domain="com.microsoft", **attributes)
    values = [
        [helper.make_tensor_value_info(name, *about) for name, about in group.items()]
        for group in (sizes, outputs)
    ]
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "attention", *values), opset_imports=versions, ir_version=10
    )
    return bytes(model.SerializeToString())


def coded(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a cache's elements, its scales, and its values; x float32 (1, n_head_kv, n_kv, head_dim)."""
    bits = TYPES[kind][1]
    if not bits:
        return x, np.ones(0, np.float32), x
    top = 2 ** (bits - 1) - 1
    scale = (np.abs(x).max((0, 2)) / top).astype(np.float32)
    codes = np.clip(np.rint(x / scale[:, None]), -top - 1, top).astype(np.int8)
    if kind == "int8":
        return codes, scale.ravel(), codes * scale[:, None]
    raised = (codes + 8).astype(np.uint8)
    return raised[..., 0::2] | raised[..., 1::2] << 4, scale.ravel(), codes * scale[:, None]


def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return causal attention in float64, (n, n_head, head_dim).

    q (n, n_head, head_dim), k and v (n_head_kv, n_kv, head_dim); the queries are the last tokens.
    """
    n, n_head, head_dim = q.shape
    n_kv = k.shape[1]
    group = n_head // len(k)
    keys, values = (np.repeat(x, group, axis=0).astype(np.float64) for x in (k, v))
    logits = q.transpose(1, 0, 2).astype(np.float64) @ keys.transpose(0, 2, 1) * head_dim**-0.5
    logits[:, np.arange(n_kv) > np.arange(n_kv - n, n_kv)[:, None]] = -np.inf
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (p / p.sum(axis=2, keepdims=True) @ values).transpose(1, 0, 2)


def timed(case: dict[str, Any]) -> dict[str, float]:
    """Run a case; its fastest run, and its largest error."""
    n_head, n_head_kv, head_dim = case["n_head"], case["n_head_kv"], case["head_dim"]
    depth, n = case["depth"], case["n_tokens"]
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 1, n_head_kv, depth, head_dim)).astype(np.float32)
    q = rng.standard_normal((1, n, n_head * head_dim)).astype(np.float32)
    (k_codes, k_scale, k_values), (v_codes, v_scale, v_values) = (coded(x, case["type"]) for x in (k, v))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case["n_threads"]
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        graph(n_head, n_head_kv, head_dim, case["type"]), options, providers=["CPUExecutionProvider"]
    )
    given = {"q": q, "last": np.array([depth - 1], np.int32), "total": np.array([depth], np.int32)}
    for name, x in (("k", k), ("v", v)):
        given[name] = np.ascontiguousarray(x[0, :, depth - n :].transpose(1, 0, 2)).reshape(1, n, -1)
    given |= {"k_scale": k_scale, "v_scale": v_scale} if k_scale.size else {}
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    for name, codes in (("k", k_codes), ("v", v_codes)):
        cache = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(codes))
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"{name}_out", cache)
    binding.bind_output("out")
    seconds = []
    for _ in range(case["n_runs"]):
        begun = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - begun)
    out = next(x for x in (one.numpy() for one in binding.get_outputs()) if x.shape == q.shape)
    wanted = exact(q.reshape(n, n_head, head_dim), k_values[0], v_values[0])
    return {"seconds": min(seconds), "error": float(np.abs(out.reshape(wanted.shape) - wanted).max())}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(timed(json.loads(line))), flush=True)
