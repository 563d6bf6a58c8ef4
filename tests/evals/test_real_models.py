"""What shows the records on real models says what they say, and every policy in it is one of the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

import real_models
import real_models_page as pages
from kvquant.policy import parse_policy


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
    assert pages.FIGURE.read_text() == pages.figure(found)


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
    for write in (pages.page, pages.table, pages.figure, pages.first_result):
        assert write(changed) != write([(setting, result)])


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
