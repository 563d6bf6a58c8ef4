"""Gets the llama.cpp source tree, checksum verified: from a PyPI source distribution, or from git.

A tree appears whole or not at all: it is made in a temporary folder beside its place and renamed.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from kvquant.cache import cache_folder, make_folder, temporary_folder
from kvquant.errors import LlamaError
from kvquant.files import write_atomic
from kvquant.llama import sdist_backend
from kvquant.llama.archive import extract_vendored_tree, verify_sha256
from kvquant.llama.pin import Pin, Sdist
from kvquant.llama.tree import ORIGIN_FILE, digest_tree, open_tree
from kvquant.processes.command import run_logged

Method = Literal["sdist", "git"]
METHODS: tuple[Method, ...] = ("sdist", "git")

#: Takes one line of progress at a time.
Say = Callable[[str], None]

#: The build backend named in the sdist's pyproject.toml, for which ``sdist_backend`` stands in.
_BACKEND = ("scikit_build_core", "build.py")


@dataclass(frozen=True)
class Origin:
    """Where a fetched tree came from; stored in the tree as ``.kvquant-origin.json``.

    ``tree_sha256`` is ``digest_tree`` of the tree as fetched, by which a later run knows that it is
    unchanged.
    """

    commit: str
    source: str
    tree_sha256: str


def default_dest(commit: str) -> Path:
    """Where ``fetch`` puts the tree of a commit unless told otherwise."""
    return cache_folder() / "llama.cpp" / commit[:12] / "tree"


def fetch_tree(
    pin: Pin,
    *,
    dest: Path | None = None,
    method: Method = "sdist",
    version: str | None = None,
    archive: Path | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Put a verified, unpatched llama.cpp tree at ``dest`` and return its path; a tree already there is
    verified.

    ``version`` names one of the pinned sdists (default: the one with the pinned commit); ``archive`` is that
    sdist as a file already at hand. Raises LlamaError when nothing can be fetched, a checksum does not
    match, or ``dest`` holds something else.
    """
    sdist = pin.sdist(version)
    target = (dest or default_dest(sdist.commit)).absolute()
    if target.exists():
        _require_same_tree(target, sdist.commit)
        say(f"{target} is there already, unchanged since it was fetched")
        return target
    make_folder(target.parent)
    with temporary_folder(target.parent) as work:
        tree = work / "tree"
        if method == "git":
            _clone(pin.repository, sdist.commit, tree, say)
            source = f"git {pin.repository}"
        else:
            path = archive or _download(sdist, say)
            verify_sha256(path, sdist.sha256)
            say(f"unpacking {path}")
            extract_vendored_tree(path, tree)
            source = f"sdist {sdist.name} {sdist.version}"
        open_tree(tree)
        origin = Origin(sdist.commit, source, digest_tree(tree))
        write_atomic(tree / ORIGIN_FILE, json.dumps(asdict(origin), indent=1) + "\n")
        tree.rename(target)
    return target


def read_origin(root: Path) -> Origin | None:
    """Where the tree came from; None when kvquant did not fetch it. Raises LlamaError on damage."""
    path = root / ORIGIN_FILE
    try:
        record = json.loads(path.read_bytes())
        return Origin(str(record["commit"]), str(record["source"]), str(record["tree_sha256"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LlamaError(
            f"{path} is damaged ({error}); delete {root} and run: kvquant llama fetch"
        ) from error


def _require_same_tree(target: Path, commit: str) -> None:
    origin = read_origin(open_tree(target))
    if origin is None:
        raise LlamaError(f"{target} was not fetched by kvquant; name another --dest, or use it as --source")
    if origin.commit != commit:
        raise LlamaError(
            f"{target} holds commit {origin.commit[:12]}, wanted {commit[:12]}; name another --dest"
        )
    if digest_tree(target) != origin.tree_sha256:
        raise LlamaError(
            f"{target} was changed or patched since it was fetched; delete it or name another --dest"
        )


def _download(sdist: Sdist, say: Say) -> Path:
    """The sdist in the download cache, fetched through pip, so as pip is configured and checksum verified."""
    folder = cache_folder() / "downloads"
    make_folder(folder)
    path = folder / sdist.filename
    if path.is_file():
        say(f"{path} is downloaded already")
        return path
    say(f"downloading {sdist.filename} with pip")
    with temporary_folder(folder) as work:
        backend = work / "backend" / _BACKEND[0] / _BACKEND[1]
        backend.parent.mkdir(parents=True)
        (backend.parent / "__init__.py").touch()
        shutil.copyfile(sdist_backend.__file__, backend)
        pinned = f"{sdist.name}=={sdist.version} --hash=sha256:{sdist.sha256}\n"
        (work / "requirements.txt").write_text(pinned)
        lines: list[str] = []
        log = folder / "pip.log"
        environment = {"PYTHONPATH": str(work / "backend"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        status = run_logged(_pip_download(work), log, env=environment, on_line=lines.append)
        if status or not (work / sdist.filename).is_file():
            raise LlamaError(
                f"pip could not download {sdist.filename}: {_last_error(lines)}; "
                f"offline, pass the file as --archive FILE, or a source tree as --source DIR (log: {log})"
            )
        (work / sdist.filename).replace(path)
    return path


def _pip_download(work: Path) -> list[str]:
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    files = ["--requirement", str(work / "requirements.txt"), "--dest", str(work)]
    return [sys.executable, "-m", "pip", "download", *options, *files]


def _clone(repository: str, commit: str, tree: Path, say: Say) -> None:
    """Check out one commit; git itself verifies that the content hashes to it."""
    say(f"fetching commit {commit[:12]} from {repository}")
    folder = cache_folder() / "downloads"
    make_folder(folder)
    steps = [
        ["git", "init", "--quiet", str(tree)],
        ["git", "-C", str(tree), "fetch", "--quiet", "--depth", "1", "--no-tags", repository, commit],
        ["git", "-C", str(tree), "-c", "advice.detachedHead=false", "checkout", "--quiet", "FETCH_HEAD"],
    ]
    for argv in steps:
        lines: list[str] = []
        if run_logged(argv, folder / "git.log", env={"GIT_TERMINAL_PROMPT": "0"}, on_line=lines.append):
            raise LlamaError(
                f"git could not fetch commit {commit[:12]} from {repository}: {_last_error(lines)}; "
                "try --from sdist, or pass --source DIR"
            )


def _last_error(lines: list[str]) -> str:
    marked = [line.strip() for line in lines if line.lower().startswith(("error", "fatal"))]
    return (marked or [line.strip() for line in lines if line.strip()] or ["no output"])[-1]
