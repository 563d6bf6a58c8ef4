"""Small llama.cpp-like trees and patch series for the patch engine's tests."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kvquant.llama.patching.recipe import Series, load_series

CONTEXT = b"""\
#include "llama-impl.h"

static int one() {
    return 1;
}

static int two() {
    return 1;
}
"""
CACHE = b"k = new_tensor(ctx, type_k, n);\nv = new_tensor(ctx, type_v, n);\n"

RECIPE = """
purpose = "Types per layer."

[[edit]]
id = "include"
why = "Because of include."
file = "src/context.cpp"
find = '''
#include "llama-impl.h"
'''
action = "insert-after"
text = '''
#include "layers.h"
'''

[[edit]]
id = "second-return"
why = "Because of second-return."
file = "src/context.cpp"
find = "return 1;"
after = "static int two() {"
action = "replace"
text = "return layers(2);"

[[edit]]
id = "types"
why = "Because of types."
file = "src/cache.cpp"
find = "new_tensor(ctx, type_"
count = 2
action = "replace"
text = "new_tensor(ctx, layer_type_"
"""

LAYERS_H = b"int layers(int n);\n"


@dataclass(frozen=True)
class Entry:
    """What a revert must bring back: permissions, and content (None for a folder)."""

    mode: int
    content: bytes | None


def make_tree(root: Path, **files: bytes) -> Path:
    """A tree that ``RECIPE`` fits; ``files`` replaces contents by file stem."""
    (root / "src").mkdir(parents=True)
    (root / "CMakeLists.txt").write_bytes(b'project("llama.cpp" C CXX)\n')
    (root / "src/context.cpp").write_bytes(files.get("context", CONTEXT))
    (root / "src/cache.cpp").write_bytes(files.get("cache", CACHE))
    (root / "src/cache.cpp").chmod(0o755)
    (root / "src/other.cpp").write_bytes(b"int other;\n")
    return root


def make_series(folder: Path, recipe: str = RECIPE, files: dict[str, bytes] | None = None) -> Series:
    """A series of the one patch ``0001-layers``, on disk and loaded."""
    patch = folder / "0001-layers"
    new_files = {"src/layers/layers.h": LAYERS_H} if files is None else files
    for path, content in new_files.items():
        (patch / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (patch / "files" / path).write_bytes(content)
    patch.mkdir(parents=True, exist_ok=True)
    (patch / "recipe.toml").write_text(recipe)
    (folder / "series").write_text("0001-layers\n")
    return load_series(folder)


def snapshot(root: Path) -> dict[str, Entry]:
    """Every file and folder of a tree with its permissions and content."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder, name)
            content = None if path.is_dir() else path.read_bytes()
            found[path.relative_to(root).as_posix()] = Entry(stat.S_IMODE(path.lstat().st_mode), content)
    return found
