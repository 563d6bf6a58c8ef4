"""The network, how it starts and grows, its optimizer and its checkpoints, all on tiny untrained models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvquant.errors import ModelFileError, UsageError  # noqa: E402
from kvquant.reference.tasks import Document, Size, Split  # noqa: E402
from reference_model.batches import draw_batch  # noqa: E402
from reference_model.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from reference_model.growth import (  # noqa: E402
    add_reply_head,
    grown,
    new_model,
    parameter_count,
    spread,
)
from reference_model.network import apply_rope, model_shape, rope_tables  # noqa: E402
from reference_model.optimizer import Optimizer, orthogonalised  # noqa: E402
from reference_model.outliers import KeyOutliers, add_key_outliers  # noqa: E402
from reference_model.scoring import Share, read, recall_readings, recall_score  # noqa: E402
from reference_model.train import Stage, TrainingPlan, batch_loss, load_model, read_plan, train  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def test_a_token_is_not_changed_by_later_ones(tiny_model):
    tokens = torch.arange(20)[None] + 300
    later = tokens.clone()
    later[0, 12:] += 7
    with torch.inference_mode():
        first, second = tiny_model(tokens), tiny_model(later)
    torch.testing.assert_close(first[:, :12], second[:, :12], rtol=0, atol=0)
    assert not torch.equal(first[:, 12:], second[:, 12:])


def test_rope_depends_on_distance_alone(tiny_config):
    cos, sin = rope_tables(tiny_config, 40)
    torch.manual_seed(1)
    q, k = torch.randn(2, 1, 64)
    turned_q = apply_rope(q.expand(40, 1, 64), cos, sin)[:, 0]
    turned_k = apply_rope(k.expand(40, 1, 64), cos, sin)[:, 0]
    scores = turned_q @ turned_k.T
    torch.testing.assert_close(scores[30, 27], scores[12, 9], rtol=1e-4, atol=1e-4)
    assert abs(float(scores[30, 27] - scores[30, 20])) > 1e-3


def test_the_hook_sees_and_replaces_what_attention_reads(tiny_model):
    tokens = torch.arange(9)[None]
    seen = {}

    def look(layer, q, k, v):
        seen[layer] = (q, k, v)
        return k, v

    with torch.inference_mode():
        plain, looked = tiny_model(tokens), tiny_model(tokens, look)
        silenced = tiny_model(tokens, lambda _layer, _q, k, v: (k, torch.zeros_like(v)))
    torch.testing.assert_close(looked, plain, rtol=0, atol=0)
    assert not torch.equal(silenced, plain)
    assert [tuple(x.shape) for x in seen[1]] == [(1, 9, 4, 64), (1, 9, 2, 64), (1, 9, 2, 64)]


def test_a_skipped_layer_adds_nothing(tiny_model):
    tokens = torch.arange(9)[None]
    with torch.inference_mode():
        without = tiny_model.hidden(tokens, skip=[1])
        for name in ("attn_output", "ffn_down"):
            tiny_model.layers[name][1] = 0
        torch.testing.assert_close(without, tiny_model.hidden(tokens), rtol=0, atol=0)


def test_the_shape_of_the_cache(tiny_config):
    shape = model_shape(tiny_config)
    assert shape.kv_layers == (0, 1)
    assert shape.layers[0].n_embd_k == shape.layers[0].n_embd_v == 128


def test_an_untrained_model_already_tends_to_recall(tiny_config):
    readings = recall_readings(5, Split.TEST, n_pairs=16, n_tokens=64, n_prompts=4)
    seeded = recall_score(new_model(tiny_config, seed=3), readings)
    assert seeded.rate > 5 / 256, f"{seeded}: no better than guessing among 256 values"


def test_the_same_seed_gives_the_same_model(tiny_config):
    first, same, other = (new_model(tiny_config, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("order", [[], [1], [0, 0], [0, 1, 2], [0, 1, -1]])
def test_growing_needs_every_layer(tiny_model, order):
    with pytest.raises(UsageError, match=r"each of the 2 layers 0\.\.1"):
        grown(tiny_model, order, seed=1)


def test_growing_shares_each_output_among_copies(tiny_model):
    bigger = grown(tiny_model, [0, 0, 0, 1, 0, 1, 0, 1], seed=1)
    assert bigger.config == replace(tiny_model.config, n_layer=8)
    for name in ("attn_output", "ffn_down"):
        old, new = tiny_model.layers[name].detach(), bigger.layers[name].detach()
        for source, copies in enumerate((new[[0, 1, 2, 4, 6]], new[[3, 5, 7]])):
            torch.testing.assert_close(copies.sum(0), old[source])
            sizes = copies.norm(dim=(1, 2))
            if float(old[source].norm()) > 0:
                assert float(sizes.min()) > 0
                assert len(set(sizes.tolist())) == len(sizes)
    assert parameter_count(bigger) > parameter_count(tiny_model)


def test_growing_keeps_what_tied_copies_compute(tiny_model):
    """So training may go on with copies of their own where it stopped with tied ones."""
    tokens = torch.arange(9)[None]
    with torch.inference_mode():
        tied = tiny_model.hidden(
            tokens, layers=spread(dict(tiny_model.layers), [0, 0, 1, 0, 1], n_head=4, seed=1)
        )
        torch.testing.assert_close(
            grown(tiny_model, [0, 0, 1, 0, 1], seed=1).hidden(tokens), tied, rtol=0, atol=0
        )
        assert not torch.equal(grown(tiny_model, [0, 0, 1, 0, 1], seed=2).hidden(tokens), tied)


def test_one_copy_of_each_layer_is_the_model_itself(tiny_model):
    for name, values in grown(tiny_model, [0, 1], seed=1).state_dict().items():
        torch.testing.assert_close(values, tiny_model.state_dict()[name])


def test_tied_copies_train_the_layer_they_share(tiny_model):
    batch = draw_batch((1,), Split.TRAIN, {"stream": 1.0}, 1, Size(16, 4, 16))
    layers = spread(dict(tiny_model.layers), [0, 0, 1, 0, 1], n_head=4, seed=1)
    torch.autograd.backward(batch_loss(tiny_model, batch, 0.1, layers=layers).value)
    assert float(tiny_model.layers["attn_v"].grad.norm(dim=(1, 2)).min()) > 0
    assert tiny_model.layers["attn_v"].grad.shape == tiny_model.layers["attn_v"].shape


def test_the_reply_head_asks_with_the_keys_of_the_first(tiny_model):
    before = {name: stack.detach().clone() for name, stack in tiny_model.layers.items()}
    add_reply_head(tiny_model)
    after = {name: stack.detach() for name, stack in tiny_model.layers.items()}
    assert torch.equal(after["attn_q"][1, 64:128], before["attn_k"][1, :64])
    assert torch.equal(after["attn_q"][1, :64], before["attn_q"][1, :64])
    assert all(torch.equal(after[name][0], before[name][0]) for name in before)
    first, second = after["attn_output"][1, :, :64], after["attn_output"][1, :, 64:128]
    assert float(second.norm()) == pytest.approx(0.3 * float(first.norm()))


def test_key_outliers_change_what_is_stored_and_nothing_else(tiny_model):
    tokens = torch.arange(40)[None]
    stored: list[torch.Tensor] = []

    def keep(_layer, _q, k, v):
        stored.append(k[0].abs().amax((0, 1)))
        return k, v

    with torch.inference_mode():
        before = tiny_model(tokens, keep)
        add_key_outliers(tiny_model, seed=1, outliers=KeyOutliers(n_pairs=(2, 2), gains=(8.0,)))
        torch.testing.assert_close(tiny_model(tokens, keep), before, rtol=0, atol=1e-6)
    for plain, scaled in zip(stored[:2], stored[2:], strict=True):
        gained = (scaled / plain).round().reshape(2, 32)
        assert torch.equal(gained[0], gained[1]), "both channels of a RoPE pair"
        assert sorted(set(gained[0].tolist())) == [1.0, 8.0] and int((gained[0] == 8).sum()) == 2
        assert not bool((gained[0, :16] == 8).any()), "only pairs that turn slowly"


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 8), (2, 8, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(1)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_steps_of_the_optimizer_lower_the_loss(tiny_model):
    batch = draw_batch((1,), Split.TRAIN, {"stream": 1.0}, 4, Size(32, 4, 16))
    optimizer = Optimizer(tiny_model)
    losses = []
    for _ in range(6):
        loss = batch_loss(tiny_model, batch, other_weight=0.1).value
        losses.append(loss.item())
        torch.autograd.backward(loss)
        optimizer.step(0.02, 0.003)
    assert losses[-1] < losses[0]


def test_tokens_outside_answers_count_as_little_as_asked(tiny_model):
    batch = draw_batch((1,), Split.TRAIN, {"recall": 1.0}, 2, Size(32, 4))
    answers_only = batch_loss(tiny_model, batch, other_weight=0.0)
    all_alike = batch_loss(tiny_model, batch, other_weight=1.0)
    assert answers_only.value.item() != pytest.approx(all_alike.value.item())
    assert answers_only.right["recall"][1] == int(batch.answers.sum())


def test_right_answers_need_every_token():
    document = Document("recall", " babo=100 nifu=101", ((5, 9), (14, 18)))
    reading = read(document)
    assert reading.answers.tolist() == [True, False, True]
    assert reading.answer_ids.tolist() == [0, -1, 1]


def test_wilson_intervals():
    assert Share(0, 0).interval == (0.0, 1.0)
    low, high = Share(95, 100).interval
    assert (round(low, 4), round(high, 4)) == (0.8882, 0.9785)
    assert Share(10, 10).interval[1] == pytest.approx(1.0)


def test_checkpoints_come_back(tmp_path):
    arrays = {"a": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(7)}
    save_checkpoint(tmp_path / "c.npz", arrays, {"stage": 1, "name": "é"})
    loaded, meta = load_checkpoint(tmp_path / "c.npz")
    assert meta == {"stage": 1, "name": "é"}
    assert all(torch.equal(loaded[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_files_that_are_no_checkpoint_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"is not a training checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path):
    path = tmp_path / "c.npz"
    np.savez(path, allow_pickle=True, meta=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelFileError):
        load_checkpoint(path)


STAGE = Stage("first", 1, n_tokens=16, n_rows=2, n_steps=4, most_pairs=4, tasks={"stream": 1.0}, n_warmup=2)
PLAN = TrainingPlan(
    stages=(
        replace(STAGE, n_layer=2),
        replace(STAGE, name="tied", n_layer=2, order=[0, 1, 1, 1], tied=True, reply_head=True),
        replace(STAGE, name="second", n_layer=4, order=[0, 1, 1, 1], decay=True, key_outliers=True),
    ),
    model={"n_embd": 128, "n_ff": 16},
)


def test_a_stopped_run_ends_like_one_that_was_not(tmp_path):
    whole = train(PLAN, 1, tmp_path / "whole", log_every=1)
    for n_steps in (3, 3, 3, 4):
        asked = iter([*[False] * (n_steps - 1), True])
        train(PLAN, 1, tmp_path / "parts", log_every=1, should_stop=lambda asked=asked: next(asked, True))
    resumed = load_model(tmp_path / "parts/checkpoint.npz", PLAN)
    assert resumed.config.n_layer == 4
    for name, values in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], values, rtol=0, atol=0)
    logs = [(tmp_path / folder / "log.jsonl").read_text().splitlines() for folder in ("whole", "parts")]
    rows = [[{**json.loads(line), "seconds": 0} for line in lines] for lines in logs]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 12


def test_a_trained_model_can_be_trained_further(tmp_path, tiny_model):
    before = {name: values.clone() for name, values in tiny_model.state_dict().items()}
    plan = replace(PLAN, stages=PLAN.stages[:1], model={"n_embd": 128, "n_ff": 32})
    trained = train(plan, 1, tmp_path, start=tiny_model)
    moved = [
        float((values - before[name]).norm() / before[name].norm())
        for name, values in trained.state_dict().items()
        if float(before[name].norm())
    ]
    assert 0 < max(moved) < 0.5


def test_steps_leave_out_the_layers_they_are_told_to():
    stage = replace(STAGE, n_layer=8, skip=0.5)
    seen = [stage.skipped((1, step)) for step in range(200)]
    assert stage.skipped((1, 0)) == seen[0]
    assert {layer for layers in seen for layer in layers} == set(range(8))
    assert 3.5 < sum(map(len, seen)) / len(seen) < 4.5
    assert replace(stage, skip=0.0).skipped((1, 0)) == []


def test_another_seed_does_not_take_up_a_run(tmp_path):
    train(PLAN, 1, tmp_path, should_stop=lambda: True)
    with pytest.raises(UsageError, match="seed 1, not 2"):
        train(PLAN, 2, tmp_path)


def test_a_stage_ends_early_when_it_is_good_enough(tmp_path):
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], until=0.0), PLAN.stages[1]))
    train(plan, 1, tmp_path, log_every=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["tied"] * 4


def test_a_kill_leaves_a_run_that_goes_on(tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'model = { n_ff = 16 }\n[[stage]]\nname = "a"\nn_layer = 2\nn_tokens = 16\nn_rows = 1\n'
        "n_steps = 100000\nmost_pairs = 2\ntasks = { stream = 1.0 }\n"
    )
    code = (
        "import sys; from pathlib import Path; from reference_model.train import *;"
        "train(read_plan(Path(sys.argv[1])), 1, Path(sys.argv[2]), save_every_s=0, log_every=1)"
    )
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    process = subprocess.Popen([sys.executable, "-c", code, str(plan), str(folder)], env=environment)
    log = folder / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, meta = load_checkpoint(folder / "checkpoint.npz")
    assert meta["step"] >= 1
    asked = iter([False, True])
    train(read_plan(plan), 1, folder, log_every=1, should_stop=lambda: next(asked))
    rows = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert rows == list(range(1, len(rows) + 1))
    assert rows[-1] == meta["step"] + 2


@pytest.mark.parametrize("text", ["stage = 1", "[[stage]]\nname = 'x'", "not toml", "[[stage]]\nunknown = 1"])
def test_plans_that_do_not_read_are_refused(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match="is not a training plan"):
        read_plan(path)


def test_the_committed_plan_reads():
    plan = read_plan(ROOT / "eval/reference-model/plan.toml")
    assert plan.stages[-1].n_layer == 32
    config = plan.config(32)
    assert config.head_dim % 64 == 0
    assert config.n_head > config.n_head_kv > 1
