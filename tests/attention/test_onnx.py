"""Attention beside ONNX Runtime: the page says what the record says, and what is not the same is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmark_scripts import load_benchmark

onnx = load_benchmark("attention_onnx")


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(onnx.RECORD.read_text())
    return found


def spread(work: str, kind: str) -> tuple[float, float]:
    """The least and the largest ratio of a phase and type, over shapes and depths."""
    ratios = [one.ratio for one in onnx.timings(record()) if (one.work, one.type) == (work, kind)]
    assert len(ratios) >= len(onnx.SHAPES)
    return min(ratios), max(ratios)


def test_the_page_shows_the_record() -> None:
    page = onnx.PAGE.read_text(encoding="utf-8")
    assert onnx.page(record()) == page
    said = " ".join(page.split())
    assert f"ONNX Runtime {record()['onnxruntime']} computes" in said
    for words, work, kind in (
        ("A token takes it {:.1f} to {:.1f} times as long over 8-bit caches", "decode", "q8_0"),
        ("and {:.1f} to {:.1f} times over 4-bit ones;", "decode", "q4_0"),
        ("256 tokens of prefill {:.1f} to {:.1f} and", "prefill", "q8_0"),
        ("and {:.1f} to {:.1f} times. Over floats", "prefill", "q4_0"),
        ("{:.1f} to {:.1f} times as long for a token, and", "decode", "f16"),
        ("and {:.1f} to {:.1f} times in prefill.", "prefill", "f16"),
    ):
        assert words.format(*spread(work, kind)) in said, words
    least = min((one for one in onnx.timings(record()) if one.work == "decode"), key=lambda one: one.ratio)
    assert (least.shape, least.type) == ("groups of 2", "q8_0")


def test_a_ratio_is_the_median_of_those_of_rounds() -> None:
    one = onnx.Timing("decode", "shape", "q8_0", 8, (1.0, 2.0, 4.0), (3.0, 4.0, 4.0))
    assert one.ratio == 2
    assert onnx.table([one]).rows == (("decode", "8", "shape", "q8_0, int8", "2", "4", "2.00"),)


def answering(answer: str) -> subprocess.Popen[str]:
    """A process that answers every line with the same."""
    code = f"import sys\nfor _ in sys.stdin: print({answer!r}, flush=True)"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"seconds": 1.0, "error": 0.1}', "not the same attention"),
        ('{"seconds": 1.0, "error": NaN}', "not the same attention"),
    ],
)
def test_another_attention_is_refused(answer: str, words: str) -> None:
    with answering(answer) as process, pytest.raises(SystemExit, match=words):
        try:
            onnx.ask(process, {"type": "int8"})
        finally:
            onnx.pipes(process)[0].close()


def test_what_is_exact_is_timed() -> None:
    with answering('{"seconds": 0.5, "error": 1e-7}') as process:
        assert onnx.ask(process, {"type": "int8"}) == 0.5
        onnx.pipes(process)[0].close()
