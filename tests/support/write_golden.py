"""Write tests/golden/: inputs, the bytes ggml makes of them, and the values it reads from bytes.

Only this script writes there, and only from a library that `tools/build_libggml.py` built from the pinned
tree.

    python tools/build_libggml.py --source "$(kvquant llama fetch)"
    python tests/support/write_golden.py            write the files
    python tests/support/write_golden.py --check    exit 3 when the library would write something else
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_blocks import SIZE, edge_blocks, side_by_side
from kvquant.errors import LlamaError
from kvquant.files import write_atomic
from kvquant.formats.ggml import COMMIT
from kvquant.formats.registry import OWN_TYPES, UPSTREAM_TYPES, get_format
from libggml import LibGGML, find_library

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FORMATS = (*UPSTREAM_TYPES, "iq4_nl_cache")
PLAIN = {"f32": 4, "f16": 2, "bf16": 2}

# fp16 scales that matter when reading: zeros, subnormals, the ends of the range, infinities, a NaN, one.
_SCALES = (0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x3C00)


def encoded(ggml: LibGGML) -> dict[str, dict[str, npt.NDArray[np.generic]]]:
    """Return file name -> arrays: the inputs by group; per format the packed groups and stored rows, read."""
    inputs = edge_blocks(n_blocks=8)
    files: dict[str, dict[str, npt.NDArray[np.generic]]] = {"inputs.npz": dict(inputs)}
    for name in FORMATS:
        packed = {group: ggml.quantize(x, name) for group, x in inputs.items()}
        stored = stored_rows(ggml.n_bytes(SIZE, name), scaled=name not in PLAIN)
        files[f"{name}.npz"] = {
            **packed,
            "stored": stored,
            "stored_values": ggml.dequantize(stored, name, SIZE),
        }
    # Not ggml's: tests/llama/test_kv_types_c.py holds the series' C to the same functions.
    rows = side_by_side(inputs)
    files["own_types.npz"] = {name: get_format(name).quantize(rows) for name in OWN_TYPES}
    return files


def stored_rows(n_bytes: int, *, scaled: bool) -> npt.NDArray[np.uint8]:
    """Return rows of random bytes as a cache might hold them, the leading fp16 scales from `_SCALES`."""
    rows = np.random.default_rng(1).integers(0, 256, (2 * len(_SCALES), n_bytes), dtype=np.uint8)
    if scaled:
        rows[: len(_SCALES), :2] = np.array(_SCALES, "<u2").view(np.uint8).reshape(-1, 2)
    return rows


def npz(arrays: dict[str, npt.NDArray[np.generic]]) -> bytes:
    """Return an NPZ file; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def differs(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> bool:
    """Return whether the file at ``path`` holds anything but ``arrays``, bit for bit."""
    if not path.exists():
        return True
    with np.load(path) as file:
        return set(file) != set(arrays) or any(file[key].tobytes() != arrays[key].tobytes() for key in arrays)


def pinned_library() -> tuple[Path, dict[str, object]]:
    """Return the library and its build record. Raises LlamaError unless built here from the pinned commit."""
    library = find_library()
    if library is None:
        raise LlamaError('no libggml; run tools/build_libggml.py --source "$(kvquant llama fetch)" first')
    record = library.parent / "build.json"
    build: dict[str, object] = json.loads(record.read_text()) if record.exists() else {}
    if build.get("llama_cpp_commit") != COMMIT:
        raise LlamaError(
            f"{library} is from commit {build.get('llama_cpp_commit')}, golden data come from {COMMIT}; "
            "build it with tools/build_libggml.py from the tree that `kvquant llama fetch` prints"
        )
    return library, build


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tests/golden from the pinned ggml.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 3 when a file would change")
    arguments = parser.parse_args()
    try:
        library, provenance = pinned_library()
    except LlamaError as error:
        sys.exit(f"write_golden: error: {error}")
    files = encoded(LibGGML(library))
    changed = [name for name, arrays in files.items() if differs(GOLDEN / name, arrays)]
    if arguments.check:
        print(f"golden files that differ: {', '.join(changed) or 'none'}")
        sys.exit(3 if changed else 0)
    for name in changed:
        write_atomic(GOLDEN / name, npz(files[name]))
    write_atomic(GOLDEN / "provenance.json", json.dumps(provenance, indent=2) + "\n")
    print(f"wrote {', '.join(changed) or 'nothing new'}", file=sys.stderr)


if __name__ == "__main__":
    main()
