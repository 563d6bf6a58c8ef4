"""Weights of the moments in benchmarks/transform_study.py: what attention itself is sensitive to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmark_scripts import load_benchmark
from kvquant.transform import LayerMoments, measure

study = load_benchmark("transform_study")
N_HEAD, N_HEAD_KV, N, WIDTH = 4, 2, 6, 8


def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, N_HEAD, N, WIDTH, generator=generator)
    key, value = (torch.randn(1, N_HEAD_KV, N, WIDTH, generator=generator) for _ in range(2))
    return query, key, value


def weights_seen(weights: str, window: int | None) -> torch.Tensor:
    """What the study's attention gives whoever watches it."""
    query, key, value = tensors()
    seen: list[torch.Tensor] = []
    treated = study.Treated()
    treated.watch = lambda _layer, _query, _key, pairs: seen.append(pairs(weights))
    treated(SimpleNamespace(layer_idx=0), query, key, value, None, 0.5, sliding_window=window)
    (found,) = seen
    return found


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("weights", ["softmax", "output"])
def test_weights_are_slopes(weights: str, window: int | None) -> None:
    """Of each probability, and of what attention returns, by autograd, under the mask of the layer."""
    query, key, value = tensors()
    found = weights_seen(weights, window)
    logits = 0.5 * query[0] @ key[0].repeat_interleave(2, 0).mT
    values = value[0].repeat_interleave(2, 0)
    for i in range(N):
        first = 0 if window is None else max(0, i - window + 1)
        for head in range(N_HEAD):
            row, v = logits[head, i, first : i + 1], values[head, first : i + 1]
            if weights == "softmax":
                wanted = torch.func.jacrev(lambda x: x.softmax(-1))(row).diagonal()
            else:
                wanted = (torch.func.jacrev(lambda x, v=v: x.softmax(-1) @ v)(row) ** 2).sum(0)
            torch.testing.assert_close(found[head, i, first : i + 1], wanted)
        assert not found[:, i, i + 1 :].any() and not found[:, i, :first].any()


def moments(pairs: torch.Tensor | None) -> LayerMoments:
    query, key, _ = tensors()
    return study.moments_of(0, query, key, pairs)


def test_without_weights_all_count_as_one() -> None:
    query, key, _ = (x[0].transpose(0, 1).numpy() for x in tensors())
    for found, wanted in zip(moments(None).heads, measure(0, key, query).heads, strict=True):
        assert (found.key_weight, found.query_weight) == (wanted.key_weight, wanted.query_weight)
        for name in ("key_sum", "key_square", "query_square"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-12)


def test_equal_weights_change_nothing() -> None:
    for plain, weighed in zip(
        moments(None).heads, moments(torch.full((N_HEAD, N, N), 0.25)).heads, strict=True
    ):
        np.testing.assert_allclose(weighed.key_mean, plain.key_mean, rtol=1e-12)
        np.testing.assert_allclose(weighed.query_energy, plain.query_energy, rtol=1e-12)
        for centre in (0 * plain.key_mean, plain.key_mean):
            np.testing.assert_allclose(weighed.key_energy(centre), plain.key_energy(centre), atol=1e-12)


def test_only_what_counts_is_summed() -> None:
    query, key, _ = tensors()
    only = torch.zeros(N_HEAD, N, N)
    only[:, 4, 2] = 0.25
    for index, head in enumerate(moments(only).heads):
        k = key[0, index, 2].double().numpy()
        queries = query[0, 2 * index : 2 * index + 2, 4].double().numpy()
        assert head.key_weight == head.query_weight == 0.5
        np.testing.assert_allclose(head.key_mean, k)
        np.testing.assert_allclose(head.key_square, np.outer(k, k) / 2)
        np.testing.assert_allclose(head.query_square, queries.T @ queries / 4)
