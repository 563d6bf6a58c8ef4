"""The page and the presets say what the committed searches say, and these are of one piece."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import carry_over
from kvquant.documents import to_document
from kvquant.model.shape import LayerShape, ModelShape
from kvquant.policy import parse_policy
from kvquant.policy.presets import measured_presets
from kvquant.results.search import SearchResult
from kvquant.tables import small
from search.true_meter import found
from write_search_records import ALL, PAGE, all_records, best_rival, page, presets, records

FOUND = records()


def test_there_are_records_and_the_pages_and_the_presets_are_theirs() -> None:
    assert FOUND
    assert ALL.read_text(encoding="utf-8") == all_records(), "run tools/write_search_records.py"
    assert PAGE.read_text(encoding="utf-8") == page(), "run tools/write_search_records.py"
    assert to_document(list(measured_presets())) == json.loads(json.dumps(to_document(presets())))


@pytest.mark.parametrize("name", FOUND)
def test_a_record_is_of_one_piece(name: str) -> None:
    check_record(FOUND[name])


def check_record(result: SearchResult) -> None:
    """The policy is within its bytes, the comparison at equal bytes, and the verdict that of the interval."""
    assert str(parse_policy(result.policy)) == result.policy
    assert result.budget_bytes is None or result.kv_bytes <= result.budget_bytes
    assert result.of_f16 == pytest.approx(result.kv_bytes / result.kv_bytes_f16)
    assert result.kl_held_out is not None and result.kl_held_out.interval is not None
    for rival in result.rivals:
        assert result.budget_bytes is None or rival.kv_bytes <= result.budget_bytes
        assert rival.kl_held_out is not None and rival.kl_held_out.n_tokens == result.kl_held_out.n_tokens
    against = result.against
    assert against is not None and against.interval is not None
    verdict = "better" if against.interval.high < 0 else "worse" if against.interval.low > 0 else "level"
    assert against.verdict == verdict
    if result.simple is None:
        best = min(rival.kl_held_out.mean for rival in result.rivals if rival.kl_held_out is not None)
        assert result.kl_held_out.mean - best == pytest.approx(against.difference, rel=1e-5, abs=1e-9)


def test_what_readme_says_of_searches() -> None:
    readme = " ".join((PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    found = [FOUND[f"qwen2.5-coder-0.5b-{budget}x.json"] for budget in ("0.25", "0.30")]
    assert [f"{result.of_f16:.2f}" for result in found] == ["0.25", "0.30"]
    lost = [small(result.kl_held_out.mean) for result in found if result.kl_held_out is not None]
    rivals = [rival.kl_held_out for rival in map(best_rival, found) if rival is not None]
    best = [small(kl.mean) for kl in rivals if kl is not None]
    said = "lose {} at 0.25x and {} at 0.30x, the best rules in these bytes {} and {}.".format(*lost, *best)
    assert said in readme
    verdicts = Counter(
        "rule" if result.simple else result.against.verdict
        for result in FOUND.values()
        if result.against is not None
    )
    assert set(verdicts) == {"better", "level"}
    better, level = verdicts["better"], verdicts["level"]
    said = f"{better} beat every rule of thumb on unseen text, {level} are level with the best"
    assert f"Of {len(FOUND)} [searches](docs/search.md) {said}" in readme


def test_what_carried_over_is_on_the_page_and_of_committed_searches() -> None:
    assert PAGE.read_text(encoding="utf-8") == carry_over.page(), "run tools/carry_over.py page"
    found = carry_over.carried()
    assert found
    for one in found:
        assert one.record in FOUND and one.kl.n_tokens == one.rival_kl.n_tokens
        assert one.kl.mean - one.rival_kl.mean == pytest.approx(one.difference, rel=1e-4, abs=1e-9)
        if one.place != "sibling":
            assert one.policy == FOUND[one.record].policy


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_stretched_policy_keeps_its_shares_and_its_order(n: int, n_other: int, data: st.DataObject) -> None:
    types = data.draw(st.lists(st.sampled_from(["q8_0", "q4_0"]), min_size=n, max_size=n))
    policy = str(parse_policy(",".join(f"{layer}:{name}" for layer, name in enumerate(types))))
    shape, other = (ModelShape("m", "llama", 0, (LayerShape(4, 2, 64, 64),) * size) for size in (n, n_other))
    found = parse_policy(carry_over.stretched(policy, shape, other)).resolve(other)
    assert [entry.k_type for entry in found.layers] == [types[i * n // n_other] for i in range(n_other)]
    if n == n_other:
        assert found == parse_policy(policy).resolve(shape)


def test_the_check_notices_a_verdict_that_is_not_the_intervals() -> None:
    result = found()
    check_record(result)
    assert result.against is not None
    with pytest.raises(AssertionError):
        check_record(replace(result, against=replace(result.against, verdict="worse")))
