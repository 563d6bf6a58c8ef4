"""A llama.cpp-like tree that cmake really builds, in a second: a server of a few lines."""

from __future__ import annotations

from pathlib import Path

from kvquant.llama.patching.recipe import Series
from llama.patch_trees import make_series

CMAKE = """
cmake_minimum_required(VERSION 3.14)
project("llama.cpp" C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
foreach(program llama-server llama-bench)
    add_executable(${program} server.cpp)
endforeach()
"""

SERVER = r"""
#include <cstdio>
#include <cstring>
int main(int argc, char ** argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            puts("usage: --model FILE");
            return 0;
        }
    }
    puts("system_info: n_threads = 2 / 2 | CPU : AVX2 = 1 | DOTPROD = 1 | FP16_VA = 0 | ");
    return 1;
}
"""

RECIPE = """
purpose = "Take the flag."
[[edit]]
id = "usage"
why = "Because of usage."
file = "server.cpp"
find = "usage: --model FILE"
action = "insert-after"
text = " --kv-layers POLICY"
"""


def make_project(root: Path, server: str = SERVER, cmake: str = CMAKE) -> Path:
    root.mkdir(parents=True)
    (root / "CMakeLists.txt").write_text(cmake)
    (root / "server.cpp").write_text(server)
    (root / "LICENSE").write_text("MIT\n")
    return root


def flag_series(folder: Path, comment: str = "") -> Series:
    return make_series(folder, RECIPE + comment, files={})
