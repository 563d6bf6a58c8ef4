"""KVTuner's YAML and transformers' quantized cache: they count bits."""

from __future__ import annotations

import json

from kvquant.policy.exchange.common import Imported, left, object_of, one_pair, refused
from kvquant.policy.policy import Policy, ResolvedPolicy, parse_policy, policy_from_layers

BITS = {16: "f16", 8: "q8_0", 4: "q4_0"}
"""For a notation that counts bits, llama.cpp's type of as many; other counts have none."""


def read_kvtuner(text: str) -> Imported:
    """Read a mapping of layers to nbits_key and nbits_value."""
    import yaml  # only here: few commands read YAML

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise refused(f"no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict) or not document:
        raise refused("KVTuner's YAML is a mapping of layer numbers to nbits_key and nbits_value")
    layers: list[tuple[int, str, str]] = []
    other: set[str] = set()
    for layer, entry in document.items():
        if type(layer) is not int or not isinstance(entry, dict):
            raise refused(f"{layer!r} is no layer with nbits_key and nbits_value")
        if any(isinstance(value, dict) for value in entry.values()):
            raise refused(f"layer {layer} is split by head; a policy names whole layers")
        missing = {"nbits_key", "nbits_value"} - set(entry)
        if missing:
            raise refused(f"layer {layer} has no {' and '.join(sorted(missing))}")
        other |= set(entry) - {"nbits_key", "nbits_value"}
        k, v = (_bits(entry[f"nbits_{key}"], f"layer {layer}, {key}") for key in ("key", "value"))
        layers.append((layer, k, v))
    return Imported(policy_from_layers(layers), "kvtuner", (_BITS_NOTE, *left(sorted(other))))


_BITS_NOTE = "bits are read as q8_0 and q4_0, whose blocks of 32 values have a scale each"


def _bits(value: object, place: str) -> str:
    if type(value) is not int or value not in BITS:
        raise refused(
            f"{place}: {value} bits; llama.cpp has a cache type for {', '.join(map(str, sorted(BITS)))} bits",
            code="type",
        )
    return BITS[value]


def write_kvtuner(resolved: ResolvedPolicy, _policy: Policy) -> str:
    """Write a mapping of layers to nbits_key and nbits_value."""
    lines = []
    for layer in resolved.layers:
        k = _n_bits(layer.k_type, f"layer {layer.layer}, K", "KVTuner")
        v = _n_bits(layer.v_type, f"layer {layer.layer}, V", "KVTuner")
        lines.append(f"{layer.layer}:\n  nbits_key: {k}\n  nbits_value: {v}\n")
    return "".join(lines)


def _n_bits(type_name: str, place: str, whose: str) -> int:
    found = {name: bits for bits, name in BITS.items() if bits < 16}
    if type_name not in found:
        raise refused(
            f"{place}: {whose} has no word for {type_name}; it counts bits: {', '.join(found)} are 8 and 4",
            code="type",
        )
    return found[type_name]


def read_transformers(text: str) -> Imported:
    """Read cache_config of a quantized cache, by itself or in the arguments of generate()."""
    document = object_of(text, "transformers' cache_config")
    config = document.get("cache_config", document)
    if not isinstance(config, dict) or "nbits" not in config:
        raise refused(
            "a quantized cache of transformers has nbits, such as {'backend': 'quanto', 'nbits': 4}"
        )
    name = _bits(config["nbits"], "nbits")
    other = sorted(set(config) - {"nbits"})
    return Imported(parse_policy(f"*:{name}"), "transformers", (_BITS_NOTE, *left(other)))


def write_transformers(resolved: ResolvedPolicy, _policy: Policy) -> str:
    """Write the two arguments of generate()."""
    pair = one_pair(resolved)
    if pair is None or pair[0] != pair[1]:
        raise refused("transformers' quantized cache has one number of bits for all layers, K and V alike")
    bits = _n_bits(pair[0], "all layers", "transformers")
    # quanto packs 2 and 4 bits, HQQ 8 as well.
    config = {"backend": "quanto" if bits == 4 else "hqq", "nbits": bits}
    return json.dumps({"cache_implementation": "quantized", "cache_config": config}, indent=1) + "\n"
