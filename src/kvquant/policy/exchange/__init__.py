"""Policies in the notations of other programs: read without loss where that can be, else refused by name.

A policy says which type each layer's K and V has, and nothing of how a type packs its bits. Notations that
count bits (KVTuner, transformers) are read as the type of as many bits; what else they say, such as group
sizes, is no part of a policy and comes back as a note. Types that llama.cpp has no cache for, such as fp8,
are refused with the place that names them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from kvquant.policy.exchange import bits, flags, names
from kvquant.policy.exchange.common import Imported, refused
from kvquant.policy.policy import Policy, ResolvedPolicy

__all__ = ["NOTATIONS", "Imported", "export_policy", "import_policy"]


def import_policy(text: str, notation: str | None = None) -> Imported:
    """Read a policy in another program's notation, found by what is in the text unless it is named.

    Raises PolicyError, one line naming the type or the key at fault and its place.
    """
    name = notation or _recognized(text)
    if name not in NOTATIONS:
        raise refused(f"no notation {name!r}; known: {', '.join(NOTATIONS)}")
    return _READERS[name](text)


def export_policy(resolved: ResolvedPolicy, policy: Policy, notation: str) -> str:
    """Return a policy in another program's notation.

    resolved: the policy on its model, for notations that list layers. Raises PolicyError, one line naming the
    layer and type that the notation has no word for.
    """
    if notation not in NOTATIONS:
        raise refused(f"no notation {notation!r}; known: {', '.join(NOTATIONS)}")
    return _WRITERS[notation](resolved, policy)


def _recognized(text: str) -> str:
    stripped = text.strip()
    if "kv-cache-dtype" in stripped or "kv_cache_dtype" in stripped:
        raise refused("vLLM and SGLang share these options; say --from vllm or --from sglang")
    if re.search(r"(^|\s)(-ctk|-ctv|--cache-type-[kv])-(first|last)\b", stripped):
        return "ik_llama.cpp"
    if re.search(r"(^|\s)(-ctk|-ctv|--cache-type-[kv]|--kv-layers|-kvl)\b", stripped):
        return "llama.cpp"
    if "quant_algo" in stripped or "bmm_quantizer" in stripped:
        return "modelopt"
    if "nbits_key" in stripped or "nbits_value" in stripped:
        return "kvtuner"
    if "nbits" in stripped:
        return "transformers"
    raise refused(f"the text is in none of the known notations ({', '.join(NOTATIONS)}); name it with --from")


_READERS: dict[str, Callable[[str], Imported]] = {
    "llama.cpp": flags.read_llama,
    "ik_llama.cpp": flags.read_ik,
    "kvtuner": bits.read_kvtuner,
    "transformers": bits.read_transformers,
    "vllm": names.read_vllm,
    "sglang": names.read_sglang,
    "modelopt": names.read_modelopt,
}
_WRITERS: dict[str, Callable[[ResolvedPolicy, Policy], str]] = {
    "llama.cpp": flags.write_llama,
    "ik_llama.cpp": flags.write_ik,
    "kvtuner": bits.write_kvtuner,
    "transformers": bits.write_transformers,
    "vllm": names.write_vllm,
    "sglang": names.write_sglang,
    "modelopt": names.write_modelopt,
}
NOTATIONS = tuple(_READERS)
"""What `import_policy` reads and `export_policy` writes."""
