"""``kvquant patch`` as a user meets it: output, exit codes, one line for bad input."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from command_line import run_kvquant
from llama.patch_trees import CACHE, make_series, make_tree, snapshot


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_series(tmp_path / "patches")
    return make_tree(tmp_path / "tree")


def patch(command: str, tree: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    patches = () if command == "revert" else ("--patches", tree.parent / "patches")
    return run_kvquant("patch", command, "--source", tree, *patches, *argv)


def test_the_round_trip(tree: Path) -> None:
    before = snapshot(tree)
    checked = patch("check", tree)
    assert (checked.returncode, checked.stdout.splitlines()) == (
        0,
        [
            "0001-layers new-file  src/layers/layers.h  matches (added whole)",
            "0001-layers include  src/context.cpp:1  matches",
            "0001-layers second-return  src/context.cpp:8  matches",
            "0001-layers types  src/cache.cpp:1, src/cache.cpp:2  matches",
        ],
    )
    assert snapshot(tree) == before
    assert patch("status", tree).stdout == "0001-layers: not applied\n"
    applied = patch("apply", tree)
    assert applied.stdout.splitlines() == ["src/cache.cpp", "src/context.cpp", "src/layers/layers.h"]
    assert "nothing to do" in patch("apply", tree).stderr
    assert patch("status", tree).stdout == "0001-layers: applied\n"
    assert patch("check", tree).stdout == checked.stdout
    (tree / "src/cache.cpp").write_bytes(b"int mine;\n")
    assert patch("status", tree).stdout == "0001-layers: applied\nchanged since: src/cache.cpp\n"
    refused = patch("revert", tree)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    (tree / "src/cache.cpp").write_bytes(CACHE.replace(b"type_", b"layer_type_"))
    assert patch("revert", tree).returncode == 0
    assert snapshot(tree) == before
    assert "nothing to do" in patch("revert", tree).stderr


def test_drift_is_shown_with_its_nearest_lines_and_exit_code_3(tree: Path) -> None:
    (tree / "src/context.cpp").write_bytes(b'#include "llama-implementation.h"\nreturn 1;\n')
    before = snapshot(tree)
    checked = patch("check", tree)
    assert checked.returncode == 3
    lines = checked.stdout.splitlines()
    assert "0001-layers include  src/context.cpp  fails (anchor found 0 times, wanted 1)" in lines
    assert any(line.startswith("    nearest, ") and "src/context.cpp:1: #include" in line for line in lines)
    assert checked.stderr.startswith("kvquant: error: 2 of 4 edits do not fit")
    assert patch("export", tree).returncode == 3
    applied = patch("apply", tree)
    assert (applied.returncode, applied.stdout, applied.stderr.count("\n")) == (1, "", 1)
    assert snapshot(tree) == before


def test_export_writes_one_file_per_patch(tree: Path, tmp_path: Path) -> None:
    whole = patch("export", tree).stdout
    written = patch("export", tree, "--out", tmp_path / "out")
    assert written.stdout == f"{tmp_path / 'out/0001-layers.patch'}\n"
    assert (tmp_path / "out/0001-layers.patch").read_text() == whole
    patch("apply", tree)
    assert patch("export", tree).stdout == whole


SECOND = """
purpose = "More of it."
[[edit]]
id = "other"
why = "Because of other."
file = "src/other.cpp"
find = "int other;"
action = "replace"
text = "int another;"
"""


def test_one_patch_alone(tree: Path, tmp_path: Path) -> None:
    patches = tmp_path / "patches"
    (patches / "0002-more").mkdir()
    (patches / "0002-more/recipe.toml").write_text(SECOND)
    (patches / "series").write_text("0001-layers\n0002-more\n")
    whole, second = patch("export", tree).stdout, patch("export", tree, "--only", "0002-more").stdout
    assert whole.endswith(second) and second.startswith("0002-more\n")
    assert patch("check", tree, "--only", "0002-more").stdout.splitlines() == [
        "0002-more other  src/other.cpp:1  matches"
    ]
    for command in ("check", "apply", "export"):
        unknown = patch(command, tree, "--only", "0003-lost")
        assert (unknown.returncode, unknown.stdout, unknown.stderr.count("\n")) == (2, "", 1)
        assert "has no patch '0003-lost'; known: 0001-layers, 0002-more" in unknown.stderr
    assert patch("apply", tree, "--only", "0002-more").stdout == "src/other.cpp\n"
    assert patch("status", tree).stdout == "0001-layers: not applied\n0002-more: applied\n"
    assert "nothing to do" in patch("apply", tree, "--only", "0002-more").stderr
    refused = patch("apply", tree)
    assert refused.returncode == 1 and "kvquant patch revert" in refused.stderr
    assert patch("export", tree, "--only", "0001-layers", "--only", "0002-more").stdout == whole
    half = patch("export", tree, "--only", "0002-more", "--surroundings", "--out", tmp_path / "out")
    assert half.returncode == 2 and not (tmp_path / "out").exists()


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    nested = tmp_path / "sdist"
    make_tree(nested / "vendor" / "llama.cpp")
    for source, message in [
        (tmp_path / "gone", "is not a folder"),
        (tmp_path, "is not a llama.cpp source tree"),
        (nested, f"try {nested / 'vendor' / 'llama.cpp'}"),
    ]:
        done = run_kvquant("patch", "check", "--source", source)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert message in done.stderr
    assert run_kvquant("patch", "check").returncode == 2


def test_status_of_a_tree_that_was_put_back_or_patched_by_hand(tree: Path) -> None:
    before = snapshot(tree)
    patch("apply", tree)
    (tree / "src/cache.cpp").write_bytes(CACHE)
    assert patch("status", tree).stdout == "0001-layers: applied\nrestored since: src/cache.cpp\n"
    assert patch("apply", tree).returncode == 0
    assert patch("status", tree).stdout == "0001-layers: applied\n"
    patch("revert", tree)
    assert snapshot(tree) == before
    diff = patch("export", tree).stdout
    subprocess.run(["git", "apply", "-"], cwd=tree, input=diff, text=True, check=True)
    status = patch("status", tree)
    assert status.stdout.startswith("0001-layers: applied by other means")
    assert "git apply --reverse" in status.stderr
    subprocess.run(["git", "apply", "--reverse", "-"], cwd=tree, input=diff, text=True, check=True)
    assert patch("status", tree).stdout == "0001-layers: not applied\n"


def test_changes_of_ones_own_can_be_kept(tree: Path) -> None:
    patch("apply", tree)
    (tree / "src/cache.cpp").write_bytes(b"int mine;\n")
    refused = patch("revert", tree)
    assert refused.returncode == 1 and "--keep-changed" in refused.stderr
    kept = patch("revert", tree, "--keep-changed")
    assert kept.stdout.splitlines() == ["src/context.cpp", "src/layers/layers.h"]
    assert (tree / "src/cache.cpp").read_bytes() == b"int mine;\n"
