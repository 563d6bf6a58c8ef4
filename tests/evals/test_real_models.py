"""What shows the records on real models says what they say, and every policy in it is one of the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

import real_models
import real_models_page as pages
import real_speed
import real_tasks
from kvquant.assets.registry import models
from kvquant.policy import parse_policy
from kvquant.results.validation import read_result


@pytest.fixture(scope="module")
def found() -> pages.Found:
    records = real_models.records()
    assert records, "there is no record"
    return records


def test_the_page_is_what_the_records_say(found: pages.Found) -> None:
    assert pages.PAGE.read_text() == pages.page(found)


def test_readmes_table_and_first_result_are_what_the_records_say(found: pages.Found) -> None:
    text = pages.README.read_text()
    assert pages.table(found) in text and pages.first_result(found) in text
    assert pages.readme(found, text) == text


def test_readmes_first_result_is_what_its_command_prints(found: pages.Found) -> None:
    """The command of README has the model, the text, the tokens and the policies of the record."""
    model, names = pages.FIRST
    result = pages.at(found, 512, "prefill")[model]
    policies = " ".join(f"--policy {name}" for name in names)
    typed = f"kvquant divergence --model {model} --text prose --tokens {result.n_tokens} {policies}\n"
    assert typed in pages.README.read_text()


def test_readme_is_short() -> None:
    assert len(pages.README.read_text().splitlines()) < 150


def test_the_figure_is_what_the_records_say(found: pages.Found) -> None:
    assert pages.FIGURE.read_text() == pages.figure(found, pages.read_pairs(found))


def test_every_record_is_of_the_plan(found: pages.Found) -> None:
    names = {f"{setting.name}.json" for setting in real_models.PLAN}
    assert {path.name for path in real_models.RECORDS.iterdir()} <= names
    for setting, result in found:
        assert (result.start.path, result.start.n_ctx) == (setting.path, setting.n_ctx)
        assert result.n_tokens == result.start.n_tokens


def test_a_changed_record_shows(found: pages.Found) -> None:
    setting, result = next(
        one for one in found if (one[0].model, one[0].n_ctx, one[0].path) == (pages.FIRST[0], 512, "prefill")
    )
    more = tuple(
        replace(policy, kl_mean=2 * (policy.kl_mean or 0), kv_bytes=policy.kv_bytes + 1024)
        for policy in result.policies
    )
    changed = [(setting, replace(result, policies=more))]
    figure = partial(pages.figure, pairs={})
    for write in (pages.page, pages.table, figure, pages.first_result):
        assert write(changed) != write([(setting, result)])


def test_transforms_are_drawn_beside_what_was_measured_on_the_same_text(found: pages.Found) -> None:
    sha256 = pages.at(found, 512, "prefill")["smollm2-135m"].start.model.sha256
    pairs = [pair for pair in pages.read_pairs(found)[sha256] if pair.kind == "transform"]
    assert len(pairs) >= 3
    for pair in pairs:
        assert pair.before[0] == pair.after[0], "a transform costs no bytes of the cache"
    larger = pages.at(found, 512, "prefill")["qwen2.5-coder-1.5b"]
    shown = {policy.of_f16 for policy in larger.policies}
    pairs = [pair for pair in pages.read_pairs(found)[larger.start.model.sha256] if pair.kind == "transform"]
    assert len(pairs) >= 3 and {pair.before[0] for pair in pairs} <= shown, "no small types in this figure"
    assert "with a transform of K" in pages.FIGURE.read_text()
    assert "with a transform of K" not in pages.figure(found, {})


def test_a_searched_policy_is_drawn_with_the_rule_it_was_held_against(
    found: pages.Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((pages.SEARCHES / "reference-0.35x.json").read_text())
    sha256 = pages.at(found, 512, "prefill")["gemma3-270m"].start.model.sha256
    record["start"]["model"]["sha256"] = sha256
    (tmp_path / "a.json").write_text(json.dumps(record))
    monkeypatch.setattr(pages, "SEARCHES", tmp_path)
    monkeypatch.setattr(pages, "TRANSFORMS", tmp_path / "none")
    (pair,) = pages.read_pairs(found)[sha256]
    assert pair.after == (record["of_f16"], record["kl_held_out"]["mean"])
    rival = next(one for one in record["rivals"] if one["name"] == record["against"]["rival"])
    assert pair.before == (rival["of_f16"], rival["kl_held_out"]["mean"])
    assert "searched policy" in pages.figure(found, {sha256: [pair]})


@pytest.mark.parametrize("n_layer", [18, 24, 28, 30])
def test_the_policies_of_the_plan(n_layer: int) -> None:
    """Each names every layer once, so that its share of float16 is what its name says."""
    for text in real_models.policies_for(n_layer).values():
        covered = [0] * n_layer
        for part in text.split(","):
            layers = part.partition(":")[0]
            first, _, last = layers.partition("-")
            chosen = range(n_layer) if layers == "*" else range(int(first), int(last or first) + 1)
            for layer in chosen:
                covered[layer] += 1
        assert set(covered) == {1}, text
        parse_policy(text)


def test_the_settings_of_the_plan_are_distinct_and_name_policies() -> None:
    names = [setting.name for setting in real_models.PLAN]
    assert len(set(names)) == len(names)
    for setting in real_models.PLAN:
        assert {*setting.policies, *setting.unrotated} <= set(real_models.policies_for(24))


@pytest.mark.parametrize(("part", "folder"), [(real_tasks, "tasks"), (real_speed, "speed")])
def test_validations_on_the_page_are_those_of_the_records(part: ModuleType, folder: str) -> None:
    text = pages.PAGE.read_text()
    found = part.records()
    assert found
    for name, result in found.items():
        assert f"({folder}/{name}.json)" in text
        assert real_tasks.model_name(result) in models()


def test_the_table_of_tasks_has_a_row_for_each_policy_and_the_repeat() -> None:
    result = read_result(real_models.ROOT / "eval/results/standard/results.json")
    rows = {row[0]: row for row in real_tasks.table(result).rows}
    assert next(iter(rows)) == "f16, repeated" and len(rows) == len(result.policies)
    q8_0 = next(policy for policy in result.policies if policy.policy == "*:q8_0")
    assert q8_0.total is not None
    assert rows["q8_0"][4:6] == (str(q8_0.total.n_lost), str(q8_0.total.n_gained))
    more = replace(q8_0, tasks=tuple(replace(row, n_lost=row.n_lost + 1) for row in q8_0.tasks))
    others = tuple(policy for policy in result.policies if policy is not q8_0)
    changed = real_tasks.table(replace(result, policies=(*others, more)))
    assert {row[0]: row for row in changed.rows}["q8_0"] != rows["q8_0"]


def test_the_table_of_speeds_has_every_policy_phase_and_depth() -> None:
    result = read_result(real_models.ROOT / "eval/results/standard/results.json")
    shown = real_speed.table(result)
    rows = {row[0]: row[1:] for row in shown.rows}
    for policy in result.policies:
        cells = rows[real_tasks.policy_name(policy)]
        points = {f"{one.phase} at {one.depth:,}": one for one in policy.speed}
        assert list(points) == list(shown.head[1:]) and len(cells) == len(points)
        for cell, point in zip(cells, points.values(), strict=True):
            value = point.tokens_per_second if policy.label == result.baseline else point.ratio
            assert value is not None
            assert float(cell.split("/")[0].split("x")[0]) == pytest.approx(value, rel=0.01)


def test_what_readme_says_of_human_eval() -> None:
    found = []
    for name in ("qwen2.5-coder-0.5b.human-eval", "qwen2.5-coder-1.5b.human-eval-320"):
        policies = real_tasks.records()[name].policies
        calibrated, plain = (
            next(
                one.total
                for one in policies
                if one.policy.startswith("*:q4_0") and bool(one.transform) is has
            )
            for has in (True, False)
        )
        assert plain is not None and calibrated is not None and plain.n == calibrated.n
        with_it, without = (row.n_both + row.n_gained for row in (calibrated, plain))
        found.append((plain.n, with_it, without, plain.n_right))
    (n, with_it, without, f16), larger = found
    said = f"HumanEval: [{with_it} of {n} right with it, {without} without, {f16} in float16]"
    readme = " ".join(pages.README.read_text().split())
    assert said in readme
    assert f"; 1.5B: {larger[1]} of {larger[0]}, {larger[2]}, {larger[3]}." in readme
