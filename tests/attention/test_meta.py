"""The checks see broken attention. The fakes are float64 results with one thing wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from attention.checks import check_accuracy, check_threads
from attention.strategies import plain_case
from attention_op import AttentionCase, Rounding, exact_attention

Float32Array = npt.NDArray[np.float32]


def rounded(case: AttentionCase) -> Float32Array:
    return exact_attention(case).output.astype(np.float32)


def last_row_forgotten(case: AttentionCase) -> Float32Array:
    assert case.mask is not None
    return rounded(replace(case, n_kv=case.n_kv - 1, mask=case.mask[..., :-1]))


def no_mask(case: AttentionCase) -> Float32Array:
    return rounded(replace(case, mask=None))


def heads_swapped(case: AttentionCase) -> Float32Array:
    return np.ascontiguousarray(rounded(case)[:, :, ::-1])


def scaled_wrongly(case: AttentionCase) -> Float32Array:
    return rounded(replace(case, scale=case.scale * 1.001))


def one_value_not_written(case: AttentionCase) -> Float32Array:
    output = rounded(case)
    output[0, -1, -1, -1] = np.nan
    return output


def half_precision(case: AttentionCase) -> Float32Array:
    return exact_attention(case).output.astype(np.float16).astype(np.float32)


FAKES = (
    last_row_forgotten,
    no_mask,
    heads_swapped,
    scaled_wrongly,
    one_value_not_written,
    half_precision,
)


def test_rounding_is_accepted() -> None:
    case = plain_case("q8_0", "q4_0", 6)
    check_accuracy(case, rounded(case), rounded(case))
    check_accuracy(case, half_precision(case), half_precision(case))


@pytest.mark.parametrize("fake", FAKES)
def test_a_broken_result_is_seen(fake: Callable[[AttentionCase], Float32Array]) -> None:
    case = plain_case("q8_0", "q4_0", 6)
    with pytest.raises(AssertionError, match=r"are off|are not finite"):
        check_accuracy(case, fake(case), rounded(case))


def scaled_by_a_hundredth(case: AttentionCase) -> Float32Array:
    return rounded(replace(case, scale=case.scale * 1.01))


@pytest.mark.parametrize(
    "fake", (last_row_forgotten, no_mask, heads_swapped, one_value_not_written, scaled_by_a_hundredth)
)
def test_a_broken_result_is_seen_where_rounding_is_allowed(
    fake: Callable[[AttentionCase], Float32Array],
) -> None:
    """A scale off by a thousandth, and half precision, are within what rounded weights may change."""
    case = plain_case("q8_0", "q4_0", 6)
    with pytest.raises(AssertionError, match=r"are off|are not finite"):
        check_accuracy(case, fake(case), rounded(case), Rounding(query=True, weights=True))


def test_a_result_that_depends_on_threads_is_seen() -> None:
    def split_in_two(case: AttentionCase, n_threads: int) -> Float32Array:
        return rounded(case) if n_threads == 1 else np.nextafter(rounded(case), np.float32(np.inf))

    case = plain_case("f16", "f16", 1)
    check_threads(lambda given, _: rounded(given), case, 2)
    with pytest.raises(AssertionError, match="for 2 threads"):
        check_threads(split_in_two, case, 2)


def test_an_empty_row_is_zero() -> None:
    case = plain_case("f16", "f16", 3)
    mask = np.full((1, 1, 3, case.n_kv), -np.inf, np.float16)
    assert not exact_attention(replace(case, mask=mask)).output.any()
