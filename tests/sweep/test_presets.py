"""Presets and units: what is written, what is refused, and that llama-server in router mode takes it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvquant.cli.main import kvquant
from kvquant.errors import LlamaError, UsageError
from kvquant.llama.router import Router
from kvquant.processes.background import BackgroundProgram, clean_environment
from kvquant.results.sweep import DecisionRow, Ending
from kvquant.shipped import reference_model
from kvquant.sweep.cell import run_cell
from kvquant.sweep.decide import decide
from kvquant.sweep.plan import EndpointPlan, SweepPlan, tasks
from kvquant.sweep.presets import (
    Draft,
    Preset,
    choose,
    draft_of,
    parse_presets,
    preset_of,
    preset_text,
    unit_text,
    with_draft,
)
from kvquant.sweep.survey import survey
from sweep.fake_router import fake_router
from sweep.small_sweeps import BOARD, MEASURE, cell, journal_of, probe

MODEL = reference_model()
PRESET = Preset("m", MODEL, "*:k=q8_0/v=q4_0", 2, "4-7", "on", 2048)


def test_a_preset_has_what_the_sweep_chose() -> None:
    text = preset_text([PRESET, replace(PRESET, name="n", n_threads=None, cores=None)])
    found = parse_presets(text)
    assert found["m"] == {
        "model": str(MODEL), "kv-layers": "*:k=q8_0/v=q4_0", "ctx-size": "2048", "parallel": "1",
        "flash-attn": "on", "threads": "2", "cpu-mask": "f0", "cpu-strict": "1",
    }  # fmt: skip
    assert not {"threads", "cpu-mask"} & set(found["n"])


def test_a_draft_has_its_own_types() -> None:
    draft = draft_of(MODEL, "k8v4")
    assert draft == Draft(MODEL, "q8_0", "q4_0")
    (one,) = with_draft([replace(PRESET, model=Path("other.gguf"))], draft)
    assert one.options()["cache-type-k-draft"] == "q8_0"
    assert with_draft([PRESET], draft) == [PRESET]
    with pytest.raises(UsageError, match="one type for K and one for V of a draft model"):
        draft_of(MODEL, "0-10:q8_0,rest:q4_0")


@pytest.mark.parametrize("name", ["a;b.gguf", "a#b.gguf", "a\nb.gguf"])
def test_a_path_that_the_format_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be in a preset file"):
        preset_text([replace(PRESET, model=Path(name))])
    with pytest.raises(UsageError, match="two models would be called 'm'"):
        preset_text([PRESET, PRESET])


def rows() -> list[DecisionRow]:
    records = (cell("*:f16", 10.0), cell("*:q8_0", 8.0), probe("*:q8_0", 4096), probe("*:f16", 1024))
    return list(decide(journal_of(*records), {}).rows)


def test_what_words_mean() -> None:
    result = decide(journal_of(cell("*:f16", 10.0), cell("*:q8_0", 8.0), probe("*:q8_0", 4096)), {})
    assert [row.label for row in choose(result, ["best"])] == ["q8_0"]
    assert [row.label for row in choose(result, ["m=f16", "best"])] == ["f16"]
    for word in ("m=q4_0", "x=f16", "fastest"):
        with pytest.raises(UsageError, match="give best or MODEL=POLICY; measured: m=f16, m=q8_0"):
            choose(result, [word])
    with pytest.raises(UsageError, match="has measured no model yet"):
        choose(replace(result, rows=()), ["best"])


def test_the_context_is_the_stable_one() -> None:
    row = replace(next(row for row in rows() if row.label == "q8_0"), model=str(MODEL), cpus="6")
    preset = preset_of(row, [BOARD])
    assert (preset.n_ctx, preset.cores, preset.policy) == (4096, "6", "*:q8_0")
    assert preset_of(replace(row, stable_ctx=None), [BOARD]).n_ctx == 512


def test_a_unit_keeps_the_service_on_its_cores_and_quotes_what_it_must() -> None:
    text = unit_text(Path("/opt/a b%/bin"), Path("/etc/models.ini"), [PRESET], 8081)
    assert '"/opt/a b%%/bin/llama-server" --models-preset /etc/models.ini --models-max 1' in text
    assert "CPUAffinity=4 5 6 7\n" in text and "--port 8081" in text
    assert "CPUAffinity" not in unit_text(Path("/x"), Path("/y"), [PRESET, replace(PRESET, cores=None)], 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--apply", "best"], "go together"),
        (["--preset-file", "x.ini"], "go together"),
        (["--unit", "x"], "belong to --apply"),
        (["--draft-policy", "q8_0"], "--draft-policy needs --draft"),
    ],
)
def test_options_that_only_mean_something_together(arguments: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        CliRunner().invoke(kvquant, ["sweep", "--out", str(tmp_path), *arguments], catch_exceptions=False)


# ---- a router ----


def test_loading_and_unloading() -> None:
    with fake_router() as (server, url):
        router = Router(url)
        assert [model.state for model in router.models()] == ["unloaded", "loaded", "unloaded"]
        router.load("a")
        router.load("a")
        router.unload("b")
        assert server.asked == ["/models/load a", "/models/unload b"]
        with pytest.raises(LlamaError, match="the router could not load broken"):
            router.load("broken")
        with pytest.raises(LlamaError, match="has no model 'c'; it has: a, b, broken"):
            router.load("c")
        with pytest.raises(LlamaError, match="HTTP status 401: Invalid API Key"):
            Router(url, "wrong").unload("a")
        server.plain = True
        with pytest.raises(LlamaError, match="is not a router"):
            router.models()
    with pytest.raises(LlamaError, match="cannot be reached"):
        Router(url).models()


def test_the_router_command() -> None:
    with fake_router() as (server, url):
        runner = CliRunner()
        listed = runner.invoke(kvquant, ["router", "list", f"{url}/v1"], catch_exceptions=False)
        assert listed.stdout.splitlines()[1].split() == ["a", "unloaded"]
        done = runner.invoke(kvquant, ["router", "load", url, "a"], catch_exceptions=False)
        assert done.stdout == "a: loaded\n" and server.states["a"] == "loaded"
        with pytest.raises(UsageError, match="the variable NO_SUCH is not set"):
            runner.invoke(
                kvquant, ["router", "list", url, "--api-key-env", "NO_SUCH"], catch_exceptions=False
            )


# ---- the patched server ----

needs_server = pytest.mark.skipif(
    not os.environ.get("KVQUANT_LLAMA_BIN"), reason="KVQUANT_LLAMA_BIN names no patched build"
)


@contextmanager
def patched_router(presets: str, folder: Path) -> Iterator[tuple[BackgroundProgram, str]]:
    """The patched server in router mode with these presets, and its address without /v1."""
    programs = Path(os.environ["KVQUANT_LLAMA_BIN"])
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    written = folder / "models.ini"
    written.write_text(presets)
    argv = [str(programs / "llama-server"), "--models-preset", str(written), "--models-max", "1"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--cache-ram", "0", "--verbosity", "4"]
    with BackgroundProgram(argv, folder / "log", env=clean_environment()) as program:
        deadline = time.monotonic() + 60
        while "listening on" not in program.log_text():
            assert program.exit_status() is None and time.monotonic() < deadline, program.log_text()
            time.sleep(0.1)
        yield program, f"http://127.0.0.1:{port}"


@needs_server
def test_the_patched_server_takes_the_presets(tmp_path: Path) -> None:
    first = replace(PRESET, name="first", n_threads=1, cores="0", n_ctx=256)
    second = replace(first, name="second", policy="*:q8_0", draft=Draft(MODEL, "q4_0", "q4_0"))
    with patched_router(preset_text([first, second]), tmp_path) as (program, url):
        router = Router(url)
        assert [model.state for model in router.models()] == ["unloaded", "unloaded"]
        router.load("first")
        assert "K (q8_0)" in program.log_text() and "V (q4_0)" in program.log_text()
        router.load("second")
        states = {model.name: model.state for model in router.models()}
        assert states == {"first": "unloaded", "second": "loaded"}
        log = program.log_text()
        # The model's own policy, then its draft's types.
        assert "kv_layers             = *:q8_0" in log and "K (q4_0)" in log
        router.unload("second")
        assert {model.state for model in router.models()} == {"unloaded"}


@needs_server
def test_cells_of_a_router_load_their_model_and_unload_it(tmp_path: Path) -> None:
    presets = preset_text([replace(PRESET, name="m", n_threads=1, cores=None, n_ctx=512)])
    with patched_router(presets, tmp_path) as (program, url):
        entries = tuple(
            EndpointPlan(f"{name} of a router", f"{url}/v1", model=name, router=True) for name in ("m", "n")
        )
        plan = SweepPlan(ctx=(512,), rounds=1, measure=MEASURE, endpoint=entries)
        host = survey(plan, None)
        good, unknown = [run_cell(plan, task, host) for task in tasks(plan)]
        states = {model.name: model.state for model in Router(url).models()}
        log = program.log_text()
    assert (good.ending, good.detail) == (Ending.DONE, "")
    assert [point.depth for point in good.points] == [0, 64]
    assert all(point.decode and point.ttft_seconds for point in good.points)
    assert "K (q8_0)" in log and "V (q4_0)" in log
    assert states == {"m": "unloaded"}
    assert unknown.ending is Ending.FAILED and "the router has no model 'n'; it has: m" in unknown.detail
