"""What may stand behind a policy, and how a transform joins the plan of a measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import UsageError
from kvquant.evals.divergence import CacheSetup, DivergenceRequest
from kvquant.evals.divergence_run import _file_name, plan_policies
from kvquant.evals.variations import VARIATIONS, Varied, split_variations
from kvquant.model.architectures import read_shape
from kvquant.results.transform import TransformUsed
from kvquant.transform import TransformFile, cache_key

SHAPE = read_shape(Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf")
ONE, OTHER = (
    TransformFile(Path(f"/somewhere/{name}.gguf"), TransformUsed(f"{name}.gguf", digest * 64, 9, 512, 2))
    for name, digest in (("one", "a"), ("other", "b"))
)


@given(st.booleans(), st.booleans(), st.sampled_from(["q4_0", "@a@b.txt", "0-10:q8_0,rest:q4_0"]))
def test_a_variation_is_taken_off_again(rotation: bool, transform: bool, policy: str) -> None:
    varied = Varied(policy, rotation, transform)
    assert split_variations(str(varied)) == varied


@pytest.mark.parametrize("text", ["q4_0@", "q4_0@x", "q4_0@no-rotation@x", "@"])
def test_another_variation_is_refused(text: str) -> None:
    if text == "@":  # a file without a name; the reader of policies says so
        assert split_variations(text).policy == "@"
        return
    with pytest.raises(UsageError, match=f"is not a variation; known: {', '.join(VARIATIONS)}"):
        split_variations(text)


def plans(*texts: str, transforms: tuple[TransformFile, ...] = (ONE,)) -> list[tuple[str, str]]:
    found = plan_policies(texts, SHAPE, 64, "prefill", rotation=True, transforms=transforms)
    return [(plan.label, _file_name(plan.setup)) for plan in found]


def test_every_policy_gets_the_transform_but_the_baseline_and_those_without() -> None:
    assert plans("f16", "q4_0", "q4_0@no-transform", "q4_0@no-rotation") == [
        ("f16", "f16"),
        ("q4_0@one", f"q4_0@{'a' * 16}"),
        ("q4_0", "q4_0"),
        ("q4_0@one@no-rotation", f"q4_0@{'a' * 16}@no-rotation"),
    ]
    assert plans("q4_0", transforms=(ONE, OTHER)) == [
        ("q4_0@one", f"q4_0@{'a' * 16}"),
        ("q4_0@other", f"q4_0@{'b' * 16}"),
    ]
    assert plans("q4_0", "q8_0@no-transform", transforms=()) == [("q4_0", "q4_0"), ("q8_0", "q8_0")]


def test_the_same_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="given twice"):
        plans("q4_0", "*:q4_0")
    with pytest.raises(UsageError, match="given twice"):
        plans("q4_0", transforms=(ONE, ONE))


def test_the_program_is_given_the_file_and_the_record_its_name() -> None:
    from kvquant.evals.divergence_log import _without_folders

    setup = CacheSetup("*:q4_0", transform=ONE)
    assert setup.arguments()[-2:] == ["--kv-transform", "/somewhere/one.gguf"]
    request = DivergenceRequest(
        Path("/m/model.gguf"), (Path("/t/text"),), (setup, replace(setup, transform=None))
    )
    kept = _without_folders(request).arguments()
    assert "one.gguf" in kept and not any("/" in word for word in kept)
    assert kept.count("--kv-transform") == 1


def test_a_key_names_the_transform() -> None:
    assert cache_key("*:q4_0", None) == "*:q4_0"
    assert len({cache_key("*:q4_0", transform) for transform in (None, ONE, OTHER)}) == 3
