"""Weights of the moments in benchmarks/transform_study.py: what attention itself is sensitive to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmark_scripts import load_benchmark

study = load_benchmark("transform_study")
N_HEAD, N_HEAD_KV, N, WIDTH = 4, 2, 6, 8


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, N_HEAD, N, WIDTH, generator=generator)
    key, value = (torch.randn(1, N_HEAD_KV, N, WIDTH, generator=generator) for _ in range(2))
    return query, key, value


@pytest.mark.parametrize("window", [None, 3])
def test_sensitivity_is_that_of_the_softmax(window: int | None) -> None:
    """The largest change of p that a logit makes is p (1 - p), by autograd, under the mask of the layer."""
    query, key, value = tensors()
    seen: list[torch.Tensor] = []
    treated = study.Treated()
    treated.watch = lambda _layer, _query, _key, sensitivity: seen.append(sensitivity())
    treated(SimpleNamespace(layer_idx=0), query, key, value, None, 0.5, sliding_window=window)
    (found,) = seen
    logits = 0.5 * query[0] @ key[0].repeat_interleave(2, 0).mT
    for i in range(N):
        first = 0 if window is None else max(0, i - window + 1)
        slopes = torch.stack(
            [
                torch.func.jacrev(lambda x: x.softmax(-1))(row).diagonal()
                for row in logits[:, i, first : i + 1]
            ]
        )
        torch.testing.assert_close(found[:, i, first : i + 1], slopes)
        assert not found[:, i, i + 1 :].any() and not found[:, i, :first].any()


def moments(weights: str, sensitivity: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    query, key, _ = tensors()
    found = study.weighted_moments(0, query, key, weights, lambda: sensitivity)
    return [(head.key_sum, head.key_square, head.query_square) for head in found.heads]


@pytest.mark.parametrize("weights", ["queries", "both"])
def test_equal_weights_change_nothing(weights: str) -> None:
    equal = torch.full((N_HEAD, N, N), 0.25)
    for plain, weighed in zip(moments("none", equal), moments(weights, equal), strict=True):
        for one, other in zip(plain, weighed, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)


def test_only_what_is_sensitive_counts() -> None:
    query, key, _ = tensors()
    only = torch.zeros(N_HEAD, N, N)
    only[:, 4, 2] = 0.2
    for index, (k_sum, kk, qq) in enumerate(moments("both", only)):
        k = key[0, index, 2].double().numpy()
        queries = query[0, 2 * index : 2 * index + 2, 4].double().numpy()
        np.testing.assert_allclose(k_sum, N * k)
        np.testing.assert_allclose(kk, N * np.outer(k, k))
        np.testing.assert_allclose(qq, N * queries.T @ queries)
    for plain, weighed in zip(moments("none", only), moments("queries", only), strict=True):
        np.testing.assert_array_equal(plain[1], weighed[1])
