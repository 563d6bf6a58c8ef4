"""Where the K, V and Q of an analysis come from: a synthetic profile on a model's shape, or a capture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvquant.analysis.captures import REFERENCE_CAPTURE, capture_names, load_shipped_capture
from kvquant.analysis.profiles import LayerPlan, draw_layer, get_profile
from kvquant.analysis.sample import LayerSample, Source, SourceInfo, synthetic_queries
from kvquant.analysis.sample import query_positions as spread_positions
from kvquant.errors import CaptureError, ShapeError, UsageError
from kvquant.model.capture import KVCapture, LayerCapture, load_capture
from kvquant.model.presets import load_preset, preset_names
from kvquant.model.shape import LayerShape, ModelShape, WindowKind

DEFAULT_CAPTURE = REFERENCE_CAPTURE
"""What is analysed when no model, profile or capture is named."""

DEFAULT_PROFILE = "typical"
"""The profile for a model without a capture."""

DEFAULT_SHAPE = "llama-3.1-8b"
"""The model of a profile that is not named after one: 32 layers, 8 KV heads of 128 under 32 query heads."""


@dataclass(frozen=True)
class Sampling:
    """How much of each layer is looked at. More gives steadier numbers and takes proportionally longer.

    n_tokens: tokens drawn from a profile; a capture is always used whole. n_query: queries, at most.
    n_head_kv: KV heads, at most; each with all its query heads.
    """

    n_tokens: int = 512
    n_query: int = 16
    n_head_kv: int = 2

    def __post_init__(self) -> None:
        if min(self.n_tokens, self.n_query, self.n_head_kv) < 1:
            raise UsageError(
                f"sampling {self.n_tokens} tokens, {self.n_query} queries, {self.n_head_kv} KV heads: "
                "take at least 1 of each"
            )


def open_source(
    shape: ModelShape | None = None,
    profile: str | None = None,
    capture: KVCapture | str | Path | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
) -> Source:
    """Return the source that the arguments name.

    Without any it is DEFAULT_CAPTURE, with a shape alone DEFAULT_PROFILE. A profile is drawn on ``shape``,
    else on the model it is named after, else on DEFAULT_SHAPE. A capture is given as it is, by the name of a
    shipped one, or as a file. It brings its shape; one given beside it must fit, and supplies what a capture
    does not hold. Raises UsageError for an unknown profile, two sources or a negative seed, CaptureError for
    a capture that is damaged or does not fit, ShapeError for a model whose V is not stored.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; choose 0 or more")
    sampling = sampling or Sampling()
    if profile is not None and capture is not None:
        raise UsageError("both a profile and a capture are given; choose one source of K and V")
    if profile is None and capture is None:
        if shape is not None:
            profile = DEFAULT_PROFILE
        else:
            capture = DEFAULT_CAPTURE
    if profile is not None:
        own_shape = profile if profile in preset_names() else DEFAULT_SHAPE
        return ProfileSource(shape or load_preset(own_shape), profile, seed, sampling)
    if isinstance(capture, KVCapture):
        return CaptureSource(capture, capture.model, shape, seed, sampling)
    if capture in capture_names():
        return CaptureSource(load_shipped_capture(str(capture)), str(capture), shape, seed, sampling)
    path = Path(str(capture))
    return CaptureSource(load_capture(path), path.name, shape, seed, sampling)


@dataclass(frozen=True)
class ProfileSource:
    """K and V drawn from a profile for every layer of ``shape`` that keeps a cache."""

    shape: ModelShape
    profile: str
    seed: int
    sampling: Sampling

    def __post_init__(self) -> None:
        get_profile(self.profile)
        if self.shape.mla:
            raise ShapeError(
                f"{self.shape.name} caches a latent K and no V (MLA), which no profile imitates; "
                "kvquant memory counts its bytes"
            )
        if not self.shape.filled_kv_indices:
            raise ShapeError(
                f"{self.shape.name} has no layer that keeps a cache; there is nothing to analyse"
            )

    @property
    def info(self) -> SourceInfo:
        """Where the data come from and how much is sampled."""
        first = self.shape.layers[self.shape.kv_layers[self.shape.filled_kv_indices[0]]]
        n_head_kv = len(_spread(first.n_head_kv, self.sampling.n_head_kv))
        return SourceInfo(
            kind="profile",
            name=self.profile,
            description=get_profile(self.profile).description,
            queries="synthetic",
            seed=self.seed,
            n_tokens=self.sampling.n_tokens,
            n_query=len(spread_positions(self.sampling.n_tokens, self.sampling.n_query)),
            n_head_kv=f"{n_head_kv} of {first.n_head_kv}",
            n_head=f"{n_head_kv * first.n_head // first.n_head_kv} of {first.n_head}",
        )

    def layer(self, layer: int) -> LayerSample:
        """Return the sample of the layer with global index ``layer``, the same at every call."""
        shape = self.shape.layers[layer]
        plan = LayerPlan(
            layer=layer,
            n_layer=self.shape.n_layer,
            n_head_kv=shape.n_head_kv,
            heads=_spread(shape.n_head_kv, self.sampling.n_head_kv),
            group=shape.n_head // shape.n_head_kv,
            head_dim_k=shape.head_dim_k,
            head_dim_v=shape.head_dim_v,
            n_tokens=self.sampling.n_tokens,
            n_query=self.sampling.n_query,
            window=shape.window,
        )
        return draw_layer(get_profile(self.profile), plan, self.seed)


@dataclass(frozen=True, eq=False)
class CaptureSource:
    """K and V of a real run; its own queries where it has them, synthetic ones otherwise."""

    capture: KVCapture
    name: str
    given_shape: ModelShape | None
    seed: int
    sampling: Sampling
    shape: ModelShape = field(init=False)

    def __post_init__(self) -> None:
        shape = self.given_shape or capture_shape(self.capture)
        _check_capture_fits(self.capture, shape)
        object.__setattr__(self, "shape", shape)

    @property
    def info(self) -> SourceInfo:
        """Where the data come from and how much is sampled."""
        axes = self.capture.layers[0].axes
        n_head_kv = len(_spread(axes.n_head_kv, self.sampling.n_head_kv))
        halved = any(layer.k.dtype == np.float16 for layer in self.capture.layers)
        kept = "; kept as float16, so f16 is exact" if halved else ""
        return SourceInfo(
            kind="capture",
            name=self.name,
            description=f"K and V of {self.capture.model} ({self.capture.source}{kept})",
            queries="captured" if self.capture.queries == "captured" else "synthetic",
            seed=self.seed if self.capture.queries == "none" else None,
            n_tokens=self.capture.n_tokens,
            n_query=len(self._query_rows(self.capture.positions)),
            n_head_kv=f"{n_head_kv} of {axes.n_head_kv}",
            n_head=f"{n_head_kv * axes.n_head // axes.n_head_kv} of {axes.n_head}",
        )

    def layer(self, layer: int) -> LayerSample:
        """Return the sample of the layer with global index ``layer``, the same at every call."""
        captured = next(entry for entry in self.capture.layers if entry.axes.layer == layer)
        axes = captured.axes
        heads = np.array(_spread(axes.n_head_kv, self.sampling.n_head_kv))
        positions = self.capture.positions_of(captured)
        rows = self._query_rows(positions)
        k = captured.k[:, heads].astype(np.float32)
        at = (positions if self.capture.q_positions is None else self.capture.q_positions)[rows]
        return LayerSample(
            k=k,
            v=captured.v[:, heads].astype(np.float32),
            q=self._queries(captured, k, heads, rows),
            positions=positions.astype(np.int64),
            query_positions=at.astype(np.int64),
            logit_scale=axes.logit_scale,
            window=axes.window,
            heads=tuple(heads.tolist()),
        )

    def _query_rows(self, positions: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Which queries are used on a layer that holds the tokens at ``positions``: rows of q, or of the
        tokens when queries are drawn."""
        at = self.capture.q_positions
        if at is None:
            return np.asarray(spread_positions(len(positions), self.sampling.n_query))
        seeing = np.flatnonzero(at >= positions[0])
        if not len(seeing):
            raise CaptureError("capture: every query is before the first token; capture it again")
        return np.asarray(seeing[list(_spread(len(seeing), self.sampling.n_query))])

    def _queries(
        self,
        captured: LayerCapture,
        k: npt.NDArray[np.float32],
        heads: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        axes = captured.axes
        group = axes.n_head // axes.n_head_kv
        if captured.q is not None:
            by_kv_head = captured.q[rows].reshape(len(rows), axes.n_head_kv, group, axes.head_dim_k)
            return by_kv_head[:, heads].reshape(len(rows), -1, axes.head_dim_k).astype(np.float32)
        drawn = [
            synthetic_queries(
                k[:, i],
                len(rows),
                group,
                np.random.default_rng((self.seed, axes.layer, int(head))),
                axes.logit_scale,
            )
            for i, head in enumerate(heads)
        ]
        return np.concatenate(drawn, axis=1)


def capture_shape(capture: KVCapture) -> ModelShape:
    """Return the shape of the model a capture was taken from; layers without K and V in it keep no cache."""
    layers = [LayerShape(0, 0, 0, 0, keeps_cache=False)] * capture.n_layer
    for entry in capture.layers:
        axes = entry.axes
        layers[axes.layer] = LayerShape(
            axes.n_head, axes.n_head_kv, axes.head_dim_k, axes.head_dim_v, window=axes.window
        )
    windowed = any(layer.window for layer in layers)
    return ModelShape(
        name=capture.model,
        arch=capture.arch,
        n_ctx_train=0,
        layers=tuple(layers),
        window_kind=WindowKind.SLIDING if windowed else WindowKind.NONE,
        source=capture.source,
    )


def _check_capture_fits(capture: KVCapture, shape: ModelShape) -> None:
    captured = {entry.axes.layer: entry.axes for entry in capture.layers}
    filled = tuple(shape.kv_layers[i] for i in shape.filled_kv_indices)
    if tuple(captured) != filled:
        raise CaptureError(
            f"capture has layers {_listed(tuple(captured))}, {shape.name} keeps a cache in "
            f"{_listed(filled)}; capture this model"
        )
    for layer, axes in captured.items():
        expected = shape.layers[layer]
        found_axes = (axes.n_head, axes.n_head_kv, axes.head_dim_k, axes.head_dim_v)
        expected_axes = (expected.n_head, expected.n_head_kv, expected.head_dim_k, expected.head_dim_v)
        if found_axes != expected_axes:
            raise CaptureError(
                f"capture: layer {layer} has heads, KV heads, K and V widths {found_axes}, {shape.name} has "
                f"{expected_axes}; capture this model"
            )


def _listed(layers: Sequence[int]) -> str:
    return f"{layers[0]}..{layers[-1]} ({len(layers)})" if layers else "none"


def _spread(n: int, n_wanted: int) -> tuple[int, ...]:
    """Up to ``n_wanted`` of the indices 0..n-1, evenly spread."""
    return tuple(int(i * n / min(n, n_wanted)) for i in range(min(n, n_wanted)))
