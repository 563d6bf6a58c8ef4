"""Figures and tables, made from records like the committed ones."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import measure_reference_model
from reference_model.figures import (
    difference_figure,
    read_log,
    response_figure,
    sensitivity_figure,
    training_figure,
)
from reference_model.tables import page

LOG = "\n".join(
    json.dumps(
        {"stage": stage, "step": 1, "n_layer": 4, "n_tokens": n, "seconds": 1.0, "loss": 9 - n, "score": 0.5,
         "right": {"recall": n / 10, "chat": 0.1}}
    )
    for n, stage in enumerate(["first", "first", "second"])
)  # fmt: skip


def result(name: str) -> dict[str, object]:
    return {
        "name": name,
        "recall": {
            "32 pairs": {
                "n_right": 30,
                "n": 32,
                "low": 0.8,
                "high": 0.98,
                "n_lost": 2,
                "n_gained": 1,
                "difference": [-0.13, 0.07],
                "p": 1.0,
            }
        },
        "divergence": {"mean": 0.01, "error": 0.001},
        "answer_divergence": {"mean": 0.02, "error": 0.001},
    }


FIGURES = {
    "training": lambda: training_figure(read_log(LOG), read_log(LOG)),
    "response": lambda: response_figure([result("f16"), result("q4_0")]),
    "differences": lambda: difference_figure(
        [result("f16"), result("q4_0")], [result("f16"), result("q8_0")]
    ),
    "layers": lambda: sensitivity_figure(
        [result(f"{side}{layer}") for layer in range(2) for side in "kv"],
        [{"layer": layer, "without_attention": 0.1, "without_layer": 0.2} for layer in range(2)],
        "q4_0",
    ),
}
SHOWN = {
    "training": ["another seed", "recall", "chat", "second (4)", "tokens read (million)"],
    "response": ["q4_0", "32 pairs", "answers"],
    "differences": ["q4_0", "q8_0", "32 pairs", "recall, change from f16 (percentage points)"],
    "layers": ["K", "V", "layer", "without its attention"],
}


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_a_figure_is_svg_that_names_what_it_shows(name):
    svg = FIGURES[name]()
    texts = {element.text for element in ET.fromstring(svg).iter() if element.text}
    assert set(SHOWN[name]) <= texts


def test_the_page_has_a_row_for_every_setting_and_layer():
    settings = [
        {**result(name), "perplexity": 2.0, "answer_perplexity": 1.5, "same_top": 0.75} for name in "ab"
    ]
    source = {"commit": "c0ffee", "model_sha256": "beef", "torch": "2", "arguments": {"pairs": [32]}}
    layers = {
        "provenance": source,
        "type": "q4_0",
        "results": [result(f"{side}{layer}") for layer in range(2) for side in "kv"],
        "ablations": [{"layer": n, "without_attention": 0.1, "without_layer": 0.2} for n in range(2)],
    }
    uniform = {"provenance": source, "results": settings}
    text = page({"uniform": uniform, "long": uniform, "layers": layers})
    assert "| a | 2.000 | 1.500 | 0.01000 ± 0.00100 | 0.02000 ± 0.00100 | 75.00 % |" in text
    assert "| a | 93.8 % (80.0–98.0) |  |" in text
    assert "| b | 93.8 % (80.0–98.0) | -3.1 (-13.0 to +7.0), p 1 |" in text
    assert "| 1 | 0.010000 | 0.010000 | 0.1000 | 0.2000 |" in text
    assert "32 pairs: 32 questions." in text


@pytest.mark.parametrize("name", sorted(FIGURES))
def test_the_same_record_gives_the_same_bytes(name):
    assert FIGURES[name]() == FIGURES[name]()


def test_the_committed_figures_are_what_the_records_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, committed = tmp_path, measure_reference_model.FIGURES
    record = json.loads((measure_reference_model.FOLDER / "curves.json").read_text())
    monkeypatch.setattr(measure_reference_model, "FIGURES", drawn)
    measure_reference_model.draw(record)
    names = sorted(path.name for path in drawn.iterdir())
    assert names == [f"reference-{name}.svg" for name in sorted(FIGURES)]
    for name in names:
        assert (drawn / name).read_text() == (committed / name).read_text(), f"draw {name} again"
