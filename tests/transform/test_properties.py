"""Transforms fitted on any K and Q: exact, optimal, bounded, and the same in NumPy and Torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import TransformError
from kvquant.transform import (
    KINDS,
    FitOptions,
    HeadMoments,
    Kind,
    LayerMoments,
    fit_head,
    fit_layer,
    measure,
    predicted_error,
)
from kvquant.transform.fit import predicted_errors
from kvquant.transform.transform import MAX_CONDITION, LayerTransform, condition
from transform.checks import check_attention_unchanged, check_keys_come_back
from transform.strategies import Sample, samples

kinds = st.sampled_from(KINDS)
options = st.builds(
    FitOptions,
    floor=st.sampled_from((1e-4, 1e-2)),
    shrink=st.sampled_from((0.0, 0.3, 1.0)),
    centred=st.booleans(),
)

# M⁻ᵀ is rounded to float32 by entries of up to its largest, which M may stretch by its condition number.
FLOAT32 = 2.0**-23
ROUNDING = 16 * 2 * MAX_CONDITION * FLOAT32


@given(samples(), kinds, options)
def test_attention_is_unchanged(sample: Sample, kind: Kind, fit: FitOptions) -> None:
    transform = fit_layer(measure(0, sample.k, sample.q), kind, fit)
    check_attention_unchanged(transform, sample.k, sample.q, FLOAT32 if kind != "balanced" else ROUNDING)


@given(samples(), kinds, options)
def test_keys_come_back(sample: Sample, kind: Kind, fit: FitOptions) -> None:
    transform = fit_layer(measure(0, sample.k, sample.q), kind, fit)
    check_keys_come_back(transform, sample.k, FLOAT32 if kind != "balanced" else ROUNDING)


@given(samples(), kinds, options)
def test_numbers_are_finite_and_matrices_bounded(sample: Sample, kind: Kind, fit: FitOptions) -> None:
    transform = fit_layer(measure(3, sample.k, sample.q), kind, fit)
    assert transform.layer == 3
    assert np.isfinite(transform.centre).all()
    assert transform.gain_db is not None
    assert np.isfinite(transform.gain_db)
    if transform.forward is not None:
        assert condition(transform.forward) <= MAX_CONDITION * 1.01


@given(samples(widths=(2, 8)), st.integers(0, 2**32 - 1))
def test_no_matrix_beats_the_closed_form(sample: Sample, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for head in measure(0, sample.k, sample.q).heads:
        centre, best = fit_head(head, "balanced")
        p, q = _energies(head, centre)
        least = np.sum(np.sqrt(np.abs(np.linalg.eigvals(p @ q)))) ** 2 / len(p)
        error = predicted_error(best, p, q)
        if np.linalg.cond(p @ q) < 1e10:  # beyond it the bound on M binds, and M is not the free optimum
            assert error == pytest.approx(least, rel=1e-6)
        for size in (1e-3, 0.1, 1.0):
            other = best + size * np.abs(best).max() * rng.standard_normal(best.shape)
            assert predicted_error(other, p, q) >= least * (1 - 1e-9)


@given(samples(), st.integers(0, 2**32 - 1))
def test_no_diagonal_beats_the_fitted_one(sample: Sample, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for head in measure(0, sample.k, sample.q).heads:
        centre, scale = fit_head(head, "diagonal")
        p, q = _energies(head, centre)
        if condition(scale[None]) < MAX_CONDITION / 2.1:
            for size in (1e-2, 0.3, 2.0):
                other = scale * np.exp(size * rng.standard_normal(scale.shape))
                assert predicted_error(scale, p, q) <= predicted_error(other, p, q) * (1 + 1e-9)


@given(samples(), st.booleans())
def test_in_prediction_a_diagonal_is_never_worse_than_none_and_a_matrix_than_a_diagonal(
    sample: Sample, centred: bool
) -> None:
    for head in measure(0, sample.k, sample.q).heads:
        errors = []
        for kind in KINDS:
            centre, matrix = fit_head(head, kind, FitOptions(centred=centred))
            before, after = predicted_errors(head, centre, matrix, FitOptions().floor)
            errors.append(after)
        assert errors[1] <= errors[0] * (1 + 1e-9)
        assert errors[2] <= errors[1] * (1 + 1e-6)
        assert errors[0] <= before * (1 + 1e-5)


@given(samples(widths=(8,)), kinds, st.sampled_from((2.0**-8, 2.0**7)), st.sampled_from((2.0**-6, 2.0**9)))
def test_gain_does_not_depend_on_the_scale_of_k_and_q(
    sample: Sample, kind: Kind, k_scale: float, q_scale: float
) -> None:
    k, q = sample.k.astype(np.float64), sample.q.astype(np.float64)
    if not np.abs(k).max() or not np.abs(q).max():
        return  # nothing to scale
    gains = []
    for moments in (measure(0, k, q), measure(0, k * k_scale, q * q_scale)):
        fitted = [fit_head(head, kind) for head in moments.heads]
        errors = [
            predicted_errors(head, centre, matrix, 1e-4)
            for head, (centre, matrix) in zip(moments.heads, fitted, strict=True)
        ]
        gains.append([after / before for before, after in errors])
    np.testing.assert_allclose(gains[0], gains[1], rtol=1e-4)


@given(samples(), kinds)
def test_torch_gives_what_numpy_gives(sample: Sample, kind: Kind) -> None:
    transform = fit_layer(measure(0, sample.k, sample.q), kind)
    for apply, x in (
        (transform.apply_k, sample.k),
        (transform.undo_k, sample.k),
        (transform.apply_q, sample.q),
    ):
        ours, theirs = apply(x), apply(torch.from_numpy(x.copy()))
        assert theirs.dtype == torch.float32
        scale = float(np.abs(ours).max()) + 1e-30
        np.testing.assert_allclose(theirs.numpy() / scale, ours / scale, atol=64 * FLOAT32)


@given(samples(), st.integers(1, 63))
def test_moments_of_parts_add_up(sample: Sample, cut: int) -> None:
    whole = measure(0, sample.k, sample.q)
    if not 0 < cut < min(len(sample.k), len(sample.q)):
        return  # both parts need a token
    parts = measure(0, sample.k[:cut], sample.q[:cut]) + measure(0, sample.k[cut:], sample.q[cut:])
    for head, other in zip(whole.heads, parts.heads, strict=True):
        assert (head.key_weight, head.query_weight) == (other.key_weight, other.query_weight)
        np.testing.assert_allclose(
            other.key_square, head.key_square, rtol=1e-9, atol=1e-9 * head.key_square.max()
        )
        np.testing.assert_allclose(other.key_mean, head.key_mean, rtol=1e-9, atol=1e-6)


def test_a_bias_is_what_centring_removes() -> None:
    rng = np.random.default_rng(0)
    k = rng.standard_normal((256, 1, 16)) + 300 * np.eye(16)[3]
    q = rng.standard_normal((256, 2, 16))
    gain = fit_layer(measure(0, k, q), "centre").gain_db
    assert gain is not None
    assert gain == pytest.approx(10 * np.log10((300**2 + 16) / 16), abs=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_known_numbers(kind: Kind) -> None:
    """Two channels, energies of K 1 and 16, of Q 1 and 1, no mean: (1 + 16)(1 + 1)/2 against (1 + 4)²/2."""
    head = HeadMoments(1, 1, np.zeros(2), np.diag([1.0, 16.0]), np.eye(2))
    centre, matrix = fit_head(head, kind, FitOptions(floor=1e-12))
    before, after = predicted_errors(head, centre, matrix, 1e-12)
    assert before == pytest.approx(17.0)
    assert after == pytest.approx(17.0 if kind == "centre" else 12.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_on_which_nothing_depends_is_left_alone(kind: Kind) -> None:
    """Beside one that is fitted: its values are all the same, so that no weight falls on its keys."""
    nothing = HeadMoments(0, 0, np.zeros(4), np.zeros((4, 4)), np.zeros((4, 4)))
    rng = np.random.default_rng(0)
    other = measure(0, rng.standard_normal((64, 1, 4)) + 3, rng.standard_normal((64, 1, 4))).heads[0]
    fitted = fit_layer(LayerMoments(0, (nothing, other)), kind)
    assert fitted.gain_db is not None and fitted.gain_db > 0
    assert not fitted.centre[0].any() and fitted.centre[1].any()
    if fitted.forward is not None:
        alone = np.diag(fitted.forward[0]) if kind == "diagonal" else fitted.forward[0]
        np.testing.assert_allclose(alone @ alone.T, np.eye(4), atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerTransform(0, np.zeros((2, 4)), np.zeros((2, 4))), "condition number"),
        (lambda: LayerTransform(0, np.zeros((2, 4)), np.ones((2, 4, 4))), "condition number"),
        (lambda: LayerTransform(0, np.zeros((2, 4)), np.ones((2, 5))), "matrix of shape"),
        (lambda: LayerTransform(0, np.full((2, 4), np.nan)), "NaN"),
        (lambda: LayerTransform(0, np.zeros(4)), "a centre of shape"),
        (lambda: LayerTransform(0, np.zeros((2, 4))).apply_k(np.zeros((3, 4))), "2 KV heads of 4 values"),
        (lambda: LayerTransform(0, np.zeros((2, 4))).apply_q(np.zeros((3, 4))), "2 KV heads of 4 values"),
        (lambda: LayerTransform(0, np.zeros((2, 4))).apply_q(np.zeros((1, 4))), "2 KV heads of 4 values"),
        (lambda: measure(0, np.zeros((3, 2, 4)), np.zeros((3, 3, 4))), "not"),
        (lambda: measure(0, np.full((3, 1, 4), np.inf), np.zeros((3, 1, 4))), "NaN or infinity"),
        (lambda: measure(0, np.zeros((0, 1, 4)), np.zeros((3, 1, 4))), "nothing was measured"),
        (lambda: HeadMoments(-1, 1, np.zeros(2), np.eye(2), np.eye(2)), "are no weights"),
        (lambda: HeadMoments(1, np.nan, np.zeros(2), np.eye(2), np.eye(2)), "are no weights"),
        (lambda: FitOptions(floor=0), "from 0 to 1"),
        (lambda: fit_head(HeadMoments(1, 1, np.zeros(2), np.eye(2), np.eye(2)), "rotated"), "known: centre"),
        # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with np.errstate(invalid="ignore"), pytest.raises(TransformError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def _energies(head: HeadMoments, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P and Q as the fit sees them: with the floor that `FitOptions` adds."""
    from kvquant.transform.fit import _floored

    plain = head.key_energy(np.zeros(head.width))
    return (
        _floored(head.key_energy(centre), FitOptions().floor, at_least=plain),
        _floored(head.query_energy, FitOptions().floor),
    )
