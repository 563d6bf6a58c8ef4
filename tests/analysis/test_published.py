"""Verdicts on published numbers follow from measurements, and the measurements are right."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from kvquant.analysis.published import Figure, Reading, Verdict, buffers, recompute, turboquant, write_up
from kvquant.analysis.published.figure import agrees, mean_reading, printed_like, unit_vectors
from kvquant.formats.registry import get_format


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return {figure.key: figure for figure in recompute()}


# -- the rule ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "value", "expected"),
    [
        ("0.36", 0.36338, True),
        ("0.117", 0.11748, True),
        ("0.03", 0.03455, True),  # rounded
        ("0.009", 0.009497, True),
        ("0.009", 0.0099, True),  # cut off
        ("0.009", 0.0101, False),
        ("0.009", 0.0084, False),
        ("7.3e-05", 7.35e-05, True),
        ("7.3e-05", 5.77e-05, False),
        ("7.3e-05", 7.24e-05, False),
        ("6.4x", 6.4, True),
        ("17 %", 17.19, True),
        ("17 %", 9.1, False),
        ("140.00 MiB", 140.0, True),
        ("140.00 MiB", 140.02, False),
        ("0.36", math.nan, False),
    ],
)
def test_agreement_is_at_the_printed_precision(published: str, value: float, expected: bool) -> None:
    assert agrees(published, Reading(value, "")) is expected


def test_sampling_error_is_allowed_for() -> None:
    assert not agrees("0.117", Reading(0.1160, ""))
    assert agrees("0.117", Reading(0.1160, "", standard_error=0.0002))


@pytest.mark.parametrize(
    ("published", "value", "printed"),
    [
        ("7.3e-05", 5.7699e-05, "5.77e-05"),
        ("3.6x", 1.88235, "1.88x"),
        ("10.5 MB", 18.8719, "18.9 MB"),
        ("140.00 MiB", 108.0, "108.00 MiB"),
        ("17 %", 9.0909, "9 %"),
        ("0.047", 0.05402, "0.0540"),
        ("2.5", 2.25, "2.25"),
    ],
)
def test_right_values_are_printed_like_the_published_ones(published: str, value: float, printed: str) -> None:
    assert printed_like(published, value) == printed


def test_verdicts_follow_the_readings() -> None:
    right, wrong = Reading(6.4, ""), Reading(3.56, "")
    figure = Figure("k", "s", "c", "6.4x", convention=right, actual=right)
    assert figure.sentence == figure.verdict == Verdict.REPRODUCED
    assert replace(figure, actual=wrong).sentence == (
        "reproduced under its convention; the right value is 3.56x"
    )
    assert replace(figure, convention=wrong, actual=wrong).sentence == (
        "contradicted; the right value is 3.56x"
    )


# -- the measurements --------------------

EXPECTED = {
    "write-up.mse.q8_0": (Verdict.REPRODUCED, 2.24e-07, 2.24e-07),
    "write-up.mse.q4_0": (Verdict.UNDER_CONVENTION, 7.35e-05, 5.77e-05),
    "write-up.mse.tq_mse_4b": (Verdict.REPRODUCED, 7.28e-05, 7.28e-05),
    "write-up.mse.tq_mse_3b": (Verdict.REPRODUCED, 2.654e-04, 2.654e-04),
    "write-up.compression.q8_0": (Verdict.UNDER_CONVENTION, 32 / 9, 16 / 8.5),
    "write-up.compression.q4_0": (Verdict.UNDER_CONVENTION, 6.4, 16 / 4.5),
    "write-up.compression.tq_mse_4b": (Verdict.UNDER_CONVENTION, 32 / 4.25, 16 / 4.125),
    "write-up.compression.tq_mse_3b": (Verdict.UNDER_CONVENTION, 32 / 3.25, 5.12),
    "write-up.size.q4_0": (Verdict.UNDER_CONVENTION, 67.1 / 6.4, 18.87),
    "write-up.gain.tq_mse_4b": (Verdict.UNDER_CONVENTION, 17.19, 9.09),
    "paper.d_mse.1b": (Verdict.REPRODUCED, 0.3631, 0.3631),
    "paper.d_mse.2b": (Verdict.REPRODUCED, 0.1173, 0.1173),
    "paper.d_mse.3b": (Verdict.REPRODUCED, 0.03447, 0.03447),
    "paper.d_mse.4b": (Verdict.REPRODUCED, 0.00948, 0.00948),
    "paper.d_prod.2b": (Verdict.REPRODUCED, 0.5655, 0.5700),
    "paper.d_prod.3b": (Verdict.REPRODUCED, 0.1838, 0.1841),
    "paper.d_prod.4b": (Verdict.UNDER_CONVENTION, 0.0471, 0.0541),
    "paper.fractional_bits": (Verdict.CONTRADICTED, 2.25, 2.25),
    "fork.d_mse.4b": (Verdict.UNDER_CONVENTION, 0.0203, 0.0196),
    "fork.optimal.4b": (Verdict.CONTRADICTED, 0.0203, 0.0196),
    "write-up.kv_buffer.qwen3.5-2b": (Verdict.UNDER_CONVENTION, 140.0, 108.0),
    "write-up.kv_buffer.qwen3.5-4b": (Verdict.UNDER_CONVENTION, 176.0, 144.0),
}


def test_every_figure_is_expected(figures: dict[str, Figure]) -> None:
    assert list(figures) == list(EXPECTED)


@pytest.mark.parametrize("key", EXPECTED)
def test_figure(figures: dict[str, Figure], key: str) -> None:
    verdict, convention, actual = EXPECTED[key]
    figure = figures[key]
    assert figure.convention.value == pytest.approx(convention, rel=0.01)
    assert figure.actual.value == pytest.approx(actual, rel=0.01)
    assert figure.verdict is verdict


def test_verdicts_do_not_hang_on_the_seed(figures: dict[str, Figure]) -> None:
    again = {figure.key: figure.verdict for figure in recompute(seed=12345)}
    assert again == {key: figure.verdict for key, figure in figures.items()}
    assert recompute() == tuple(figures.values()), "the same seed gives the same values"


def test_a_verdict_changes_with_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    # Were q4_0 what the write-up measured, its error would be reproduced: no verdict is written down.
    def symmetric(x: np.ndarray, _: object) -> np.ndarray:
        return np.sum((x - write_up.absmax_round_trip(x, 7)).astype(np.float64) ** 2, axis=1)

    monkeypatch.setattr(write_up, "round_trip_errors", symmetric)
    changed = {figure.key: figure for figure in write_up.figures(0)}["write-up.mse.q4_0"]
    assert changed.verdict is Verdict.REPRODUCED


def test_absmax_blocks() -> None:
    x = np.concatenate((np.linspace(-7, 6, 32), np.full(32, 0.25))).astype(np.float32)[None]
    restored = write_up.absmax_round_trip(x, 7)
    np.testing.assert_array_equal(restored[0, :32], np.rint(x[0, :32]))
    np.testing.assert_allclose(restored[0, 32:], 0.25, rtol=1e-6)


def test_ggml_beats_the_tables_own_q4_0() -> None:
    # What the write-up's comparison hides: on its own data llama.cpp's q4_0 has the smaller error.
    x = unit_vectors(2000, 128, 1)
    q4_0, tq_4b = (
        np.mean((x - fmt.dequantize(fmt.quantize(x), 128)) ** 2)
        for fmt in (get_format("q4_0"), get_format("tq_mse_4b"))
    )
    assert q4_0 < 0.85 * tq_4b


def test_fork_distortion_in_closed_form_agrees_with_sampling() -> None:
    z = np.random.default_rng(0).standard_normal((2000, 128))
    magnitudes = np.array(turboquant.FORK_CENTROIDS) * math.sqrt(128)
    centroids = np.concatenate((-magnitudes[::-1], magnitudes))
    reading = mean_reading(np.mean((z - turboquant.nearest(z, centroids)) ** 2, axis=1), "")
    exact = turboquant._gaussian_distortion(magnitudes)
    assert abs(reading.value - exact) < 5 * reading.standard_error
    assert exact == pytest.approx(0.0203, abs=5e-5)


def test_qwen_buffers_are_the_hybrids() -> None:
    for preset, n_ctx, published in buffers.LOGGED:
        assert f"{buffers.kv_mebibytes(preset, buffers.HYBRID, n_ctx):.2f} MiB" == published
