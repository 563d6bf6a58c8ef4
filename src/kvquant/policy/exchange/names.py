"""vLLM's and SGLang's options and ModelOpt's configurations: one name for the type of a whole cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvquant.errors import PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy.exchange.common import Imported, left, object_of, options, refused
from kvquant.policy.policy import Policy, ResolvedPolicy, parse_policy

_UNQUANTIZED = {
    "auto": "f16",
    "float16": "f16",
    "half": "f16",
    "fp16": "f16",
    "bfloat16": "bf16",
    "bf16": "bf16",
}
"""How other servers name a cache that is not quantized. auto is the type of the model's own numbers."""


_PLAIN_NOTE = "not quantized, in the type of the model's own numbers: read as f16"


def read_vllm(text: str) -> Imported:
    """Read --kv-cache-dtype, skipped layers included: they are as the model's own numbers anyway."""
    return _read_dtype(text, "vllm", "vLLM", skip="--kv-cache-dtype-skip-layers")


def read_sglang(text: str) -> Imported:
    """Read --kv-cache-dtype."""
    return _read_dtype(text, "sglang", "SGLang", skip=None)


def _read_dtype(text: str, notation: str, whose: str, skip: str | None) -> Imported:
    """Options, or a JSON object of them: one dtype for everything but the layers that are skipped."""
    if text.lstrip().startswith("{"):
        given = object_of(text, f"{whose}'s options")
        pairs = [(f"--{str(key).replace('_', '-')}", value) for key, value in given.items()]
    else:
        pairs = [(flag, value) for flag, value in options(text)]
    dtypes = [str(value) for flag, value in pairs if flag == "--kv-cache-dtype"]
    if not dtypes:
        raise refused(f"no --kv-cache-dtype; {whose} has no other word for the type of a KV cache")
    name = dtypes[-1].lower()
    if name not in _UNQUANTIZED:
        raise refused(
            f"--kv-cache-dtype {dtypes[-1]}: llama.cpp has no cache of that type; it has "
            f"{', '.join(CACHE_TYPES)}",
            code="type",
        )
    other = [flag for flag, _ in pairs if flag not in ("--kv-cache-dtype", skip)]
    notes = (_PLAIN_NOTE,) if name == "auto" else ()
    return Imported(parse_policy(f"*:{_UNQUANTIZED[name]}"), notation, (*notes, *left(other)))


def write_vllm(resolved: ResolvedPolicy, _policy: Policy) -> str:
    """Write --kv-cache-dtype."""
    return _write_dtype(resolved, "vLLM", {"f16": "float16", "bf16": "bfloat16"})


def write_sglang(resolved: ResolvedPolicy, _policy: Policy) -> str:
    """Write --kv-cache-dtype."""
    return _write_dtype(resolved, "SGLang", {"bf16": "bf16"})


def _write_dtype(resolved: ResolvedPolicy, whose: str, names: Mapping[str, str]) -> str:
    for layer in resolved.layers:
        for side, name in (("K", layer.k_type), ("V", layer.v_type)):
            if name not in names:
                raise refused(
                    f"layer {layer.layer}, {side}: {whose} has no cache of type {name}; it could take "
                    f"{', '.join(names)}",
                    code="type",
                )
    found = {name for layer in resolved.layers for name in (layer.k_type, layer.v_type)}
    if len(found) > 1:
        raise refused(f"{whose} has one type for the whole cache, not {' and '.join(sorted(found))}")
    return f"--kv-cache-dtype {names[found.pop()]}\n"


def read_modelopt(text: str) -> Imported:
    """Read hf_quant_config.json, or a quant_cfg of wildcards."""
    document = object_of(text, "ModelOpt's configuration")
    if "quant_cfg" in document or any("bmm_quantizer" in str(key) for key in document):
        return _read_quantizers(document)
    found = document.get("quantization", document.get("quantization_config", document))
    if not isinstance(found, dict) or "kv_cache_quant_algo" not in found:
        raise refused("hf_quant_config.json has quantization.kv_cache_quant_algo; this has none")
    algorithm = found["kv_cache_quant_algo"]
    if algorithm is not None:
        raise _not_a_type(f"kv_cache_quant_algo {algorithm}")
    other = sorted(set(found) - {"kv_cache_quant_algo"})
    return Imported(parse_policy("*:f16"), "modelopt", (_PLAIN_NOTE, *left(other)))


def _read_quantizers(document: Mapping[str, Any]) -> Imported:
    """Wildcards over module names: quantizers of K and V that are switched off leave a cache as it is."""
    config = document.get("quant_cfg", document)
    entries = config.items() if isinstance(config, dict) else _quantizer_entries(config)
    for pattern, value in entries:
        if "bmm_quantizer" in str(pattern) and not (isinstance(value, dict) and value.get("enable") is False):
            bits = value.get("num_bits") if isinstance(value, dict) else value
            raise _not_a_type(f"{pattern} with num_bits {bits}")
    return Imported(parse_policy("*:f16"), "modelopt", (_PLAIN_NOTE,))


def _quantizer_entries(config: object) -> list[tuple[str, Any]]:
    """The newer form, a list of objects that name their quantizer."""
    if not isinstance(config, list) or not all(isinstance(entry, dict) for entry in config):
        raise refused("quant_cfg is neither an object nor a list of objects")
    return [
        (str(entry.get("quantizer_name")), {**(entry.get("cfg") or {}), "enable": entry.get("enable", True)})
        for entry in config
    ]


def _not_a_type(what: str) -> PolicyError:
    return refused(
        f"{what}: llama.cpp has no cache of that type; it has {', '.join(CACHE_TYPES)}", code="type"
    )


def write_modelopt(resolved: ResolvedPolicy, _policy: Policy) -> str:
    """Write the part of hf_quant_config.json that is about the cache."""
    for layer in resolved.layers:
        if (layer.k_type, layer.v_type) != ("f16", "f16"):
            raise refused(
                f"layer {layer.layer}: ModelOpt has no word for K in {layer.k_type} and V in {layer.v_type}",
                code="type",
            )
    return json.dumps({"quantization": {"kv_cache_quant_algo": None}}, indent=1) + "\n"
