"""A calibration in words and as a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvquant.report.calibration import calibration_text, verdict, write_figure
from kvquant.results.calibration import (
    CalibrationResult,
    DepthKL,
    Judgement,
    LayerCalibration,
    Trial,
)
from kvquant.results.comparison import Interval
from kvquant.results.divergence import FileUsed
from kvquant.results.transform import TransformUsed

GAINS = {"centre": 1.5, "centre, diagonal": 6.25}
BETTER = Judgement(
    896,
    0.05,
    0.01,
    Interval(-0.05, -0.03),
    (DepthKL(64, 287, 0.04, 0.008), DepthKL(288, 510, 0.06, 0.012)),
    True,
)
RESULT = CalibrationResult(
    model=FileUsed("m.gguf", "ab" * 32),
    text=FileUsed("book.txt", "cd" * 32),
    build=None,
    n_ctx=512,
    contexts={"512": 6144, "64": 2048},
    policy="*:q4_0",
    kind="auto",
    layers=(LayerCalibration(0, "centre, diagonal", GAINS), LayerCalibration(3, "none", GAINS)),
    trials=(Trial("none", 0.05, False), Trial("centre, diagonal", 0.01, True)),
    judgement=BETTER,
    transform=TransformUsed("t.gguf", "ef" * 32, 4096, 512, 1),
    seconds={"fitting": 12.4, "choosing": 60.0, "judging": 20.0},
    provenance={},
)


def judged(**change: object) -> CalibrationResult:
    return replace(RESULT, judgement=replace(BETTER, **change))  # type: ignore[arg-type]


def test_the_text_says_what_was_found() -> None:
    lines = calibration_text(RESULT).splitlines()
    assert lines[0] == (
        "m.gguf calibrated on book.txt: 8192 tokens in chunks of 512 and 64, judged with q4_0"
    )
    assert [line.split() for line in lines[2:5]] == [
        ["layer", "kind", "centre", "dB", "centre,", "diagonal", "dB"],
        ["0", "centre,", "diagonal", "1.5", "6.2"],
        ["3", "none", "1.5", "6.2"],
    ]
    text = "\n".join(lines)
    assert "896 held-out tokens: KL 0.05 without, 0.01 with; difference -0.05 to -0.03 (95 %)" in text
    assert "288-510" in text and "took fitting 12 s, choosing 60 s, judging 20 s" in text
    assert lines[-1] == f"t.gguf: 1 layers, 4.00 KiB, digest {'ef' * 32}"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (RESULT, "KL 0.20 times as large with the transform, to 512 tokens"),
        (judged(kl_with=0.09, better=False), "the transform is harmful: KL 1.80 times"),
        (judged(kl_with=0.049, better=False), "the gain cannot be told from chance"),
        (
            replace(RESULT, layers=(LayerCalibration(0, "none", GAINS),)),
            "no kind is clearly better than none",
        ),
    ],
)
def test_the_verdict(result: CalibrationResult, said: str) -> None:
    assert verdict(result).startswith(said)
    assert verdict(result) in calibration_text(result)


@pytest.mark.parametrize("name", ["a.svg", "a.png"])
def test_the_figure_has_every_kind(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    write_figure(RESULT, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    write_figure(RESULT, tmp_path / name)
    assert data == (tmp_path / name).read_bytes()
    if name.endswith("svg"):
        assert all(words in data.decode() for words in (*GAINS, "taken", "Predicted gain, dB"))
