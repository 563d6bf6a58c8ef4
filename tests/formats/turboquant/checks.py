"""What must hold for TurboQuant's parts, as functions that raise AssertionError and say how far off it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from scipy.integrate import quad

from kvquant.formats.base import Format
from kvquant.formats.turboquant.base import TurboQuant
from kvquant.formats.turboquant.codebook import Codebook
from kvquant.formats.turboquant.coder import coder
from kvquant.formats.turboquant.prod import sketch_matrix
from kvquant.formats.turboquant.rotation import Rotation

Float32Array = npt.NDArray[np.float32]
Encode = Callable[[Float32Array], npt.NDArray[np.uint8]]


def unit_vectors(n: int, width: int, seed: int = 0) -> Float32Array:
    """Return ``n`` independent vectors, uniform on the sphere, float32 (n, width)."""
    x = np.random.default_rng(seed).standard_normal((n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def squared_errors(fmt: Format, x: Float32Array) -> npt.NDArray[np.float64]:
    """Return ‖x - x̃‖² of every row, float64 (n,)."""
    restored = fmt.dequantize(fmt.quantize(x), x.shape[-1])
    return np.sum((x.astype(np.float64) - restored) ** 2, axis=-1)


def check_stationary(book: Codebook) -> None:
    """Boundaries lie midway between centroids; centroids are their cells' means, by numerical integration."""
    gaps = np.diff(book.centroids)
    off = np.abs(book.boundaries - (book.centroids[1:] + book.centroids[:-1]) / 2) / gaps
    assert np.all(off < 1e-11), f"a boundary is {off.max():.1e} of a gap away from midway"
    edges = np.concatenate(([-1.0], book.boundaries, [1.0]))
    for low, high, centroid in zip(edges[:-1], edges[1:], book.centroids, strict=True):
        # The density's constant cancels; dividing by its value at the inner end keeps far tails in range.
        exponent, inner = (book.width - 3) / 2, min(low * low, high * high) * (low * high > 0)

        def weight(x: float, exponent: float = exponent, inner: float = inner) -> float:
            return float(((1 - x * x) / (1 - inner)) ** exponent)

        # All of the weight lies within a few standard deviations of the inner end; a cell may reach much
        # further.
        span = 12 / np.sqrt(book.width)
        low, high = (low, min(high, low + span)) if low >= 0 else (max(low, high - span), high)
        mass = quad(weight, low, high, epsabs=0, epsrel=1e-12)[0]
        mean = quad(lambda x, w=weight: x * w(x), low, high, epsabs=1e-14 * mass, epsrel=1e-12)[0] / mass
        error = abs(mean - centroid) / gaps.min(initial=2.0)
        assert error < 1e-7, f"the centroid {centroid} is {error:.1e} of a gap from its cell's mean {mean}"


def check_orthogonal(rotation: Rotation) -> None:
    """The identity becomes an orthogonal matrix, and `inverse` is its transpose, to float32 rounding."""
    identity = np.eye(rotation.width, dtype=np.float32)
    matrix = rotation.forward(identity.copy())
    back = rotation.inverse(identity.copy())
    gram = np.abs(matrix.astype(np.float64) @ matrix.T - identity).max()
    assert gram < 1e-5, f"rows are not orthonormal: {gram:.1e}"
    transpose = np.abs(back - matrix.T).max()
    assert transpose < 1e-5, f"inverse is not the transpose: {transpose:.1e}"


def check_distortion(fmt: Format, x: Float32Array, expected: float, tolerance: float) -> None:
    """The mean of ‖x - x̃‖² is ``expected`` within the relative ``tolerance``."""
    measured = float(squared_errors(fmt, x).mean())
    assert abs(measured / expected - 1) <= tolerance, f"distortion {measured:.6g}, expected {expected:.6g}"


def check_codes_nearest(encode: Encode, centroids: Float32Array, y: Float32Array) -> None:
    """No centroid is nearer to a coordinate than the coded one, up to one rounding of the boundary."""
    codes = encode(y).astype(np.int64)
    distances = np.abs(y.astype(np.float64)[:, None] - centroids.astype(np.float64))
    chosen = distances[np.arange(len(y)), codes]
    slack = np.spacing(np.abs(centroids).max()).astype(np.float64)
    worst = float((chosen - distances.min(axis=1)).max())
    assert worst <= slack, f"a centroid is nearer by {worst:.1e}"


def check_rows_independent(fmt: Format, x: Float32Array) -> None:
    """Packing rows together, alone, in reverse or with other strides gives each row the same bytes."""
    packed = fmt.quantize(x)
    assert packed.shape == (len(x), fmt.n_bytes(x.shape[1])) and packed.dtype == np.uint8
    for index, row in enumerate(x):
        np.testing.assert_array_equal(fmt.quantize(row), packed[index])
    np.testing.assert_array_equal(fmt.quantize(x[::-1]), packed[::-1])
    np.testing.assert_array_equal(fmt.quantize(np.asfortranarray(x)), packed)
    np.testing.assert_array_equal(fmt.quantize(x[None, :, None]), packed[None, :, None])


def check_power_of_two_scaling(fmt: Format, x: Float32Array, exponent: int) -> None:
    """Scaling by 2^k scales the decoded values by exactly 2^k (rows whose length stays normal in fp16)."""
    width = x.shape[1]
    factor = np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        fmt.dequantize(fmt.quantize(x * factor), width), fmt.dequantize(fmt.quantize(x), width) * factor
    )


def check_lengths_kept(fmt: Format, x: Float32Array, tolerance: float) -> None:
    """Decoded vectors are as long as the originals."""
    restored = fmt.dequantize(fmt.quantize(x), x.shape[1]).astype(np.float64)
    off = np.abs(np.linalg.norm(restored, axis=1) / np.linalg.norm(x.astype(np.float64), axis=1) - 1).max()
    assert off <= tolerance, f"a length is off by {off:.1e}"


def check_inner_products(formats: Iterable[Format], width: int, variance: float) -> None:
    """⟨y, x̃⟩ - ⟨y, x⟩ has no bias, and ``variance`` within 5 %, over random unit x, y and the formats given.

    The formats differ in their seed, so that they are draws of the random rotation and sketch. A bias shows
    as a slope of ⟨x, x̃⟩ other than 1: without the sketch it is 1 - D.
    """
    errors, slopes = [], []
    for index, fmt in enumerate(formats):
        x, y = unit_vectors(400, width, 2 * index), unit_vectors(400, width, 2 * index + 1)
        restored = fmt.dequantize(fmt.quantize(x), width).astype(np.float64)
        errors.append(np.sum(y * (restored - x), axis=1))
        slopes.append(np.sum(x * restored, axis=1))
    error, slope = np.concatenate(errors), np.concatenate(slopes)
    bias = abs(float(error.mean()))
    assert bias < 4 * np.sqrt(variance / error.size), f"inner products are off by {bias:.1e} on average"
    off = abs(float(slope.mean()) - 1)
    assert off < 5 * slope.std() / np.sqrt(slope.size), f"⟨x, x̃⟩ is off by {off:.1e} on average"
    ratio = float(np.mean(error**2)) / variance
    assert abs(ratio - 1) < 0.05, f"variance is {ratio:.3f} of the theory's"


def check_layout(fmt: TurboQuant, packed: npt.NDArray[np.uint8], decoded: Float32Array) -> None:
    """Decoding by the documented bit layout, in plain integers and float64, gives the format's own values."""
    width = decoded.shape[1]
    bits = fmt.bits if fmt.kind == "mse" else fmt.bits - 1
    n_norm_bytes = 2 if fmt.norm_type == "f16" else 4
    rotation = fmt._rotation(width).forward(np.eye(width, dtype=np.float32)).astype(np.float64)
    centroids = coder(width, bits).centroids.astype(np.float64)
    for row, expected in zip(packed, decoded, strict=True):
        n_code_bytes = -(-width * bits // 8)
        word = int.from_bytes(row[:n_code_bytes].tobytes(), "little")
        direction = centroids[[word >> (i * bits) & ((1 << bits) - 1) for i in range(width)]]
        stored = row[-fmt.n_norms * n_norm_bytes :].tobytes()
        norms = np.frombuffer(stored, f"<f{n_norm_bytes}").astype(np.float64)
        if fmt.kind == "prod":
            word = int.from_bytes(row[n_code_bytes : n_code_bytes + -(-width // 8)].tobytes(), "little")
            signs = np.array([2.0 * (word >> i & 1) - 1 for i in range(width)])
            sketch = sketch_matrix(width, fmt.seed)
            direction = direction + np.sqrt(np.pi / 2) / width * norms[1] * (sketch.T @ signs)
        values = norms[0] * (rotation.T @ direction)
        assert np.abs(values - expected).max() <= 1e-5 * norms[0], f"{fmt.name} decodes otherwise"
