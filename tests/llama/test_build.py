"""Building, with the real cmake and ninja on a tree of a few lines: caching, failure, interruption, what is
recorded.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvquant.errors import CheckFailed, LlamaError, PatchError
from kvquant.llama import toolchain
from kvquant.llama.binary import Features, newest_glibc, parse_system_info, require_rk3588
from kvquant.llama.build import INFO_FILE, Build, BuildRequest, build, read_info
from kvquant.llama.patching.transaction import load_state
from kvquant.llama.toolchain import arm_warnings, find_target, find_tools
from kvquant.llama.workspace import patched_copy
from llama.patch_trees import snapshot
from llama.small_project import CMAKE, SERVER, flag_series, make_project

PROGRAMS = ("llama-bench", "llama-server")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no compiler cache, which would hide what is compiled."""
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CCACHE_DISABLE", "1")
    return tmp_path / "cache"


def built(source: Path, *programs: str, said: list[str] | None = None) -> Build:
    request = BuildRequest(source, programs=programs or PROGRAMS)
    return build(request, [].append if said is None else said.append)


def test_a_page_under_its_older_name_is_left_out_too(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source")
    assert "-DLLAMA_BUILD_WEBUI=OFF" not in built(source).info.cmake_args
    project = (source / "CMakeLists.txt").read_text()
    (source / "CMakeLists.txt").write_text(
        f'{project}\noption(LLAMA_BUILD_WEBUI "page" ON)\nif (LLAMA_BUILD_WEBUI)\n'
        'message(FATAL_ERROR "no page")\nendif()\n'
    )
    assert "-DLLAMA_BUILD_WEBUI=OFF" in built(source).info.cmake_args


def test_a_patched_copy_is_built_and_the_given_tree_stays(tmp_path: Path) -> None:
    source, series = make_project(tmp_path / "source"), flag_series(tmp_path / "patches")
    before = snapshot(source)
    said: list[str] = []
    copy = patched_copy(source, series, said.append)
    done = built(copy, said=said)
    assert snapshot(source) == before
    assert done.fresh
    assert done.info.features.kv_layers is True
    assert done.info.features.system_info == {"AVX2": 1, "DOTPROD": 1, "FP16_VA": 0}
    assert done.info.series_digest == series.digest
    assert [patch.name for patch in done.info.patches] == ["0001-layers"]
    assert set(done.info.files) == set(PROGRAMS)
    assert done.program("llama-server") == done.folder / "bin/llama-server"
    assert read_info(done.folder) == done.info
    assert json.loads((done.folder / INFO_FILE).read_text())["schema_version"] == 1
    assert any(line.startswith("building: ") for line in said)
    with pytest.raises(LlamaError, match="has no llama-cli; built there: llama-bench, llama-server"):
        done.program("llama-cli")


def test_a_current_build_is_not_repeated(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source")
    first = built(source, "llama-bench")
    assert first.info.series_digest is None
    stamp = (first.folder / INFO_FILE).stat().st_mtime_ns
    assert built(source, "llama-bench") == Build(first.folder, first.info, fresh=False)
    assert (first.folder / INFO_FILE).stat().st_mtime_ns == stamp
    # One more program: both are of one build afterwards.
    assert built(source, "llama-server").info.programs == PROGRAMS
    assert not built(source, "llama-bench").fresh
    (source / "server.cpp").write_text(SERVER.replace("AVX2 = 1", "AVX2 = 0"))
    again = built(source)
    assert again.fresh
    assert again.info.features.system_info == {"AVX2": 0, "DOTPROD": 1, "FP16_VA": 0}
    (again.bin / "llama-bench").unlink()
    assert built(source).fresh


def test_other_arguments_get_another_folder(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source")
    plain = built(source, "llama-bench")
    debug = build(BuildRequest(source, programs=("llama-bench",), cmake_args=("-DCMAKE_BUILD_TYPE=Debug",)))
    assert debug.folder != plain.folder
    assert debug.info.cmake_args[-1] == "-DCMAKE_BUILD_TYPE=Debug"
    # In a folder named by hand, other arguments make the build stale.
    request = BuildRequest(source, programs=("llama-bench",), folder=tmp_path / "b")
    assert build(request).fresh
    assert not build(request).fresh
    assert build(
        BuildRequest(source, programs=("llama-bench",), folder=tmp_path / "b", cmake_args=("-DX=1",))
    ).fresh


def test_an_argument_that_is_gone_does_not_live_on(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source", cmake=CMAKE + 'message(STATUS "X is ${X}.")\n')
    for args, said in [(("-DX=1",), "X is 1."), ((), "X is .")]:
        done = build(BuildRequest(source, programs=("llama-bench",), folder=tmp_path / "b", cmake_args=args))
        assert said in (done.folder / "configure.log").read_text()


def test_a_build_that_fails_shows_its_first_error(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source")
    good = built(source)
    (source / "server.cpp").write_text(SERVER.replace("return 1;", "return one;"))
    said: list[str] = []
    with pytest.raises(
        LlamaError, match=r"building failed: .*(FAILED|error).*\(log: .*build\.log\)"
    ) as caught:
        built(source, said=said)
    assert "\n" not in str(caught.value)
    assert any("was not declared" in line for line in said)
    assert not (good.folder / INFO_FILE).exists()
    (source / "server.cpp").write_text(SERVER)
    assert built(source).fresh


def test_a_tree_that_changes_meanwhile_gives_no_build(tmp_path: Path) -> None:
    change = 'file(WRITE "${CMAKE_SOURCE_DIR}/new.cpp" "int meanwhile;")\n'
    source = make_project(tmp_path / "source", cmake=CMAKE + change)
    with pytest.raises(LlamaError, match="was changed while it was built"):
        built(source)
    assert not list((tmp_path / "cache").rglob(INFO_FILE))
    assert built(source).fresh


def test_a_tree_that_does_not_configure_says_why(tmp_path: Path) -> None:
    source = make_project(
        tmp_path / "source", cmake='project("llama.cpp")\nmessage(FATAL_ERROR "no such luck")\n'
    )
    said: list[str] = []
    with pytest.raises(LlamaError, match=r"configuring failed: CMake Error"):
        built(source, said=said)


def test_a_killed_build_is_no_build_and_leaves_nothing_running(tmp_path: Path) -> None:
    mark = tmp_path / "compiling"
    slow = f'add_custom_target(slow ALL COMMAND touch "{mark}" COMMAND sleep 47.11)\n'
    project = (
        'cmake_minimum_required(VERSION 3.14)\nproject("llama.cpp" C CXX)\n'
        "set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)\n"
        f"{slow}add_executable(llama-bench server.cpp)\nadd_dependencies(llama-bench slow)\n"
    )
    source = make_project(tmp_path / "source", cmake=project)
    code = "import sys; from pathlib import Path; from kvquant.llama.build import *; "
    code += "build(BuildRequest(Path(sys.argv[1]), programs=('llama-bench',), folder=Path(sys.argv[2])))"
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(tmp_path / "b")])
    deadline = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / INFO_FILE).exists()
    while any("47.11" in command for command in running_commands()):
        assert time.monotonic() < deadline, "the build went on without its kvquant"
        time.sleep(0.1)
    (source / "CMakeLists.txt").write_text(project.replace("sleep 47.11", "true"))
    assert build(BuildRequest(source, programs=("llama-bench",), folder=tmp_path / "b")).fresh


def running_commands() -> list[str]:
    """The command line of every running process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def test_each_series_has_a_copy_that_follows_its_source(tmp_path: Path) -> None:
    source = make_project(tmp_path / "source")
    first, second = flag_series(tmp_path / "a"), flag_series(tmp_path / "b", "# newer\n")
    said: list[str] = []
    copy = patched_copy(source, first, said.append)
    assert any(line.startswith("copying ") for line in said)
    said.clear()
    assert patched_copy(source, first, said.append) == copy
    assert said == []
    other = patched_copy(source, second, said.append)
    assert [line.split(" ")[0] for line in said] == ["copying", "applied"]
    states = load_state(copy), load_state(other)
    assert [state.series_digest for state in states if state] == [first.digest, second.digest]
    said.clear()
    copy = other
    (copy / "server.cpp").write_text("tampered")
    patched_copy(source, second, said.append)
    assert "--kv-layers" in (copy / "server.cpp").read_text()
    said.clear()
    (source / "LICENSE").write_text("changed\n")
    patched_copy(source, second, said.append)
    assert (copy / "LICENSE").read_text() == "changed\n"
    (source / "server.cpp").write_text("// drifted\n")
    with pytest.raises(PatchError, match="1 edits do not fit"):
        patched_copy(source, second, said.append)


def test_a_tree_patched_in_place_is_built_in_place(tmp_path: Path) -> None:
    source, series = make_project(tmp_path / "source"), flag_series(tmp_path / "a")
    copy = patched_copy(source, series, lambda _: None)
    assert patched_copy(copy, series, lambda _: None) == copy
    with pytest.raises(PatchError, match="another version of the series"):
        patched_copy(copy, flag_series(tmp_path / "b", "# newer\n"), lambda _: None)


def test_missing_tools_come_from_pypi_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []
    known = {"ccache": None, "cmake": "/usr/bin/cmake", "ninja": None}

    def install(argv: list[str], **_: object) -> tuple[int, str]:
        installed.append(argv)
        known["ninja"] = str(tmp_path / "ninja")
        return 0, ""

    monkeypatch.setattr(toolchain, "_which", known.get)
    monkeypatch.setattr(toolchain, "run_captured", install)
    said: list[str] = []
    assert find_tools(said.append).ninja == str(tmp_path / "ninja")
    assert installed == [[sys.executable, "-m", "pip", "install", "ninja"]]
    assert said == [f"ninja not found: installing from PyPI into {sys.prefix}"]
    known["ninja"] = None
    monkeypatch.setattr(toolchain, "run_captured", lambda *_, **__: (1, "ERROR: no network\n"))
    with pytest.raises(LlamaError, match="cannot install ninja with pip: ERROR: no network"):
        find_tools(said.append)


def test_a_missing_compiler_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_which", lambda _: None)
    with pytest.raises(LlamaError, match=r"no c\+\+ on PATH; install it \(Debian: apt-get install g\+\+\)"):
        find_target("native")
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "x86_64")
    with pytest.raises(LlamaError, match="apt-get install gcc-aarch64-linux-gnu"):
        find_target("rk3588")


def test_on_the_board_nothing_is_crossed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(toolchain.platform, "machine", lambda: "aarch64")
    target = find_target("rk3588")
    assert (target.compiler, target.objdump, target.runner) == ("/usr/bin/c++", "/usr/bin/objdump", ())
    assert "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16" in target.cmake_args
    assert not any("CMAKE_SYSTEM_NAME" in arg for arg in target.cmake_args)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-DGGML_INTERNAL_DOTPROD=ON",), ["GGML_INTERNAL_DOTPROD", "does nothing"]),
        (("-DGGML_INTERNAL_FP16_VECTOR_ARITHMETIC=ON",), ["does nothing"]),
        (("-DGGML_CPU_ARM_ARCH=armv8.2-a",), ["turns off dotprod and fp16"]),
        (("-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod",), ["turns off fp16"]),
        (
            ("-DCMAKE_CXX_FLAGS=-mcpu=cortex-a76+crc+crypto+dotprod -march=armv8.2-a",),
            ["turns off dotprod and fp16"],
        ),
        (
            (
                "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16",
                "-DGGML_LTO=ON",
                "-DCMAKE_C_FLAGS=-mcpu=cortex-a76",
            ),
            [],
        ),
    ],
)
def test_flags_that_do_not_do_what_they_look_like(args: tuple[str, ...], words: list[str]) -> None:
    found = arm_warnings(args)
    assert bool(found) == bool(words)
    assert all(word in " ".join(found) for word in words)


def test_a_slow_rk3588_build_is_not_passed_off_as_a_good_one() -> None:
    good = Features(True, {"DOTPROD": 1, "FP16_VA": 1}, 1000, 200, "2.34")
    require_rk3588(good)
    require_rk3588(Features(None, None, 1000, 200, None))
    for bad, message in [
        (Features(True, {"NEON": 1, "FP16_VA": 1}, 1000, 200, None), "no DOTPROD = 1 in system_info"),
        (Features(True, {"DOTPROD": 1, "FP16_VA": 0}, 1000, 200, None), "no FP16_VA = 1 in system_info"),
        (Features(None, None, 0, 0, None), "no sdot in the disassembly, no fp16 fmla in the disassembly"),
    ]:
        with pytest.raises(CheckFailed, match=message):
            require_rk3588(bad)


def test_what_is_read_from_program_output() -> None:
    line = (
        "0.00.002.903 I cmn  common_param: system_info: n_threads = 2 / 2 | CPU : NEON = 1 | DOTPROD = 1 | "
    )
    assert parse_system_info(f"other\n{line}\n") == {"NEON": 1, "DOTPROD": 1}
    assert parse_system_info("no such line") is None
    assert newest_glibc(" GLIBC_2.17 f\n (GLIBC_2.34) g\n GLIBC_2.4 h") == "2.34"
    assert newest_glibc("nothing dynamic") is None


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs g++-aarch64-linux-gnu")
@pytest.mark.skipif(os.uname().machine == "aarch64", reason="nothing to cross here")
def test_the_cross_build_is_looked_into(tmp_path: Path) -> None:
    """A program without dot products is found out, by disassembly and, where qemu is there, by running it."""
    done = build(BuildRequest(make_project(tmp_path / "source"), "rk3588", PROGRAMS))
    features = done.info.features
    assert (features.sdot, features.fp16_fmla) == (0, 0)
    assert features.glibc is not None
    if shutil.which("qemu-aarch64-static"):
        assert features.system_info == {"AVX2": 1, "DOTPROD": 1, "FP16_VA": 0}
    with pytest.raises(CheckFailed, match="no sdot in the disassembly"):
        require_rk3588(features)
