"""Build ggml's own quantizers as a shared library: the oracle that golden data and live tests compare with.

The library is kept in a cache folder under a key made of the sources, the flags and the compiler, so a
second call with the same inputs builds nothing. Its path goes to stdout; `tests/support/libggml.py` finds it.

    python tools/build_libggml.py --source "$(kvquant llama fetch)"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kvquant.errors import KVQuantError, LlamaError
from kvquant.files import write_atomic
from kvquant.llama.tree import digest_tree, open_tree
from kvquant.llama.workspace import tree_commit

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "libggml"

# Contraction off: `x*id + 8.5f` must round twice, on machines with fused multiply-add as on those without.
# No native code and no fast-math for the same reason; what remains is plain IEEE arithmetic with subnormals.
FLOAT_FLAGS = "-ffp-contract=off"
ORACLE = ("-DGGML_NATIVE=OFF", f"-DCMAKE_C_FLAGS={FLOAT_FLAGS}", f"-DCMAKE_CXX_FLAGS={FLOAT_FLAGS}")
# What a user of this machine runs: SIMD kernels, default flags. Only to count how often they differ.
NATIVE = ("-DGGML_NATIVE=ON", "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON")
COMMON = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_OPENMP=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "EXAMPLES", "SERVER", "TESTS", "TOOLS")),
)


def build(source: Path, cache: Path, *, native: bool) -> Path:
    """Return the path of libggml-base.so (``native``: libggml-cpu.so) from ``source``, built if need be.

    A file `build.json` beside it records sources, flags and compiler. Raises LlamaError when the build fails.
    """
    tree = open_tree(source)
    flags = (*COMMON, *(NATIVE if native else ORACLE))
    target = "ggml-cpu" if native else "ggml-base"
    record = {
        "target": target,
        "llama_cpp_commit": tree_commit(tree),
        "sources_sha256": digest_tree(tree / "ggml"),
        "flags": list(flags),
        "compiler": _output("cc", "--version").splitlines()[0],
        "machine": _output("uname", "-m"),
    }
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    library = cache / key / f"lib{target}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _compile(tree, Path(scratch), target, flags)
            _install(Path(scratch) / "bin", library.parent, record)
    write_atomic(cache / f"{target}.path", f"{key}/{library.name}\n")
    return library


def _compile(tree: Path, scratch: Path, target: str, flags: tuple[str, ...]) -> None:
    launcher = [f"-DCMAKE_{lang}_COMPILER_LAUNCHER=ccache" for lang in ("C", "CXX") if shutil.which("ccache")]
    _output("cmake", "-S", str(tree), "-B", str(scratch), *flags, *launcher)
    _output("cmake", "--build", str(scratch), "--target", target, "--parallel", str(os.cpu_count() or 1))


def _install(built: Path, folder: Path, record: Mapping[str, object]) -> None:
    """Move the libraries from ``built`` to ``folder`` in one step; one that another build put there stays."""
    stage = built.parent / "stage"
    stage.mkdir()
    for library in built.glob("*.so*"):
        shutil.copy2(library, stage / library.name, follow_symlinks=False)
    write_atomic(stage / "build.json", json.dumps(record, indent=2) + "\n")
    try:
        stage.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _output(*command: str) -> str:
    try:
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError:
        raise LlamaError(f"{command[0]} is not installed; building ggml needs cc, c++ and cmake") from None
    except subprocess.CalledProcessError as error:
        raise LlamaError(
            f"{' '.join(command[:2])} … failed; its last lines:\n{error.stdout[-2000:]}"
        ) from None
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build ggml's quantizers as a shared library.")
    parser.add_argument("--source", type=Path, required=True, help="a llama.cpp source tree")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where to keep it (default: .cache/libggml)"
    )
    parser.add_argument("--native", action="store_true", help="the SIMD backend for this machine instead")
    arguments = parser.parse_args()
    try:
        print(build(arguments.source, arguments.cache, native=arguments.native))
    except KVQuantError as error:
        sys.exit(f"build_libggml: error: {error}")


if __name__ == "__main__":
    main()
