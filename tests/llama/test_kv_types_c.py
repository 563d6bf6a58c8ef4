"""The C of 0006-kv-types, compiled by itself, against the Python formats: bytes, values, products.

KVQUANT_LLAMA_SOURCE names a llama.cpp tree; only its headers are needed. KVQUANT_CXX and KVQUANT_RUN name
another compiler and what runs its programs, such as aarch64-linux-gnu-g++ and qemu-aarch64-static.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_blocks import edge_blocks, side_by_side
from formats.checks import check_same_bytes, check_same_values
from kvquant.formats.registry import get_format
from kvquant.llama.patching.plan import make_plan
from kvquant.llama.patching.recipe import load_series

SOURCE = Path(os.environ.get("KVQUANT_LLAMA_SOURCE", ""))
SERIES = Path(__file__).resolve().parents[2] / "patches" / "llama.cpp"
COMPILER = shlex.split(os.environ.get("KVQUANT_CXX", "c++"))
RUNNER = shlex.split(os.environ.get("KVQUANT_RUN", ""))
ARM = "aarch64" in COMPILER[0]

BYTES = {"tq3": 26, "tq2": 18, "k5x3": 36, "k4x2": 28}

pytestmark = [
    pytest.mark.skipif(not (SOURCE / "ggml").is_dir(), reason="KVQUANT_LLAMA_SOURCE names no llama.cpp tree"),
    pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason=f"no {COMPILER[0]}"),
]

# Reads n, n rows of 64 floats and as many of q8_0; writes the bytes, the values and the product of each row.
PROGRAM = r"""
#include "kv-types.h"
#include "kv-types-cpu.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
extern "C" {
float ggml_table_f32_f16[1 << 16];
float ggml_table_f32_e8m0_half[1 << 8];
float ggml_table_f32_ue4m3[1 << 8];
void ggml_abort(const char *, int, const char *, ...) { abort(); }
}
int main(void) {
    int n;
    if (fread(&n, 4, 1, stdin) != 1 || fread(ggml_table_f32_f16, 4, 1 << 16, stdin) != 1 << 16) return 1;
    float * x = (float *) malloc(n*64*sizeof(float));
    char  * q = (char *) malloc(n*68);
    if (fread(x, 256, n, stdin) != (size_t) n || fread(q, 68, n, stdin) != (size_t) n) return 1;
    for (int t = 0; t < 4; ++t) {
        const ggml_type type = (ggml_type) (GGML_TYPE_KV_FIRST + t);
        const struct ggml_type_traits     * base = ggml_kv_type_traits(type);
        const struct ggml_type_traits_cpu * cpu  = ggml_kv_type_traits_cpu(type);
        for (int i = 0; i < n; ++i) {
            char bytes[64];
            float values[64], product;
            char other[64];
            cpu->from_float(x + 64*i, bytes, 64);
            base->from_float_ref(x + 64*i, other, 64);
            if (memcmp(bytes, other, base->type_size) != 0) return 2;
            base->to_float(bytes, values, 64);
            cpu->vec_dot(64, &product, 0, bytes, 0, q + 68*i, 0, 1);
            fwrite(bytes, 1, base->type_size, stdout);
            fwrite(values, 4, 64, stdout);
            fwrite(&product, 4, 1, stdout);
        }
    }
    return 0;
}
"""

FLAGS = {
    "plain": "-O2",
    "fused": "-O3 -march=armv8.2-a+dotprod+fp16" if ARM else "-O3 -march=native -ffp-contract=fast",
    "wide": "-O3 -march=armv8-a" if ARM else "-O3 -mavx2 -mfma -mf16c",
}


@cache
def patched() -> dict[str, bytes]:
    """Return the files of ggml that the series adds or changes."""

    def read(path: str) -> bytes | None:
        file = SOURCE / path
        return file.read_bytes() if file.is_file() else None

    plan = make_plan(load_series(SERIES), read)
    assert not plan.failures, plan.failures
    return {change.path: change.after for change in plan.changes if change.path.startswith("ggml/")}


@pytest.fixture(scope="module", params=FLAGS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, compiled with one set of flags against the headers of the patched tree."""
    folder = tmp_path_factory.mktemp("c")
    for part in ("include", "src", "src/ggml-cpu"):
        (folder / "ggml" / part).mkdir(parents=True, exist_ok=True)
        for header in (SOURCE / "ggml" / part).glob("*.h"):
            shutil.copy(header, folder / "ggml" / part)
    for path, data in patched().items():
        if (folder / path).parent.is_dir():
            (folder / path).write_bytes(data)
    (folder / "main.cpp").write_text(PROGRAM)
    ggml = folder / "ggml"
    sources = [
        folder / "main.cpp",
        ggml / "src" / "kv-types.c",
        ggml / "src" / "ggml-cpu" / "kv-types-cpu.cpp",
    ]
    folders = [f"-I{ggml / part}" for part in ("include", "src", "src/ggml-cpu")]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unused-parameter"]
    flags = [*FLAGS[request.param].split(), *warnings]
    objects = []
    for source in sources:
        objects.append(str(folder / f"{source.stem}.o"))
        language = ["-x", "c", "-std=gnu11"] if source.suffix == ".c" else ["-std=gnu++17"]
        subprocess.run(
            [*COMPILER, *flags, *language, *folders, "-c", str(source), "-o", objects[-1]], check=True
        )
    output = ["-o", str(folder / "program"), "-lm", *["-static"] * bool(RUNNER)]
    subprocess.run([*COMPILER, *objects, *output], check=True)
    return folder / "program"


def inputs() -> npt.NDArray[np.float32]:
    """Edge blocks and normal ones, float32 (n, 64), a NaN and an infinity among them."""
    x = np.concatenate(
        [
            side_by_side(edge_blocks(24, seed=11)),
            np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32),
        ]
    )
    x[5, 3], x[6, 40] = np.nan, -np.inf
    return x.astype(np.float32)


def test_bytes_values_and_products(program: Path) -> None:
    x, q8_0 = inputs(), get_format("q8_0")
    queries = q8_0.quantize(np.random.default_rng(1).standard_normal(x.shape).astype(np.float32))
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    sent = np.int32(len(x)).tobytes() + table.tobytes() + x.tobytes() + queries.tobytes()
    out = subprocess.run([*RUNNER, str(program)], input=sent, stdout=subprocess.PIPE, check=True).stdout
    exact = q8_0.dequantize(queries, 64).astype(np.float64)
    for name, n_bytes in BYTES.items():
        rows = np.frombuffer(out[: len(x) * (n_bytes + 260)], np.uint8).reshape(len(x), -1)
        out = out[rows.size :]
        fmt = get_format(name)
        packed = fmt.quantize(x)
        check_same_bytes(rows[:, :n_bytes], packed, x, name)
        values = fmt.dequantize(packed, 64)
        check_same_values(np.ascontiguousarray(rows[:, n_bytes:-4]).view(np.float32), values, name)
        products = np.ascontiguousarray(rows[:, -4:]).view(np.float32)[:, 0].astype(np.float64)
        usable = np.isfinite(values).all(axis=1)
        terms = values[usable].astype(np.float64) * exact[usable]
        # Two float32 products and sums of exact integers: a few roundings.
        bound = 2.0**-22 * np.abs(terms).sum(axis=1) + 2.0**-120
        assert (np.abs(products[usable] - terms.sum(axis=1)) <= bound).all(), name
    assert not out
