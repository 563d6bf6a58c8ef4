"""Cells with a server that stands in for llama-server: what is recorded, and how each failure ends."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from evals.fake_endpoint import Sent, fake_endpoint
from kvquant.errors import KVQuantError, UsageError
from kvquant.results.sweep import Buffers, CellRecord, Ending
from kvquant.sweep.cell import cpu_share, run_cell
from kvquant.sweep.plan import EndpointPlan, SweepPlan, tasks
from kvquant.sweep.survey import check_runnable, predicted_context, survey
from sweep.small_sweeps import MEASURE, MODEL, fake_programs, small_plan


def run(plan: SweepPlan, folder: Path) -> list[CellRecord]:
    host = survey(plan, fake_programs(folder))
    return [run_cell(plan, task, host) for task in tasks(plan) if task.kind == "cell"]


def test_a_cell_records_speed_memory_and_conditions(tmp_path: Path) -> None:
    (record,) = run(small_plan(policies=("q8_0",)), tmp_path)
    assert (record.ending, record.detail) == (Ending.DONE, "")
    assert [(point.depth, point.n_prompt, point.n_gen) for point in record.points] == [
        (0, 64, 5),
        (64, 64, 5),
    ]
    # The fake takes 2 ms a token of the prompt and 10 ms for each after the first.
    assert [(point.prefill, point.decode) for point in record.points] == [(500.0, 100.0), (500.0, 100.0)]
    assert all(point.ttft_seconds is not None and point.ttft_seconds > 0 for point in record.points)
    assert all(point.cpu_share is None or 0 <= point.cpu_share < 2 for point in record.points)
    mib = 2**20
    assert record.buffers == Buffers(10 * mib, 4 * mib, None, 3 * mib, mib // 2)
    assert record.buffers is not None and record.buffers.total == 17.5 * mib
    assert record.warmup_tokens == 8
    assert record.peak_rss_bytes is not None and record.peak_rss_bytes > 2**20
    assert record.watched is not None and record.watched.n_samples >= 1
    assert record.before is not None and record.before.available_n_bytes
    assert record.load_seconds is not None and record.wall_seconds >= record.load_seconds


def test_a_share_of_the_processor_is_told_only_where_clock_ticks_do_not_decide() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    assert cpu_share(tick, tick / 4, 1) is None  # else 4 processors' worth of one thread
    assert cpu_share(3 * tick, 19 * tick, 1) is None
    assert cpu_share(10.0, 10.0, 2) == 0.5


@pytest.mark.parametrize(
    ("policy", "ending", "detail"),
    [
        ("q4_0", Ending.CRASHED, "llama-server ended with status 134: GGML_ASSERT(n > 0) failed"),
        ("q5_1", Ending.NO_MEMORY, "failed to allocate buffer"),
        ("q5_0", Ending.TIMED_OUT, "no complete answer within 1 s"),
    ],
)
def test_a_failure_is_a_result(policy: str, ending: Ending, detail: str, tmp_path: Path) -> None:
    plan = small_plan(policies=(policy,), measure=replace(MEASURE, timeout_seconds=1.0))
    (record,) = run(plan, tmp_path)
    assert record.ending is ending
    assert detail in record.detail
    assert record.points == ()


def test_what_llama_cpp_refuses_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_STARTS", str(tmp_path / "starts"))
    (f16, q8_0) = run(small_plan(flash_attn=("off",)), tmp_path)
    assert (f16.ending, q8_0.ending) == (Ending.DONE, Ending.REFUSED)
    assert "only with flash attention" in q8_0.detail
    (start,) = (tmp_path / "starts").read_text().splitlines()
    assert "--flash-attn off" in start


def test_more_threads_than_cores_is_refused(tmp_path: Path) -> None:
    (record,) = run(small_plan(policies=("f16",), threads=(2,), cpus=("0",)), tmp_path)
    assert (record.ending, record.detail) == (Ending.REFUSED, "2 threads on 1 cores (0)")


def test_a_server_is_bound_to_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_STARTS", str(tmp_path / "starts"))
    core = min(os.sched_getaffinity(0))
    (record,) = run(small_plan(policies=("f16",), cpus=(str(core),)), tmp_path)
    assert (record.ending, record.cores) == (Ending.DONE, str(core))
    assert (tmp_path / "starts").read_text().rstrip().endswith(f"[{core}]")


def test_the_guard_ends_a_server_that_takes_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A machine on which memory runs out as soon as the server runs.
    free = iter([2**34, 2**34, 2**34])
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)

    def meminfo(n_bytes: int) -> None:
        (root / "proc/meminfo").write_text(f"MemAvailable: {n_bytes // 1024} kB\n")

    meminfo(next(free))
    plan = small_plan(policies=("q5_0",), reserve="1GiB", cpus=("all",), threads=())
    host = survey(plan, fake_programs(tmp_path), root=root)
    import kvquant.sweep.conditions as conditions

    real = conditions.read_machine

    def shrinking(at: Path) -> object:
        if at == root:
            meminfo(next(free, 2**20))
        return real(at)

    monkeypatch.setattr(conditions, "read_machine", shrinking)
    record = run_cell(plan, tasks(plan)[0], host)
    assert record.ending is Ending.NO_MEMORY
    assert "the guard ended it" in record.detail
    assert record.watched is not None and record.watched.min_available_n_bytes == 2**20


def test_too_little_memory_for_any_cell_is_said_before(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemAvailable: 600000 kB\n")
    plan = small_plan(reserve="580MiB")
    host = survey(plan, fake_programs(tmp_path), root=root)
    says = "no cell fits: the smallest needs 1[0-9.]+ MiB, 585.94 MiB are free"
    with pytest.raises(KVQuantError, match=says):
        check_runnable(plan, host)
    record = run_cell(plan, tasks(plan)[0], host)
    assert record.ending is Ending.NO_MEMORY and "are left alone" in record.detail
    check_runnable(small_plan(reserve="128MiB"), host)


def test_a_plan_of_which_nothing_can_run_is_refused(tmp_path: Path) -> None:
    plan = small_plan(policies=("q8_0",), flash_attn=("off",))
    with pytest.raises(UsageError, match="no cell of the plan can run; the first: layer 0: V is q8_0"):
        check_runnable(plan, survey(plan, fake_programs(tmp_path)))


def test_prediction_is_that_of_the_memory_command(tmp_path: Path) -> None:
    plan = small_plan()
    host = survey(plan, fake_programs(tmp_path))
    setting, size = tasks(plan)[0].setting, host.models[MODEL].n_bytes
    first, second = (predicted_context(host, setting, size + n * 2**26) for n in (1, 2))
    assert first and second and 0 <= second - 2 * first < 512
    assert predicted_context(host, setting, size) == 0


def test_a_stock_server_is_refused(tmp_path: Path) -> None:
    programs = fake_programs(tmp_path)
    (programs / "llama-server").write_text("#!/bin/sh\necho usage\n")
    with pytest.raises(KVQuantError, match="takes no --kv-layers"):
        survey(small_plan(), programs)


STREAM = b"".join(
    b"data: " + part + b"\n\n"
    for part in (
        b'{"choices":[{"delta":{"role":"assistant"}}]}',
        b'{"choices":[{"delta":{"content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"b"}}]}',
        b'{"choices":[],"usage":{"prompt_tokens":64,"completion_tokens":2}}',
        b"[DONE]",
    )
)


def endpoint_plan(url: str) -> SweepPlan:
    entry = EndpointPlan("npu", url)
    return SweepPlan(models=(), ctx=(512,), rounds=1, measure=MEASURE, endpoint=(entry,))


def test_an_endpoint_is_timed_by_the_client() -> None:
    with fake_endpoint(Sent(200, STREAM)) as server:
        plan = endpoint_plan(server.url)
        (record,) = [run_cell(plan, task, survey(plan, None)) for task in tasks(plan)]
    assert record.ending is Ending.DONE
    assert record.setting.policy is None and record.setting.base_url == server.url
    first, deep = record.points
    assert first.prefill and first.decode and first.ttft_seconds
    assert deep.depth == 64 and deep.prefill is None and deep.ttft_seconds
    assert record.buffers is None and record.peak_rss_bytes is None


@pytest.mark.parametrize(
    ("behaviour", "ending"),
    [
        (Sent(500, {"error": {"message": "broken"}}), Ending.FAILED),
        (Sent(200, b"data: {oh\n\n"), Ending.FAILED),
        (Sent(200, b'data: {"error": {"message": "too long"}}\n\n'), Ending.FAILED),
        ("hang", Ending.TIMED_OUT),
    ],
)
def test_an_endpoint_that_fails_is_a_result(behaviour: Sent | str, ending: Ending) -> None:
    with fake_endpoint(behaviour) as server:
        plan = replace(endpoint_plan(server.url), measure=replace(MEASURE, timeout_seconds=0.5))
        (record,) = [run_cell(plan, task, survey(plan, None)) for task in tasks(plan)]
    assert record.ending is ending
    assert record.detail
