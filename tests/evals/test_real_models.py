"""The page on real models says what its records say, and every policy in it is one of the plan."""

from __future__ import annotations

import pytest

import real_models
from kvquant.policy import parse_policy


def test_the_page_is_what_the_records_say() -> None:
    found = real_models.records()
    assert found, "there is no record"
    assert real_models.PAGE.read_text() == real_models.page(found)


@pytest.mark.parametrize("n_layer", [18, 24, 28, 30])
def test_the_policies_of_the_plan(n_layer: int) -> None:
    """Each names every layer once, so that its share of float16 is what its name says."""
    for text in real_models.policies_for(n_layer).values():
        covered = [0] * n_layer
        for part in text.split(","):
            layers = part.partition(":")[0]
            first, _, last = layers.partition("-")
            chosen = range(n_layer) if layers == "*" else range(int(first), int(last) + 1)
            for layer in chosen:
                covered[layer] += 1
        assert set(covered) == {1}, text
        parse_policy(text)


def test_a_changed_record_shows() -> None:
    found = real_models.records()
    assert real_models.page(found[:-1]) != real_models.page(found)
