"""Gets the llama.cpp source tree, checksum verified: from a PyPI source distribution, or from git.

A tree appears whole or not at all: it is made in a temporary folder beside its place and renamed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvquant.cache import cache_folder, make_folder, temporary_folder
from kvquant.documents import read_json, write_json
from kvquant.errors import AssetError, LlamaError
from kvquant.llama.archive import extract_tree, file_sha256, verify_sha256
from kvquant.llama.pin import Pin, Sdist
from kvquant.llama.tree import ORIGIN_FILE, digest_tree, open_tree
from kvquant.packages.download import Distribution, download
from kvquant.processes.command import run_captured, run_logged

Method = Literal["sdist", "git"]
METHODS: tuple[Method, ...] = ("sdist", "git")

#: Takes one line of progress at a time.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """Where a fetched tree came from; stored in the tree as ``.kvquant-origin.json``.

    ``commit`` and ``tag`` are upstream's, None when the source does not state them. ``tree_sha256`` is
    ``digest_tree`` of the tree as fetched, by which a later run knows that it is unchanged.
    """

    commit: str | None
    source: str
    tree_sha256: str
    tag: str | None = None


def default_dest(sdist: Sdist) -> Path:
    """Where ``fetch`` puts a tree unless told otherwise."""
    return cache_folder() / "llama.cpp" / sdist.label / "tree"


def fetch_tree(
    pin: Pin,
    *,
    dest: Path | None = None,
    method: Method = "sdist",
    tag: str | None = None,
    version: str | None = None,
    archive: Path | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Put a verified, unpatched llama.cpp tree at ``dest`` and return its path; a tree already there is
    verified.

    ``tag`` (default: the pinned one) or ``version``, of a distribution of a commit, says which; ``archive``
    is that distribution as a file already at hand. A tag newer than the known ones is taken with the checksum
    that the package index states, which is said. Raises LlamaError when nothing can be fetched, a checksum
    does not match, or ``dest`` holds something else, and UsageError for a tag or version that is not known.
    """
    sdist = pin.sdist(tag=tag, version=version)
    target = (dest or default_dest(sdist)).absolute()
    if target.exists():
        _require_same_tree(target, sdist)
        say(f"{target} is already there, unchanged since it was fetched")
        return target
    make_folder(target.parent)
    with temporary_folder(target.parent) as work:
        tree = work / "tree"
        commit = sdist.commit
        if method == "git":
            commit = _clone(pin.repository, sdist, tree, say)
            source = f"git {pin.repository}"
        else:
            path = archive or download_archive(sdist, say)
            verify(path, sdist, say)
            say(f"unpacking {path}")
            extract_tree(path, sdist.folder, tree)
            source = f"sdist {sdist.name} {sdist.version}"
        open_tree(tree)
        write_json(tree / ORIGIN_FILE, Origin(commit, source, digest_tree(tree), sdist.tag))
        tree.rename(target)
    return target


def read_origin(root: Path) -> Origin | None:
    """Where the tree came from; None when kvquant did not fetch it. Raises LlamaError on damage."""
    path = root / ORIGIN_FILE
    if not path.exists():
        return None
    try:
        return read_json(Origin, path, error=LlamaError)
    except LlamaError as error:
        raise LlamaError(
            f"{path} is damaged ({error}); delete {root} and run: kvquant llama fetch"
        ) from error


def _require_same_tree(target: Path, sdist: Sdist) -> None:
    origin = read_origin(open_tree(target))
    if origin is None:
        raise LlamaError(f"{target} was not fetched by kvquant; give another --dest, or use it as --source")
    if sdist.tag != origin.tag or (sdist.commit and sdist.commit != origin.commit):
        held = origin.tag or (origin.commit or "nothing known")[:12]
        raise LlamaError(f"{target} holds {held}, wanted {sdist.label}; give another --dest")
    if digest_tree(target) != origin.tree_sha256:
        raise LlamaError(
            f"{target} was changed or patched since it was fetched; delete it or give another --dest"
        )


def verify(path: Path, sdist: Sdist, say: Say) -> None:
    """Hold an archive to its known checksum, or say the one it has. Raises LlamaError."""
    if sdist.sha256 is not None:
        verify_sha256(path, sdist.sha256)
        return
    # pip has held what it downloaded to the index; that is all that vouches for an unknown tag.
    say(
        f"{sdist.label} is newer than the tags whose checksums are known here; its own is: "
        f"{sdist.filename} sha256 {file_sha256(path)}"
    )


def download_archive(sdist: Sdist, say: Say) -> Path:
    """The sdist in the download cache, fetched through pip, so as pip is configured and checksum verified.

    Raises LlamaError.
    """
    folder = cache_folder() / "downloads"
    make_folder(folder)
    path = folder / sdist.filename
    if path.is_file():
        say(f"{path} is already downloaded")
        return path
    say(f"downloading {sdist.filename} with pip")
    with temporary_folder(folder) as work:
        try:
            found = download(Distribution(sdist.name, sdist.version, sdist.sha256, sdist=True), work)
        except AssetError as error:
            raise LlamaError(
                f"pip could not download {sdist.filename}: {error}; "
                "offline, pass the file as --archive FILE, or a source tree as --source DIR"
            ) from error
        found.replace(path)
    return path


def _clone(repository: str, sdist: Sdist, tree: Path, say: Say) -> str:
    """Check out the tag or commit; the commit, to which git itself verifies that the content hashes."""
    wanted = f"refs/tags/{sdist.tag}" if sdist.tag else sdist.commit or ""
    say(f"fetching {sdist.label} from {repository}")
    folder = cache_folder() / "downloads"
    make_folder(folder)
    steps = [
        ["git", "init", "--quiet", str(tree)],
        ["git", "-C", str(tree), "fetch", "--quiet", "--depth", "1", "--no-tags", repository, wanted],
        ["git", "-C", str(tree), "-c", "advice.detachedHead=false", "checkout", "--quiet", "FETCH_HEAD"],
    ]
    for argv in steps:
        lines: list[str] = []
        if run_logged(argv, folder / "git.log", env={"GIT_TERMINAL_PROMPT": "0"}, on_line=lines.append):
            raise LlamaError(
                f"git could not fetch {sdist.label} from {repository}: {_last_error(lines)}; "
                "try --from sdist, or pass --source DIR"
            )
    status, output = run_captured(["git", "-C", str(tree), "rev-parse", "HEAD"])
    if status:
        raise LlamaError(f"git cannot say which commit {sdist.label} is: {output.strip()}")
    return output.strip()


def _last_error(lines: list[str]) -> str:
    marked = [line.strip() for line in lines if line.lower().startswith(("error", "fatal"))]
    return (marked or [line.strip() for line in lines if line.strip()] or ["no output"])[-1]
