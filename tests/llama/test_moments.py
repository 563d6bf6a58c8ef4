"""Moments through the program: what it prints and writes is read, what is damaged is one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvquant.errors import KVQuantError, LlamaError, TransformError, UsageError
from kvquant.llama.moments import (
    PROGRAM,
    MomentsRequest,
    load_moments,
    measure_moments,
    save_moments,
)
from kvquant.transform import HeadMoments, LayerMoments, measure

RNG = np.random.default_rng(3)
LAYERS = {
    0: (RNG.standard_normal((9, 2, 4)) + 1, RNG.standard_normal((9, 4, 4))),
    2: (RNG.standard_normal((9, 1, 8)), RNG.standard_normal((9, 3, 8))),
}
EXPECTED = [measure(number, k, q) for number, (k, q) in LAYERS.items()]

# Prints the lines of `script` beside it and copies `sums` to what --output names.
FAKE = """#!{python}
import shutil, sys
from pathlib import Path
here = Path(__file__).parent
if (here / "sums").exists():
    shutil.copy(here / "sums", sys.argv[sys.argv.index("--output") + 1])
print((here / "script").read_text(), end="")
sys.exit(int((here / "status").read_text()))
"""


def weights_of(head: HeadMoments) -> tuple[float, float]:
    return head.key_weight, head.query_weight


def sums_of(layers: list[LayerMoments]) -> bytes:
    rows = [
        np.concatenate([weights_of(head), head.key_sum, head.key_square.ravel(), head.query_square.ravel()])
        for layer in layers
        for head in layer.heads
    ]
    return np.concatenate(rows).tobytes()


def lines(layers: list[LayerMoments], version: int = 2) -> list[dict[str, Any]]:
    described = [
        {
            "layer": layer.layer,
            "n_head_kv": len(layer.heads),
            "head_dim": layer.heads[0].width,
        }
        for layer in layers
    ]
    return [
        {"kind": "start", "schema_version": version, "n_text_tokens": 20, "n_tokens": 9},
        {"kind": "batch", "n_tokens": 9},
        {"kind": "end", "layers": described},
    ]


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    """Make a program that prints and writes what it is told, and the request that runs it."""

    def make(printed: str, sums: bytes | None, status: int = 0) -> MomentsRequest:
        program = tmp_path / PROGRAM
        program.write_text(FAKE.format(python=sys.executable))
        program.chmod(0o755)
        (tmp_path / "script").write_text(printed)
        (tmp_path / "status").write_text(str(status))
        if sums is not None:
            (tmp_path / "sums").write_bytes(sums)
        return MomentsRequest(tmp_path, tmp_path / "model", tmp_path / "text", n_ctx=4)

    return make


def printed(documents: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in documents)


def check_same(found: tuple[LayerMoments, ...], expected: list[LayerMoments]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.layer == other.layer
        for head, wanted in zip(one.heads, other.heads, strict=True):
            assert weights_of(head) == weights_of(wanted)
            for name in ("key_sum", "key_square", "query_square"):
                np.testing.assert_array_equal(getattr(head, name), getattr(wanted, name))


def test_what_the_program_writes_is_read(request_of: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    found = measure_moments(
        request_of(printed(lines(EXPECTED)), sums_of(EXPECTED)), lambda *at: told.append(at)
    )
    check_same(found.layers, EXPECTED)
    assert (found.n_tokens, found.n_text_tokens, told) == (9, 20, [(9, 9)])
    save_moments(found, tmp_path / "m.npz")
    again = load_moments(tmp_path / "m.npz")
    check_same(again.layers, EXPECTED)
    twice = found + again
    assert (twice.n_tokens, twice.n_text_tokens) == (18, 20) and twice.layers[0].heads[0].key_weight == 18


@pytest.mark.parametrize(
    ("text", "sums", "status", "kind", "message"),
    [
        (
            printed(lines(EXPECTED)),
            b"12345678",
            0,
            LlamaError,
            "wrote 1 numbers, which do not match its layers",
        ),
        (printed(lines(EXPECTED, version=9)), sums_of(EXPECTED), 0, LlamaError, "rebuild it"),
        (printed(lines(EXPECTED)[:2]), sums_of(EXPECTED), 0, LlamaError, "rebuild it"),
        ("{no json\n", None, 0, LlamaError, "a line that is not JSON"),
        ('{"kind": "end", "layers": 3}\n', None, 0, LlamaError, "end.layers: expected"),
        ("error: out of luck\n", None, 1, LlamaError, "ended with status 1: .*out of luck"),
        ("error: no such option\n", None, 2, UsageError, "ended with status 2"),
    ],
)
def test_what_is_damaged_is_one_line(
    request_of: Any, text: str, sums: bytes | None, status: int, kind: type[KVQuantError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        measure_moments(request_of(text, sums, status))
    assert "\n" not in str(caught.value)


def test_sums_that_are_not_finite_are_refused(request_of: Any) -> None:
    sums = np.frombuffer(sums_of(EXPECTED)).copy()
    sums[5] = np.nan
    with pytest.raises(TransformError, match="NaN or infinity"):
        measure_moments(request_of(printed(lines(EXPECTED)), sums.tobytes()))


def test_without_the_program_or_a_folder(tmp_path: Path) -> None:
    request = MomentsRequest(tmp_path, tmp_path / "model", tmp_path / "text")
    with pytest.raises(LlamaError, match="there is no llama-kv-moments in"):
        measure_moments(request)
    np.savez(tmp_path / "empty.npz", n_tokens=1, n_text_tokens=1)
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY", (tmp_path / "empty.npz").read_bytes()):
        (tmp_path / "m.npz").write_bytes(content)
        with pytest.raises(KVQuantError, match="contains no moments"):
            load_moments(tmp_path / "m.npz")
