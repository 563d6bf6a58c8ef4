"""Imports go one way, and importing the package stays cheap (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import kvquant

PACKAGE = Path(kvquant.__file__).parent

# What each part may import, itself included. `report` reads result files and so never needs `evals`.
FOUNDATION = {
    "errors",
    "units",
    "files",
    "documents",
    "shipped",
    "cache",
    "processes",
    "packages",
    "tables",
    "results",
    "schemas",
}
CORE = ["model", "formats", "policy", "memory", "transform", "analysis", "search", "report"]
SIDE = FOUNDATION | {"model", "formats", "policy", "transform"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "units": {"errors"},
    "files": {"errors"},
    "documents": {"errors", "files"},
    "shipped": {"errors"},
    "cache": {"errors", "shipped"},
    "processes": {"errors", "processes"},
    "packages": {"errors", "processes", "packages"},
    "tables": {"errors", "units"},
    "schemas": {"errors"},
    "results": {"errors", "files", "documents"},
    **{part: FOUNDATION | set(CORE[: depth + 1]) for depth, part in enumerate(CORE)},
    "assets": FOUNDATION | {"assets"},
    "llama": SIDE | {"llama"},
    "reference": {"errors", "reference"},
    # What `search` chooses by is measured here, and handed to it as a value: neither imports the other.
    "evals": SIDE | {"memory", "assets", "llama", "reference", "evals"},
    # Runs what `evals` measures with over every setting; its result is a value that `report` shows.
    "sweep": SIDE | {"memory", "assets", "llama", "reference", "evals", "sweep"},
    "torch": SIDE | {"torch"},
}


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Yield the absolute module names that a module imports anywhere, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(part: str, source: str) -> list[str]:
    """Return the parts of kvquant that ``source``, a module of ``part``, imports without being allowed to."""
    found = set()
    for name in imports_of(ast.parse(source)):
        pieces = name.split(".")
        if pieces[0] == "kvquant" and len(pieces) > 1:
            found.add(pieces[1])
    known = set(ALLOWED) | {"cli"}
    return sorted(found & known - ALLOWED[part] - {part})


def modules() -> list[tuple[str, Path]]:
    """Return every module below the command line with the part it belongs to."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0] if len(relative.parts) > 1 else relative.stem
        if part not in {"cli", "__init__", "__main__"}:
            found.append((part, path))
    return found


@pytest.mark.parametrize(("part", "path"), modules(), ids=lambda value: str(value).rpartition("kvquant/")[2])
def test_imports_go_one_way(part: str, path: Path) -> None:
    assert part in ALLOWED, (
        f"{path}: {part!r} is not in the architecture; place it in docs/architecture.md first"
    )
    assert violations(part, path.read_text()) == []


def test_the_check_sees_a_wrong_import() -> None:
    assert violations("formats", "from kvquant.policy import parse_policy") == ["policy"]
    assert violations("formats", "def f():\n    import kvquant.cli.main") == ["cli"]
    assert violations("llama", "from kvquant import analysis") == ["analysis"]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one circle of ``graph``, the first again at the end; empty when there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for following in sorted(graph.get(node, ())):
                if found := visit(following, [*path, node]):
                    return found
            done.add(node)
        return []

    for start in sorted(graph):
        if found := visit(start, []):
            return found
    return []


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = ["kvquant", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Imports that look up and why they may: this one serves type checkers alone.
UPWARD = {("kvquant.policy.rules", "kvquant.policy.resolve")}


def test_no_imports_go_in_a_circle() -> None:
    paths = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    graph = {
        name: {
            target
            for target in imports_of(ast.parse(path.read_text()))
            if target in paths and target != name and (name, target) not in UPWARD
        }
        for name, path in paths.items()
    }
    assert circle(graph) == []


def test_the_check_sees_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_torch_stays_in_its_rooms() -> None:
    importing = {
        part
        for part, path in modules()
        if any(name.split(".")[0] == "torch" for name in imports_of(ast.parse(path.read_text())))
    }
    assert importing == {"formats", "torch", "transform"}


def test_import_is_light() -> None:
    program = (
        "import sys, kvquant\n"
        "heavy = {'torch', 'matplotlib', 'click', 'scipy', 'rich', 'gguf', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_import_opens_no_file_of_its_own() -> None:
    program = (
        "import sys\n"
        "opened = []\n"
        "def watch(event, args):\n"
        "    if event == 'open' and not str(args[0]).endswith(('.py', '.pyc')):\n"
        "        opened.append(args[0])\n"
        "sys.addaudithook(watch)\n"
        "import kvquant\n"
        "dir(kvquant)\n"
        "assert not opened, opened\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_public_name_loads() -> None:
    for name in kvquant.__all__:
        assert getattr(kvquant, name) is not None, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = kvquant.no_such_name


def test_the_version_has_one_place() -> None:
    """The distribution has another name than the package: no module may ask for a version of "kvquant"."""
    asking = [path for _, path in modules() if "importlib.metadata" in path.read_text()]
    assert asking == []
