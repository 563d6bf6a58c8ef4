"""tq3, tq2, k5x3 and k4x2: their bytes as docs/formats.md defines them, and what the ggml formats promise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_blocks import edge_blocks, side_by_side
from formats import checks
from formats.coded_layouts import (
    BLOCK_BYTES,
    LAYOUTS,
    corrected_distortion,
    decoded_block,
    encoded_block,
    exact_distortion,
)
from formats.layouts import stored_half
from formats.strategies import Blocks, blocks, broken_blocks, plain_blocks, populations, shapes
from formats.test_meta import broken, fails
from formats.turboquant.checks import check_distortion, squared_errors, unit_vectors
from kvquant.errors import FormatError
from kvquant.formats.base import Format
from kvquant.formats.coded import CodedBlock, Part
from kvquant.formats.registry import OWN_TYPES, get_format
from kvquant.formats.turboquant.codebook import lloyd_max

every_format = pytest.mark.parametrize("name", LAYOUTS)


def paired(x: Blocks) -> Blocks:
    """Return blocks of 64 made of blocks of 32, (n, 64)."""
    return np.concatenate((x, x[::-1]), axis=1)


def checked(name: str, x: Blocks) -> npt.NDArray[np.uint8]:
    """Return the bytes of ``x`` (n, 64) by the plain-Python definition, uint8 (n, block_bytes)."""
    rows = [np.frombuffer(encoded_block(name, block), np.uint8) for block in x]
    return np.stack(rows)


# -- the definition


@every_format
@given(x=blocks().map(paired))
def test_bytes_are_as_defined(name: str, x: Blocks) -> None:
    checks.check_same_bytes(get_format(name).quantize(x), checked(name, x), x, name)


@every_format
def test_bytes_of_edge_blocks_are_as_defined(name: str) -> None:
    for group, x in edge_blocks(8, seed=3).items():
        wide = paired(x)
        checks.check_same_bytes(
            get_format(name).quantize(wide), checked(name, wide), wide, f"{name}, {group}"
        )


def on_boundaries(name: str) -> tuple[Blocks, Blocks, Blocks]:
    """Blocks with values on the midpoints between two magnitudes, one ulp below, and one ulp above them."""
    random = np.random.default_rng(0)
    low, exact, high = np.zeros((3, 40, 64), np.float32)
    place = 0
    for part in LAYOUTS[name]:
        ties = [(a + b) / 2 for a, b in pairwise(part.magnitudes)]
        x = random.uniform(-0.9, 0.9, (40, part.n)) * part.tries[0]
        on = slice(place + 1, place + 9)
        x[:, 1:9] = random.choice(ties, (40, 8)) * random.choice([-1, 1], (40, 8))
        # What the part is measured by is at the first try, so that midpoints stay what they are.
        if part.by_peak:
            x[:, 0] = part.tries[0]
        else:
            x[:, 9:] *= np.sqrt((part.tries[0] ** 2 - np.sum(x[:, 1:9] ** 2, axis=1)) / 2)[:, None] / (
                np.linalg.norm(x[:, 9:], axis=1, keepdims=True)
            )
            x[:, 0] = np.sqrt(part.tries[0] ** 2 - np.sum(x[:, 1:] ** 2, axis=1))
        for rows in (low, exact, high):
            rows[:, place : place + part.n] = x
        low[:, on] = np.nextafter(exact[:, on], np.float32(0))
        high[:, on] = np.nextafter(exact[:, on], np.copysign(np.float32(1e9), exact[:, on]))
        place += part.n
    return low, exact, high


@every_format
def test_bytes_on_the_boundaries_are_as_defined(name: str) -> None:
    fmt, blocks_of = get_format(name), on_boundaries(name)
    for x in blocks_of:
        checks.check_same_bytes(fmt.quantize(x), checked(name, x), x, name)
    if LAYOUTS[name][0].by_peak:
        # With one try alone an ulp decides: the upper magnitude on the midpoint, the lower one below it.
        part = replace(get_format(name).parts[0], tries=LAYOUTS[name][0].tries[:1])
        first = [np.ascontiguousarray(x[:, : part.n_values].T) for x in blocks_of]
        low, exact, high = (np.abs(part.decode(part.encode(x)) / stored_steps(part, x)) for x in first)
        assert (low[1:9] < exact[1:9]).all() and (exact[1:9] == high[1:9]).all()


def stored_steps(part: Part, x: Blocks) -> npt.NDArray[np.float64]:
    """Return the scales that are stored for columns ``x`` (n_values, n), float64 (n,)."""
    return stored_half(np.ascontiguousarray(part.encode(x).T), 0)[:, 0]


@every_format
@given(data=st.data())
def test_values_are_as_defined(name: str, data: st.DataObject) -> None:
    packed = np.frombuffer(
        data.draw(st.binary(min_size=BLOCK_BYTES[name], max_size=BLOCK_BYTES[name])), np.uint8
    )
    expected = np.float32(decoded_block(name, packed.tobytes()))
    checks.check_same_values(get_format(name).dequantize(packed, 64), expected, name)
    tensor = get_format(name).dequantize(torch.from_numpy(packed.copy()), 64)
    checks.check_same_values(tensor.numpy(), expected, f"{name} in Torch")


@every_format
def test_golden_bytes(name: str) -> None:
    folder = Path(__file__).parent.parent / "golden"
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "own_types.npz") as packed:
        x = side_by_side(dict(inputs))
        checks.check_same_bytes(get_format(name).quantize(x), packed[name], x, name)


@every_format
def test_sizes(name: str) -> None:
    fmt = get_format(name)
    assert fmt.n_bytes(64) == BLOCK_BYTES[name] and fmt.n_bytes(576) == 9 * BLOCK_BYTES[name]
    assert name in OWN_TYPES
    with pytest.raises(
        FormatError, match=rf"{name} packs blocks of 64 values and a width of 96 is not a multiple"
    ):
        fmt.quantize(np.zeros((2, 96), np.float32))


# -- how much is lost


def single_try(name: str, index: int) -> tuple[Format, int, tuple[int, ...], float]:
    """Return a format of one part of ``name``, by the norm and with one try; its number of values, its
    magnitudes, and what the norm is brought to, which is where Lloyd and Max would.
    """
    part = get_format(name).parts[index]
    book = lloyd_max(part.n_values, 1 + (len(part.magnitudes) - 1).bit_length())
    reach = part.magnitudes[-1] / float(book.centroids[-1])

    @dataclass(frozen=True)
    class Single(CodedBlock):
        name: str = "single"
        source: str = ""
        block_size = part.n_values
        block_bytes = part.n_bytes
        parts = (replace(part, anchor="norm", tries=(reach,)),)

    return Single(), part.n_values, part.magnitudes, reach


PARTS = [(name, index) for name, parts in LAYOUTS.items() for index in range(len(parts))]


@pytest.mark.parametrize(("name", "index"), PARTS)
def test_codes_of_one_try_lose_what_the_density_says(name: str, index: int) -> None:
    fmt, n, magnitudes, reach = single_try(name, index)
    x = unit_vectors(8000, n)
    check_distortion(fmt, x, corrected_distortion(n, magnitudes, reach), 0.02)
    # The codebook is the optimal one, but for the rounding of its levels to integers.
    book = lloyd_max(n, 1 + (len(magnitudes) - 1).bit_length())
    assert 1 <= exact_distortion(n, magnitudes, reach) / book.distortion < 1.03


@pytest.mark.parametrize(("name", "index"), PARTS)
def test_the_search_finds_better_codes(name: str, index: int) -> None:
    fmt, n, _, _ = single_try(name, index)
    part = get_format(name).parts[index]
    x = unit_vectors(4000, n)

    def lost(part: Part) -> float:
        back = part.decode(part.encode(np.ascontiguousarray(x.T))).T
        return float(np.sum((back - x) ** 2))

    each = [lost(replace(part, tries=(steps,))) for steps in part.tries]
    assert lost(part) < min(each)
    assert lost(part) < float(squared_errors(fmt, x).sum())


@every_format
@given(x=populations(64).map(paired))
def test_norms_are_kept(name: str, x: Blocks) -> None:
    fmt, place = get_format(name), 0
    back = fmt.dequantize(fmt.quantize(x), 64).astype(np.float64)
    for part in LAYOUTS[name]:
        cut = slice(place, place + part.n)
        before = np.linalg.norm(x[:, cut].astype(np.float64), axis=1)
        off = np.abs(np.linalg.norm(back[:, cut], axis=1) / before - 1).max()
        assert off <= 2.0**-11 * 1.001, f"{name}: a norm is off by {off:.2e}"
        place += part.n


@every_format
@given(x=blocks().map(paired))
def test_no_value_is_far_off(name: str, x: Blocks) -> None:
    checks.check_coded_error(get_format(name), x, LAYOUTS[name])


@given(x=populations().map(paired))
def test_error_falls_with_bits(x: Blocks) -> None:
    for names in (("tq2", "tq3", "q4_0", "q8_0"), ("k4x2", "k5x3", "q8_0"), ("tq2", "k4x2", "q4_0")):
        checks.check_error_falls_with_bits([get_format(name) for name in names], x)


# -- what the ggml formats promise


@every_format
@given(x=plain_blocks().map(paired), exponent=st.integers(-6, 6))
def test_powers_of_two(name: str, x: Blocks, exponent: int) -> None:
    checks.check_powers_of_two(get_format(name), x, exponent, [part.at for part in LAYOUTS[name]])


@every_format
@given(x=plain_blocks().map(paired))
def test_sign_symmetry(name: str, x: Blocks) -> None:
    checks.check_sign_symmetry(get_format(name), x)


@every_format
@given(x=blocks(max_blocks=6).map(paired), data=st.data())
def test_blocks_are_independent(name: str, x: Blocks, data: st.DataObject) -> None:
    checks.check_blocks_are_independent(get_format(name), x, data.draw(st.permutations(range(len(x)))))


@every_format
@given(x=plain_blocks(3).map(paired), lead=shapes())
def test_layouts(name: str, x: Blocks, lead: tuple[int, ...]) -> None:
    checks.check_layouts(get_format(name), x, lead)


@every_format
@given(x=blocks().map(paired))
def test_input_is_kept(name: str, x: Blocks) -> None:
    checks.check_input_is_kept(get_format(name), x)


@every_format
@given(x=blocks().map(paired))
def test_torch_equals_numpy(name: str, x: Blocks) -> None:
    checks.check_torch_equals_numpy(get_format(name), x)


@every_format
@given(case=broken_blocks(), second=st.booleans())
def test_a_broken_block_is_nan(name: str, case: tuple[Blocks, int, int, float], second: bool) -> None:
    x, block, place, value = case
    x, place = paired(x), place + 32 * second
    checks.check_broken_block(get_format(name), x, block, place, value)
    x[block, place] = value
    checks.check_torch_equals_numpy(get_format(name), x)
    zeroed = x.copy()
    zeroed[block] = 0
    codes, expected = (get_format(name).quantize(values)[block].copy() for values in (x, zeroed))
    for part in LAYOUTS[name]:
        assert codes[part.at : part.at + 2].tobytes() == b"\x00\x7e"
        codes[part.at : part.at + 2] = 0
    assert codes.tobytes() == expected.tobytes()


@every_format
def test_scales_at_the_ends_of_fp16(name: str) -> None:
    fmt = get_format(name)
    direction = unit_vectors(1, 64)
    huge = fmt.dequantize(fmt.quantize(direction * np.float32(1e30)), 64)
    assert np.isfinite(huge).all() and (np.sign(huge) == np.sign(direction)).all()
    assert stored_half(fmt.quantize(direction * np.float32(1e30)), 0)[0, 0] == 65504
    assert not fmt.dequantize(fmt.quantize(direction * np.float32(1e-9)), 64).any()


@every_format
@given(x=blocks().map(paired))
def test_round_trip_is_idempotent(name: str, x: Blocks) -> None:
    checks.check_coded_round_trip(get_format(name), x, LAYOUTS[name])


@every_format
@given(x=populations(64).map(paired))
def test_round_trip_is_idempotent_on_ordinary_blocks(name: str, x: Blocks) -> None:
    checks.check_coded_round_trip(get_format(name), x, LAYOUTS[name])


@every_format
def test_pieces_join(name: str) -> None:
    x = np.random.default_rng(0).standard_normal((4003, 192)).astype(np.float32)
    x.reshape(-1)[::1009] = np.inf
    fmt = get_format(name)
    expected = np.concatenate([fmt.quantize(x[start : start + 500]) for start in range(0, len(x), 500)])
    for layout in (x, np.asfortranarray(x), torch.from_numpy(x), torch.from_numpy(x).T.contiguous().T):
        checks.check_same_bytes(np.asarray(fmt.quantize(layout)), expected, x, name)
    values = fmt.dequantize(torch.from_numpy(expected), 192).numpy()
    checks.check_same_values(fmt.dequantize(expected, 192), values, name)


@every_format
def test_temporary_memory_is_bounded(name: str) -> None:
    x = np.zeros((1 << 15, 64), np.float32)
    checks.check_temporary_memory(get_format(name), x)


# -- the checks can fail


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_coded_error_notices(name: str) -> None:
    x = unit_vectors(16, 64)

    def other_code(real: Format, values: Any) -> Any:
        packed = real.quantize(values)
        packed[:, -1] ^= 0x55
        return packed

    def other_scale(real: Format, values: Any) -> Any:
        packed = real.quantize(values)
        packed[:, 0] ^= 4
        return packed

    for encode in (other_code, other_scale):
        fails(checks.check_coded_error, broken(name, encode=encode), x, LAYOUTS[name])


@pytest.mark.parametrize("name", LAYOUTS)
def test_check_coded_round_trip_notices(name: str) -> None:
    def shrinking(real: Format, packed: Any, width: int) -> Any:
        return real.dequantize(packed, width) * np.float32(0.999)

    fails(checks.check_coded_round_trip, broken(name, decode=shrinking), unit_vectors(16, 64), LAYOUTS[name])


def test_a_search_that_takes_the_worse_codes_is_noticed() -> None:
    part = get_format("tq3").parts[0]
    x = np.ascontiguousarray(unit_vectors(16, 64).T)
    first = replace(part, tries=part.tries[:1]).encode(x).T
    with pytest.raises(AssertionError):
        checks.check_same_bytes(first, checked("tq3", np.ascontiguousarray(x.T)), x.T, "tq3")
