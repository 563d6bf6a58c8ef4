"""Context probes: the search, the texts, and the record of a server that stands in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.results.sweep import Ending, ProbeRecord
from kvquant.sweep.plan import tasks
from kvquant.sweep.probe import longest, needles, run_probe
from kvquant.sweep.survey import survey
from sweep.small_sweeps import PROBE, fake_programs, small_plan


@given(st.integers(0, 5000), st.integers(1, 40), st.integers(1, 40), st.integers(1, 300))
def test_the_search_finds_the_longest_within_a_step(last: int, start: int, factor: int, step: int) -> None:
    limit = start * factor
    tried: list[int] = []

    def does(n: int) -> bool:
        tried.append(n)
        return n <= last

    found = longest(does, start, limit, step)
    assert all(start <= n <= limit for n in tried)
    assert len(tried) == len(set(tried))
    if last < start:
        assert found is None
    else:
        assert found is not None and found <= min(last, limit)
        assert found == limit or min(last, limit) - found <= step + max(0, step - 1)


def test_a_wrong_search_would_be_seen() -> None:
    """One that stops after doubling leaves more than a step."""
    good = 256
    while good * 2 <= 1900:
        good *= 2
    assert 1900 - good > 2 * 64
    assert longest(lambda n: n <= 1900, 256, 4096, 64) == 1856


@pytest.mark.parametrize("trial", range(4))
def test_facts_stand_at_the_start_in_the_middle_and_at_the_end(trial: int) -> None:
    found = needles(600, trial)
    ends = [end for _, end in found.questions]
    assert len(set(ends)) == 3
    places = [found.text.index(f"{end}.") / len(found.text) for end in ends]
    assert places[0] < 0.03 and 0.4 < places[1] < 0.6 and places[2] > 0.95
    assert all(found.text.count(end) == 1 for end in ends)
    assert found == needles(600, trial) and found.text != needles(600, trial + 1).text


def probe(policy: str, folder: Path) -> ProbeRecord:
    plan = small_plan(policies=(policy,), probe=PROBE)
    return run_probe(plan, tasks(plan)[-1], survey(plan, fake_programs(folder)))


def test_a_model_that_always_answers(tmp_path: Path) -> None:
    record = probe("q8_0", tmp_path)
    assert (record.loaded, record.answered, record.stable) == (2048, 2048, 2048)
    assert (record.ending, record.detail) == (Ending.DONE, "")
    trials = [(tried.n_ctx, tried.trial) for tried in record.attempts if tried.part == "answer"]
    assert trials == [(256, 0), (512, 0), (1024, 0), (2048, 0), (2048, 1)]
    assert all(tried.n_prompt and tried.n_prompt <= tried.n_ctx - 64 for tried in record.attempts[4:])
    assert record.predicted and record.predicted > record.loaded
    assert record.need_n_bytes and record.trained


def test_a_model_that_loses_the_thread(tmp_path: Path) -> None:
    record = probe("iq4_nl", tmp_path)
    # It is right up to 900 tokens of prompt, which a context of 768 holds and one of 1,024 does not.
    assert (record.loaded, record.answered, record.stable) == (2048, 768, 768)
    assert any("at the start: 'nothing', expected" in tried.detail for tried in record.attempts)


def test_a_server_that_crashes_when_asked(tmp_path: Path) -> None:
    record = probe("q4_0", tmp_path)
    assert (record.loaded, record.answered, record.stable) == (2048, None, None)
    assert "crashed: llama-server ended with status 134" in record.detail


def test_a_server_that_does_not_load(tmp_path: Path) -> None:
    record = probe("q5_1", tmp_path)
    assert (record.loaded, record.answered) == (None, None)
    assert "failed to allocate buffer" in record.detail


def test_the_guard_is_asked_before_a_server_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_STARTS", str(tmp_path / "starts"))
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemAvailable: 36000 kB\n")
    plan = small_plan(policies=("f16",), threads=(), probe=PROBE, reserve="1MiB")
    record = run_probe(plan, tasks(plan)[-1], survey(plan, fake_programs(tmp_path), root=root))
    assert record.loaded is not None and record.predicted is not None
    # What loads is what the prediction allows, as far as the steps of both go.
    assert record.loaded <= record.predicted < record.loaded + 256
    contexts = [
        line.split("--ctx-size ")[1].split()[0] for line in (tmp_path / "starts").read_text().splitlines()
    ]
    assert max(map(int, contexts)) <= record.loaded
    assert any("are left alone" in tried.detail for tried in record.attempts)
