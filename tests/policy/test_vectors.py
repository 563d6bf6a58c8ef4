"""The accept and reject cases of the policy language; the parser in the llama.cpp patch reads them too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvquant.errors import PolicyError
from kvquant.formats.registry import CACHE_TYPES
from kvquant.policy import parse_policy
from policy.checks import LayerKinds, check_normal_form

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "policy.json").read_text(encoding="utf-8"))
TYPES = tuple(VECTORS["types"])
ACCEPTED = [case for case in VECTORS["parse"] if "canonical" in case]
REJECTED = [case for case in VECTORS["parse"] if "error" in case]
RESOLVED = [case for case in VECTORS["resolve"] if "k" in case]
CODES = ("empty", "preset", "syntax", "number", "type", "range", "overlap")
CLASHING = [case for case in VECTORS["resolve"] if "error" in case]


def _text(case: dict[str, Any]) -> str:
    return repr(case["text"])


def test_types_are_llama_cpp_cache_types() -> None:
    assert TYPES == CACHE_TYPES


def test_every_case_is_of_one_kind_and_written_once() -> None:
    assert len(ACCEPTED) + len(REJECTED) == len(VECTORS["parse"])
    assert len(RESOLVED) + len(CLASHING) == len(VECTORS["resolve"])
    texts = [case["text"] for case in VECTORS["parse"]]
    assert len(set(texts)) == len(texts)
    assert {case["error"] for case in REJECTED} == set(CODES)


@pytest.mark.parametrize("case", ACCEPTED, ids=_text)
def test_accepted(case: dict[str, Any]) -> None:
    policy = parse_policy(case["text"], TYPES)
    assert str(policy) == case["canonical"]
    assert parse_policy(case["canonical"], TYPES) == policy
    check_normal_form(policy)


@pytest.mark.parametrize("case", REJECTED, ids=_text)
def test_rejected(case: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_policy(case["text"], TYPES)
    expected = (case["error"], case.get("line", 1), case["column"])
    assert (raised.value.code, raised.value.line, raised.value.column) == expected, raised.value


@pytest.mark.parametrize("case", RESOLVED, ids=_text)
def test_resolved(case: dict[str, Any]) -> None:
    shape = LayerKinds(tuple(case["layers"]))
    resolved = parse_policy(case["text"], TYPES).resolve(
        shape, default_k=case["default_k"], default_v=case["default_v"]
    )
    k_types: list[str | None] = [None] * shape.n_layer
    v_types = list(k_types)
    for layer in resolved.layers:
        k_types[layer.layer], v_types[layer.layer] = layer.k_type, layer.v_type
    assert k_types == case["k"]
    assert v_types == case["v"]
    assert [warning.code for warning in resolved.warnings] == case["warnings"]


@pytest.mark.parametrize("case", CLASHING, ids=_text)
def test_not_resolved(case: dict[str, Any]) -> None:
    policy = parse_policy(case["text"], TYPES)
    with pytest.raises(PolicyError) as raised:
        policy.resolve(
            LayerKinds(tuple(case["layers"])), default_k=case["default_k"], default_v=case["default_v"]
        )
    assert raised.value.code == case["error"]
