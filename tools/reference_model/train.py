"""Training in stages, from a TOML file, resumable after a kill at any moment.

A stage fixes the number of layers, the documents, and the learning rates; each starts from the end of the one
before. Everything random is drawn from (seed, stage, step), so a resumed run reads the same documents as one
that was never stopped.
"""

from __future__ import annotations

import json
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kvquant.errors import UsageError
from kvquant.reference.tasks import Size, Split
from kvquant.reference.vocabulary import TOKENS
from reference_model.batches import Batch, draw_batch
from reference_model.checkpoint import load_checkpoint, save_checkpoint
from reference_model.growth import add_reply_head, grown, new_model, spread
from reference_model.network import ReferenceConfig, ReferenceModel
from reference_model.optimizer import Optimizer
from reference_model.outliers import add_key_outliers

_SCORE_MEMORY = 0.95


@dataclass(frozen=True)
class Stage:
    """One lesson.

    n_layer: layers of the network from here on. order: which layers of the stage before they are copies of,
    when there are more now; with `tied`, which layers run one after another while copies keep the same
    weights and only share their output (`growth.spread`). n_tokens, most_pairs, n_words: see `tasks.Size`.
    n_rows: documents a step. n_steps: steps at most. until: end early when this share of the answer tokens is
    right (running mean over steps). matrix_rate, vector_rate: learning rates after `n_warmup` steps; with
    `decay` they fall to zero over the stage. skip: share of the layers that a step leaves out at random
    (stochastic depth), so that no layer can do a job alone. reply_head, key_outliers: begin with
    `growth.add_reply_head`, with `outliers.add_key_outliers`.
    tasks: task name to share of the documents.
    """

    name: str
    n_layer: int
    n_tokens: int
    n_rows: int
    n_steps: int
    most_pairs: int
    tasks: Mapping[str, float]
    order: Sequence[int] = ()
    n_words: int = 256
    until: float = 2.0
    matrix_rate: float = 0.02
    vector_rate: float = 0.003
    n_warmup: int = 50
    decay: bool = False
    skip: float = 0.0
    reply_head: bool = False
    tied: bool = False
    key_outliers: bool = False

    def size(self) -> Size:
        """Return what the stage's documents are like."""
        return Size(self.n_tokens, self.most_pairs, self.n_words)

    def skipped(self, seed: tuple[int, ...]) -> list[int]:
        """Return the layers that the step of ``seed`` leaves out."""
        n_layer = len(self.order) if self.tied else self.n_layer
        left_out = np.random.default_rng(seed).random(n_layer) < self.skip
        return [int(layer) for layer in np.flatnonzero(left_out)]

    def layers(self, model: ReferenceModel, seed: int) -> Mapping[str, Tensor] | None:
        """Return the stacks that ``model`` runs with, None for its own."""
        return spread(dict(model.layers), self.order, model.config.n_head, seed) if self.tied else None

    def rate(self, step: int) -> float:
        """Return the share of the learning rates that ``step`` (from 0) uses."""
        warm = min(1.0, (step + 1) / self.n_warmup)
        return warm * (1 - step / self.n_steps) if self.decay else warm


@dataclass(frozen=True)
class TrainingPlan:
    """The committed configuration: network sizes, the weight of tokens nothing decides, and the stages."""

    stages: tuple[Stage, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    other_weight: float = 0.1

    def config(self, n_layer: int) -> ReferenceConfig:
        """Return the network's sizes with ``n_layer`` layers."""
        return ReferenceConfig(n_vocab=len(TOKENS), n_layer=n_layer, **self.model)


def read_plan(path: Path) -> TrainingPlan:
    """Return the plan in the TOML file ``path``. Raises UsageError naming what is wrong with it."""
    try:
        table = tomllib.loads(path.read_text())
        stages = tuple(Stage(**stage) for stage in table.pop("stage"))
        return TrainingPlan(stages=stages, **table)
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} is not a training plan: {error}") from error


@dataclass
class _State:
    """Where training stands: what a checkpoint holds."""

    model: ReferenceModel
    optimizer: Optimizer
    stage: int = 0
    step: int = 0
    n_tokens: int = 0
    seconds: float = 0.0
    score: float = 0.0


def _start(plan: TrainingPlan, seed: int, start: ReferenceModel | None) -> _State:
    model = new_model(plan.config(plan.stages[0].n_layer), seed) if start is None else start
    return _State(model, Optimizer(model))


def _save(path: Path, state: _State, seed: int) -> None:
    weights = {f"weight/{name}": value for name, value in state.model.state_dict().items()}
    averages = {f"optimizer/{name}": value for name, value in state.optimizer.state().items()}
    meta = {
        "seed": seed,
        "n_layer": state.model.config.n_layer,
        "stage": state.stage,
        "step": state.step,
        "n_tokens": state.n_tokens,
        "seconds": state.seconds,
        "score": state.score,
    }
    save_checkpoint(path, weights | averages, meta)


def _with_prefix(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def load_model(path: Path, plan: TrainingPlan) -> ReferenceModel:
    """Return the model of the checkpoint ``path``. Raises ModelFileError when it is none."""
    arrays, meta = load_checkpoint(path)
    model = ReferenceModel(plan.config(meta["n_layer"]))
    model.load_state_dict(_with_prefix(arrays, "weight/"))
    return model


def _resume(path: Path, plan: TrainingPlan, seed: int) -> _State:
    arrays, meta = load_checkpoint(path)
    if meta["seed"] != seed:
        raise UsageError(f"{path} was trained from seed {meta['seed']}, not {seed}; name another folder")
    model = load_model(path, plan)
    optimizer = Optimizer(model)
    optimizer.restore(_with_prefix(arrays, "optimizer/"))
    return _State(
        model, optimizer, meta["stage"], meta["step"], meta["n_tokens"], meta["seconds"], meta["score"]
    )


@dataclass(frozen=True)
class Loss:
    """What one batch gave: the value to go down, and by task how many answer tokens were right, of how
    many.
    """

    value: Tensor
    right: Mapping[str, tuple[int, int]]


def batch_loss(
    model: ReferenceModel,
    batch: Batch,
    other_weight: float,
    skip: Collection[int] = (),
    layers: Mapping[str, Tensor] | None = None,
) -> Loss:
    """Return the mean cross-entropy of ``batch`` in nats; tokens outside answers count ``other_weight``.

    skip, layers: see `ReferenceModel.hidden`.
    """
    tokens = torch.from_numpy(batch.tokens)
    answers = torch.from_numpy(batch.answers)
    logits = model.logits(model.hidden(tokens[:, :-1], skip=skip, layers=layers))
    targets = tokens[:, 1:]
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(
        targets
    )
    weights = torch.where(answers, 1.0, other_weight)
    hits = ((logits.detach().argmax(-1) == targets) & answers).sum(1).tolist()
    right: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for kind, n_hit, n_asked in zip(batch.kinds, hits, answers.sum(1).tolist(), strict=True):
        right[kind] = (right[kind][0] + n_hit, right[kind][1] + n_asked)
    return Loss((losses * weights).sum() / weights.sum(), dict(right))


def train(
    plan: TrainingPlan,
    seed: int,
    folder: Path,
    *,
    start: ReferenceModel | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    save_every_s: float = 120.0,
    log_every: int = 50,
) -> ReferenceModel:
    """Train by ``plan`` from ``seed``, or go on from ``folder``/checkpoint.npz, and return the model.

    ``start`` is trained further in place of a new model. It has the layers of the first stage, or that stage
    says how they grow.

    Appends one JSON object per ``log_every`` steps to ``folder``/log.jsonl; rows written after the last
    checkpoint and before a kill are dropped when training resumes. Ends early, saved, when ``should_stop``
    says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.npz", folder / "log.jsonl"
    state = _resume(checkpoint, plan, seed) if checkpoint.exists() else _start(plan, seed, start)
    _drop_rows_after(log, state.n_tokens)
    begun, saved = time.monotonic(), time.monotonic()
    before = state.seconds
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    losses: list[float] = []
    while state.stage < len(plan.stages):
        stage = plan.stages[state.stage]
        if stage.n_layer != state.model.config.n_layer:
            state.model = grown(state.model, stage.order, seed)
            state.optimizer = Optimizer(state.model)
        if stage.reply_head and state.step == 0:
            add_reply_head(state.model)
        if stage.key_outliers and state.step == 0:
            add_key_outliers(state.model, seed)
        if state.step >= stage.n_steps or state.score >= stage.until:
            _save(folder / f"stage-{stage.name}.npz", state, seed)
            state.stage, state.step, state.score = state.stage + 1, 0, 0.0
            continue
        batch = draw_batch(
            (seed, state.stage, state.step), Split.TRAIN, stage.tasks, stage.n_rows, stage.size()
        )
        skipped = stage.skipped((seed, state.stage, state.step, 1))
        layers = stage.layers(state.model, seed)
        loss = batch_loss(state.model, batch, plan.other_weight, skipped, layers)
        torch.autograd.backward(loss.value)
        rate = stage.rate(state.step)
        state.optimizer.step(stage.matrix_rate * rate, stage.vector_rate * rate)
        state.step += 1
        state.n_tokens += stage.n_rows * stage.n_tokens
        state.seconds = before + time.monotonic() - begun
        losses.append(loss.value.item())
        n_right = n_asked = 0
        for kind, (hit, asked) in loss.right.items():
            tally[kind][0] += hit
            tally[kind][1] += asked
            n_right, n_asked = n_right + hit, n_asked + asked
        if n_asked:
            state.score = _SCORE_MEMORY * state.score + (1 - _SCORE_MEMORY) * n_right / n_asked
        if state.step % log_every == 0:
            row = {
                "stage": stage.name,
                "step": state.step,
                "n_layer": stage.n_layer,
                "n_tokens": state.n_tokens,
                "seconds": round(state.seconds, 1),
                "loss": round(float(np.mean(losses)), 4),
                "score": round(state.score, 4),
                "right": {k: round(hit / asked, 4) for k, (hit, asked) in sorted(tally.items()) if asked},
            }
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            tally.clear()
            losses.clear()
        stop = should_stop()
        if stop or time.monotonic() - saved > save_every_s:
            _save(checkpoint, state, seed)
            saved = time.monotonic()
        if stop:
            return state.model
    _save(checkpoint, state, seed)
    return state.model


def _drop_rows_after(log: Path, n_tokens: int) -> None:
    """Remove the rows of ``log`` that training will write again because the checkpoint is older."""
    if log.exists():
        rows = [line for line in log.read_text().splitlines() if json.loads(line)["n_tokens"] <= n_tokens]
        log.write_text("".join(f"{row}\n" for row in rows))
