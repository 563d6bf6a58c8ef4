"""``kvquant llama`` as a user meets it: fetch, build and serve, with their output and exit codes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from kvquant.cli import llama as command
from kvquant.errors import CheckFailed, KVQuantError, ModelFileError, PolicyError, UsageError
from kvquant.llama.build import PROGRAMS
from llama.small_project import make_project
from llama.source_archives import pin_for, write_sdist
from write_random_gguf import RandomModel, write_random_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))


def invoke(*argv: str | Path) -> Result:
    return CliRunner().invoke(command.llama, [str(arg) for arg in argv])


def test_fetch_prints_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = write_sdist(tmp_path / "sd")
    monkeypatch.setattr(command, "load_pin", lambda _: pin_for(sdist))
    done = invoke("fetch", "--archive", sdist, "--dest", tmp_path / "tree")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'tree'}\n")
    assert isinstance(invoke("fetch", "--archive", sdist, "--from", "git").exception, UsageError)
    assert isinstance(invoke("fetch", "--sdist-version", "1.0").exception, UsageError)


def test_build_prints_the_folder_and_says_what_it_found(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source")
    argv = (
        "build",
        "--source",
        source,
        "--stock",
        "--program",
        "llama-server",
        "--build-dir",
        tmp_path / "b",
    )
    done = invoke(*argv)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'b/bin'}\n")
    assert "llama-server takes --kv-layers: no" in done.stderr
    assert "system_info: AVX2=1 DOTPROD=1 FP16_VA=0" in done.stderr
    again = invoke(*argv)
    assert again.stdout == done.stdout
    assert "nothing to do, the build is current" in again.stderr
    unknown = invoke("build", "--source", source, "--stock", "--program", "llama-nonsense")
    assert "unknown target 'llama-nonsense'" in str(unknown.exception)


def test_a_bad_recipe_for_the_board_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = SimpleNamespace(kv_layers=None, system_info=None, sdot=0, fp16_fmla=0, glibc=None)
    done = SimpleNamespace(fresh=True, info=SimpleNamespace(features=features), bin=tmp_path)
    monkeypatch.setattr(command, "build", lambda *_: done)
    source = make_project(tmp_path / "source")
    result = invoke(
        *("build", "--source", source, "--stock", "--target", "rk3588"),
        *("--cmake-arg", "-DGGML_INTERNAL_DOTPROD=ON", "--cmake-arg", "-DGGML_CPU_ARM_ARCH=armv8.2-a"),
    )
    assert result.stderr.count("warning: ") == 2
    assert isinstance(result.exception, CheckFailed)
    assert result.stdout == ""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that serve would become."""
    started: list[list[str]] = []
    done = SimpleNamespace(program=lambda name: tmp_path / name)
    monkeypatch.setattr(command, "_default_build", lambda: done)
    monkeypatch.setattr(os, "execv", lambda _, argv: started.append(argv))
    return started


def test_serve_checks_the_policy_and_stays_on_this_machine(tmp_path: Path, served: list[list[str]]) -> None:
    model = write_random_gguf(tmp_path / "m.gguf", RandomModel(arch="llama", n_layer=2, n_ff=128))
    done = invoke(
        "serve", "--model", model, "--kv-layers", " 1:V=Q4_0 , 0:q8_0", "--port", "9", "--ctx-size", "64"
    )
    assert done.exception is None, done.output
    assert served == [
        [
            *(str(tmp_path / "llama-server"), "--host", "127.0.0.1", "--port", "9", "--model", str(model)),
            *("--kv-layers", "0:q8_0,1:v=q4_0", "--ctx-size", "64"),
        ]
    ]
    served.clear()
    warned = invoke("serve", "--model", model, "--kv-layers", "0-7:q8_0")
    assert "warning: " in warned.stderr
    assert served


@pytest.mark.parametrize(
    ("policy", "error"),
    [("0:q9_9", PolicyError), ("0:tq_mse_4b", PolicyError), ("0:q8_0,0:q4_0", PolicyError)],
)
def test_serve_starts_nothing_on_a_bad_policy(
    tmp_path: Path, served: list[list[str]], policy: str, error: type[KVQuantError]
) -> None:
    model = write_random_gguf(tmp_path / "m.gguf", RandomModel(arch="llama", n_layer=2, n_ff=128))
    assert isinstance(invoke("serve", "--model", model, "--kv-layers", policy).exception, error)
    missing = invoke("serve", "--model", tmp_path / "gone.gguf", "--kv-layers", "*:q8_0")
    assert isinstance(missing.exception, ModelFileError)
    assert served == []


def test_stock_builds_have_no_programs_of_the_patches() -> None:
    assert command._all_programs(stock=True) == PROGRAMS
    assert set(command._all_programs(stock=False)) > set(PROGRAMS)
