"""``kvquant llama`` as a user meets it: fetch, build and serve, with their output and exit codes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from command_line import run_kvquant
from kvquant.cli import llama as command
from kvquant.errors import CheckFailed, KVQuantError, ModelFileError, PolicyError, UsageError
from kvquant.llama.build import PROGRAMS
from llama.proof import PATCHED, needs_patched
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
            *("--ctx-size", "64", "--kv-layers", "0:q8_0,1:v=q4_0"),
        ]
    ]
    served.clear()
    warned = invoke("serve", "--model", model, "--kv-layers", "0-7:q8_0")
    assert "warning: " in warned.stderr
    assert served


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return write_random_gguf(path, RandomModel(arch="llama", n_layer=2, n_ff=128))


def options_of_llama_server() -> list[str]:
    """Every spelling of an option in the help of the patched llama-server, when there is one."""
    if PATCHED is None:
        return []
    done = subprocess.run([PATCHED / "llama-server", "--help"], capture_output=True, text=True, check=True)
    first_words = (line[:40].split("  ")[0] for line in done.stdout.splitlines() if line.startswith("-"))
    return sorted({word.rstrip(",") for line in first_words for word in line.split() if word.startswith("-")})


def assert_handed_on(served: list[list[str]], model: Path, option: str) -> None:
    """An option that is not kvquant's own arrives, with its value and between others, as it was written."""
    served.clear()
    given = ["-a", "b", option, "x", "--jinja"]
    done = invoke("serve", "-m", model, *given)
    assert done.exception is None, (option, done.output)
    assert served[0][-5:] == given, option


@pytest.mark.parametrize(
    "option",
    ["-hf", "-hfd", "-hff", "-hfr", "-hfrd", "-hft", "-np", "-ngl", "-ub", "-fa", "-mu", "-th", "-h0"],
)
def test_short_options_of_llama_server_reach_it(
    small_model: Path, served: list[list[str]], option: str
) -> None:
    assert_handed_on(served, small_model, option)


@needs_patched
def test_every_option_of_llama_server_reaches_it(small_model: Path, served: list[list[str]]) -> None:
    own = {
        name for parameter in command.serve.params for name in (*parameter.opts, *parameter.secondary_opts)
    }
    options = [option for option in options_of_llama_server() if option not in {*own, "-h", "--help"}]
    assert len(options) > 200 and "-hf" in options
    for option in options:
        assert_handed_on(served, small_model, option)


def test_only_a_lone_h_or_help_is_help() -> None:
    for words in (["-h"], ["--help"], ["-m", "x", "--jinja", "-h"]):
        done = run_kvquant("llama", "serve", *words)
        assert done.returncode == 0 and "LLAMA_SERVER_ARGS" in done.stdout


WORDS = st.one_of(
    st.sampled_from(
        ["-hf", "-h2", "--", "-", "", "=", "-C", "-ctkd", "--model=x", "-m=x", "--prompt", "x y"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
)


@given(st.lists(WORDS, max_size=6))
def test_what_follows_two_hyphens_is_handed_on_whatever_it_is(small_model: Path, words: list[str]) -> None:
    started: list[list[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            command, "_default_build", lambda: SimpleNamespace(program=lambda name: Path("/b", name))
        )
        patch.setattr(os, "execv", lambda _, argv: started.append(argv))
        done = invoke("serve", "-m", small_model, "--", *words)
    assert done.exception is None
    assert started[0][7:] == words


@pytest.mark.parametrize("option", ["--host", "--port", "-c", "-m", "--kv-layers", "-ctk", "--help"])
def test_an_option_of_its_own_is_not_handed_on_unread(
    small_model: Path, served: list[list[str]], option: str
) -> None:
    done = invoke("serve", "-m", small_model, "--", "--jinja", option, "0.0.0.0")
    assert isinstance(done.exception, UsageError)
    assert f"{option} comes after --" in str(done.exception)
    assert served == []


@pytest.mark.parametrize(
    ("host", "shown", "warned"),
    [
        (None, "http://127.0.0.1:9, for this machine only", False),
        ("127.0.0.2", "http://127.0.0.2:9, for this machine only", False),
        ("localhost", "http://localhost:9, for this machine only", False),
        ("::1", "http://[::1]:9, for this machine only", False),
        ("0.0.0.0", "http://0.0.0.0:9; stop", True),
        ("::", "http://[::]:9; stop", True),
        ("192.168.1.7", "http://192.168.1.7:9; stop", True),
        ("board.example", "http://board.example:9; stop", True),
        ("/run/kv.sock", "on /run/kv.sock; stop", False),
    ],
)
def test_serve_says_where_it_really_listens(
    small_model: Path, served: list[list[str]], host: str | None, shown: str, warned: bool
) -> None:
    done = invoke("serve", "-m", small_model, "--port", "9", *(["--host", host] if host else []))
    assert shown in done.stderr
    assert ("warning: " in done.stderr) is warned
    assert served[0][1:3] == ["--host", host or "127.0.0.1"]


def test_serve_writes_numbers_and_policies_as_llama_server_reads_them(
    tmp_path: Path, served: list[list[str]]
) -> None:
    """llama-server would take 32k for 32, and knows neither a file nor a preset of an older build."""
    model = write_random_gguf(tmp_path / "m.gguf", RandomModel(arch="llama", n_layer=4, n_ff=128))
    (tmp_path / "policy").write_text("first1:q8_0, # the first\nlast1:Q8_0,\nrest:q4_0\n")
    done = invoke(
        "serve", "-m", model, "--policy", f"@{tmp_path}/policy", "-c", "32k", "-ctk", "Q5_0", "-np", "2"
    )
    assert done.exception is None, done.output
    assert served[0][7:] == [
        *("--ctx-size", "32768", "--cache-type-k", "q5_0", "--cache-type-v", "f16"),
        *("--kv-layers", "0:q8_0,last1:q8_0,rest:q4_0", "-np", "2"),
    ]


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
