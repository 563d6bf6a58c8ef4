"""The rules' classification of architectures against the C++ they were read from.

KVQUANT_LLAMA_SOURCE names a llama.cpp tree. A later tree in which an architecture changes kind fails here,
and says which rule to read again. It holds for the pin.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kvquant.model.architectures import REFUSED, RULES, attention, recurrent
from kvquant.model.gguf_file import OTHER_ARCHITECTURES

SOURCE = Path(os.environ.get("KVQUANT_LLAMA_SOURCE", ""))

pytestmark = pytest.mark.skipif(
    not (SOURCE / "src" / "llama-model.cpp").is_file(),
    reason="KVQUANT_LLAMA_SOURCE does not name a llama.cpp tree",
)

# What load_arch_hparams would have to touch to change the size of a cache or a state.
_MATTERS = re.compile(
    r"swa_type|is_swa_impl|load_swa_pattern|is_recr_impl|n_layer_kv_from_start|n_layer_nextn|n_layer_all *=|"
    r"n_head_kv_arr|n_embd_head_[kv]_(?:full|swa|mla)|n_shortconv_l_cache|ssm_d_|wkv_head_size|router_layer|"
    r"indexer_|n_embd_head_(?:kda|la)"
)
# phi3 reads its window only to switch it off. Trees before the pin leave nextn layers without a cache here,
# for these two architectures, and not in load_hparams and create_memory for all.
_NEXTN = {"n_layer_nextn", "n_layer_kv_from_start"}
_HARMLESS = {"phi3": {"swa_type"}, "glm4": _NEXTN, "glm4moe": _NEXTN}
_PERIOD = re.compile(r"(?:load_swa_pattern\(ml, |swa_period += )(\d+)")


def read(name: str) -> str:
    return (SOURCE / "src" / name).read_text(encoding="utf-8")


def enums() -> dict[str, str]:
    """Architecture name to the C++ constant."""
    pairs = re.findall(r'\{ *(LLM_ARCH_\w+), *"([^"]+)"', read("llama-arch.cpp"))
    return {name: enum for enum, name in pairs}


def hparams_body(arch: str) -> str:
    """The body of load_arch_hparams of the class that loads ``arch``."""
    made = re.search(rf"case {enums()[arch]}:\s*return new (llama_model_\w+)\(", read("llama-model.cpp"))
    assert made, f"{arch}: no class in llama-model.cpp"
    name = made[1]
    while name != "llama_model_base":
        definition = re.compile(rf"^void {name}::load_arch_hparams\(.*?^}}", re.DOTALL | re.MULTILINE)
        for path in sorted((SOURCE / "src" / "models").glob("*.cpp")):
            if body := definition.search(path.read_text(encoding="utf-8")):
                return body[0]
        # Such a class loads as the one it is derived from does.
        base = re.search(rf"struct {name} : public (\w+)", read("models/models.h"))
        assert base, f"{arch}: no struct {name}"
        name = base[1]
    raise AssertionError(f"{arch}: no load_arch_hparams of {made[1]}")


def listed_in(function: str) -> set[str]:
    """The architectures a function of llama-arch.cpp says yes to."""
    body = re.search(rf"bool {function}\(.*?^}}", read("llama-arch.cpp"), re.DOTALL | re.MULTILINE)
    assert body
    constants = set(re.findall(r"case (LLM_ARCH_\w+):", body[0].partition("return true")[0]))
    return {name for name, constant in enums().items() if constant in constants}


PLAIN = sorted(arch for arch, rule in attention.RULES.items() if rule is attention.plain)


@pytest.mark.parametrize("arch", PLAIN)
def test_plain_architectures_touch_nothing_that_matters(arch: str) -> None:
    found = set(_MATTERS.findall(hparams_body(arch)))
    assert found <= _HARMLESS.get(arch, set())


def test_the_search_would_notice() -> None:
    assert _MATTERS.findall(hparams_body("gemma3"))
    assert _MATTERS.findall(hparams_body("qwen35"))


PERIODS = {
    **{"afmoe": 4, "cohere2": 4, "cohere2moe": 4, "exaone-moe": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6},
    **{"gemma3n": 5, "gpt-oss": 2, "laguna": 4, "llama4": 4, "mellum": 4, "muse-glimmer": 4, "olmo2": 4},
    **{"plamo3": 8, "smallthinker": 4},
}


@pytest.mark.parametrize("arch", PERIODS)
def test_default_periods(arch: str) -> None:
    assert arch in attention.RULES
    assert _PERIOD.findall(hparams_body(arch)) == [str(PERIODS[arch])]


def test_recurrent_architectures() -> None:
    listed = listed_in("llm_arch_is_hybrid") | listed_in("llm_arch_is_recurrent")
    assert listed - set(REFUSED) == set(recurrent.RULES)


def test_every_architecture_has_rules_or_a_reason() -> None:
    """No architecture of the tree is left out, and none has rules that the tree does not know."""
    known = set(enums()) - {"(unknown)"}
    assert not set(RULES) & set(REFUSED)
    assert known - set(RULES) - set(REFUSED) - set(OTHER_ARCHITECTURES) == set()
    assert set(RULES) | set(REFUSED) <= known
