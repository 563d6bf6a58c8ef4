"""Which llama.cpp programs a command uses when none are named."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kvquant.cli.options import programs_folder
from kvquant.errors import UsageError
from kvquant.llama.binary import Features
from kvquant.llama.build import INFO_FILE, SCHEMA_VERSION, BuildInfo, BuildRequest, default_folder
from kvquant.llama.fetch import default_dest
from kvquant.llama.patching.recipe import load_series
from kvquant.llama.pin import load_pin
from kvquant.llama.programs import built_programs
from kvquant.llama.workspace import copy_folder
from kvquant.shipped import patches_folder


@pytest.fixture(autouse=True)
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))


def record_build(series_digest: str) -> Path:
    """Leave the record of a build from a series with this digest; returns the folder of its programs."""
    patches = patches_folder()
    source = copy_folder(default_dest(load_pin(patches).sdist()), load_series(patches)) / "tree"
    folder = default_folder(BuildRequest(source))
    info = BuildInfo(
        commit=None,
        tag=None,
        series_digest=series_digest,
        patches=(),
        source_sha256="",
        target="native",
        cmake_args=(),
        programs=(),
        compiler="",
        cmake="",
        features=Features(kv_layers=True, system_info={}, sdot=0, fp16_fmla=0, glibc=None),
        files={},
    )
    folder.mkdir(parents=True)
    (folder / INFO_FILE).write_text(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(info)}))
    return folder / "bin"


def test_a_build_of_this_series_is_found() -> None:
    assert built_programs() is None
    programs = record_build(load_series(patches_folder()).digest)
    assert built_programs() == programs
    assert programs_folder(None) == programs


def test_a_build_of_another_series_is_not_taken() -> None:
    record_build("another")
    assert built_programs() is None


def test_what_is_named_wins_over_what_is_built(tmp_path: Path) -> None:
    record_build(load_series(patches_folder()).digest)
    assert programs_folder(tmp_path) == tmp_path


def test_the_path_comes_last(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run kvquant llama build"):
        programs_folder(None)
    program = tmp_path / "path" / "llama-server"
    program.parent.mkdir()
    program.touch(mode=0o755)
    assert programs_folder(None) == program.parent
