"""The wheel alone: built from the tree and from its sdist alike, and at work where no clone can be seen."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kvquant.cache import cache_folder
from kvquant.llama.programs import built_programs
from kvquant.shipped import VERSION
from llama.proof import PATCHED, needs_patched

ROOT = Path(__file__).resolve().parents[1]
SOURCE = os.environ.get("KVQUANT_LLAMA_SOURCE")

# Writes down every file below CLONE that the interpreter opens or lists, other than what LIBRARIES lend it.
WATCH = """
import os, sys

CLONE, LIBRARIES, SEEN = {clone!r}, {libraries!r}, {seen!r}


def watch(event, args):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if path.startswith(CLONE + os.sep) and not path.startswith(LIBRARIES):
            descriptor = os.open(SEEN, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, (path + chr(10)).encode())
            os.close(descriptor)


sys.addaudithook(watch)
"""


def build(target: str, tree: Path, out: Path) -> Path:
    """Build an sdist or a wheel of ``tree`` into the folder ``out``; returns the file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, timeout=300)
    (file,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return file


def contents(wheel: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in ``wheel`` by its name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@dataclass(frozen=True)
class Installed:
    """The wheel, installed below ``root``. seen: a file of the paths it read in the clone, one a line."""

    root: Path
    seen: Path

    def start(
        self, *args: str, cache: Path | None = None, output: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start kvquant in a new empty folder, with nothing of this process's environment."""
        folder = self.root / f"empty-{time.monotonic_ns()}"
        folder.mkdir()
        environment = {
            "PATH": f"{self.root / 'venv/bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.root / "home"),
            "KVQUANT_CACHE": str(cache or self.root / "cache"),
        }
        return subprocess.Popen(
            [str(self.root / "venv/bin/kvquant"), *args],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            text=True,
        )

    def run(self, *args: str, code: int = 0) -> str:
        """Run kvquant to its end and return its standard output (for a refusal: its standard error)."""
        process = self.start(*args)
        stdout, stderr = process.communicate(timeout=500)
        assert process.returncode == code, f"kvquant {' '.join(args)}: {process.returncode}\n{stderr}"
        return stdout if code != 2 else stderr


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The wheel in an environment of its own, which borrows the libraries it depends on and nothing else."""
    root = tmp_path_factory.mktemp("alone")
    here = Installed(root, root / "seen")
    venv.create(root / "venv", with_pip=False)
    python = root / "venv/bin/python"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, timeout=120)
    (site,) = (root / "venv/lib").glob("python*/site-packages")
    # A path in a .pth file lends packages. The .pth files there, such as an editable kvquant's, are not read.
    libraries = str(Path(np.__file__).parents[1])
    (site / "libraries.pth").write_text(libraries + "\n")
    (site / "sitecustomize.py").write_text(
        WATCH.format(clone=str(ROOT), libraries=(libraries, str(ROOT / ".cache")), seen=str(here.seen))
    )
    (root / "home").mkdir()
    yield here
    assert not here.seen.exists(), f"read from the clone: {sorted(set(here.seen.read_text().splitlines()))}"


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.glob("kvquant_llama-*")
    assert contents(build("wheel", tree, tmp_path / "again")) == contents(wheel)


def test_the_wheel_carries_every_file_of_the_series_and_no_results(wheel: Path) -> None:
    names = set(contents(wheel))
    tracked = subprocess.run(
        ["git", "ls-files", "patches", "eval"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    wanted = {f"kvquant/shipped/{name}" for name in tracked if name and not name.startswith("eval/results/")}
    assert {
        name for name in names if name.startswith("kvquant/shipped/") and not name.endswith(".py")
    } == wanted
    tops = {name.split("/")[0] for name in names}
    assert tops == {"kvquant", f"kvquant_llama-{VERSION}.dist-info"}


def test_it_does_not_run_from_the_clone(installed: Installed) -> None:
    program = (
        "from kvquant import shipped; "
        "print(shipped.__file__, shipped.checkout_root(), shipped.reference_model().stat().st_size)"
    )
    python = installed.root / "venv/bin/python"
    told = subprocess.run(
        [python, "-c", program], cwd=installed.root, check=True, capture_output=True, text=True
    )
    file, clone, size = told.stdout.split()
    assert Path(file).is_relative_to(installed.root) and clone == "None" and int(size) > 10**7


def test_the_watch_sees_a_file_of_the_clone(installed: Installed) -> None:
    program = f"open({str(ROOT / 'LICENSE')!r}).close()"
    subprocess.run([installed.root / "venv/bin/python", "-c", program], cwd=installed.root, check=True)
    assert installed.seen.read_text().splitlines() == [str(ROOT / "LICENSE")]
    installed.seen.unlink()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("--version", f"kvquant {VERSION}"),
        ("analyze --layers 0-10:q8_0,11-31:q4_0", "0-10:q8_0,11-31:q4_0 on kvquant reference"),
        ("memory --shape llama-3.1-8b --layers 0-10:q8_0,11-31:q4_0 --ctx 8192", "q8_0"),
        ("policy 0-10:q8_0,11-31:q4_0 --shape llama-3.1-8b", "q4_0"),
        ("formats", "q4_0"),
        ("shape --list", "llama-3.1-8b"),
    ],
    ids=lambda text: text.split()[0],
)
def test_what_needs_no_llama_cpp(installed: Installed, line: str, shown: str) -> None:
    assert shown in installed.run(*line.split())


def model_of(installed: Installed) -> Path:
    (model,) = installed.root.glob(
        "venv/lib/python*/site-packages/kvquant/shipped/eval/reference-model/*.gguf"
    )
    return model


def test_doctor_reads_the_reference_model(installed: Installed) -> None:
    model = model_of(installed)
    told = installed.run("doctor", "--model", str(model), "--layers", "0-10:q8_0,11-31:q4_0", "--json")
    assert json.loads(told)


def test_the_suites_are_known(installed: Installed) -> None:
    address = ("--base-url", "http://127.0.0.1:9/v1", "--out", "runs")
    said = installed.run("eval", *address, "--suite", "none", code=2)
    assert "agent" in said and "standard" in said


@pytest.mark.skipif(SOURCE is None, reason="KVQUANT_LLAMA_SOURCE names no source tree")
def test_the_series_fits_the_pinned_tree(installed: Installed) -> None:
    told = installed.run("patch", "check", "--source", str(SOURCE))
    assert "0001-kv-layers" in told


@needs_patched
def test_validate_measures_the_reference_model(installed: Installed) -> None:
    runs = installed.root / "runs"
    policies = ("--policy", "f16", "--policy", "0-10:q8_0,11-31:q4_0")
    tried = ("--suite", "short", "--threads", "1", "--llama-bin", str(PATCHED))
    installed.run("validate", *policies, *tried, "--out", str(runs))
    found = json.loads((runs / "results.json").read_text())
    assert found["provenance"]["git_commit"] is None
    assert "0-10:q8_0,11-31:q4_0" in installed.run("report", str(runs))


@needs_patched
@pytest.mark.skipif(built_programs() is None or built_programs() != PATCHED, reason="would build llama.cpp")
def test_serve_finds_the_build_and_answers(installed: Installed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = ("--model", str(model_of(installed)), "--kv-layers", "0-10:q8_0,11-31:q4_0", "--port", str(port))
    with running(installed.start("llama", "serve", *line, cache=cache_folder(), output=subprocess.DEVNULL)):
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert json.load(answer)["status"] == "ok"
                    return
            except OSError:
                assert time.monotonic() < deadline, "the server did not answer"
                time.sleep(0.2)


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[None]:
    """End ``process`` at the end, however that comes."""
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)
