"""The tables of docs/turboquant.md on tq3, tq2, k5x3 and k4x2, from format_study.py and format_distortion.py.

python benchmarks/format_tables.py          # print them
python benchmarks/format_tables.py --write  # put them into the page
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transform_tables import MODELS, digits, matching, show, table

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "benchmarks/results/format-study.jsonl"
DISTORTION = ROOT / "benchmarks/results/format-distortion.json"
PAGE = ROOT / "docs/turboquant.md"

CHOICES = {
    "l{}n1": "one try, scale: the norm",
    "l{}s1": "one try, least squares",
    "l{}c1": "one try, norm kept",
    "l{}b1": "one try, product kept",
    "g{}c1": "codebook of the Gaussian limit, norm kept",
    "l{}c2": "two norms tried, norm kept",
    "l{}b2": "two norms tried, product kept",
    "l{}c3": "three norms tried, norm kept",
    "p{}c1": "by the peak, norm kept",
    "p{}c2": "two places of the peak, norm kept",
    "p{}b2": "two places of the peak, product kept",
    "p{}c3": "three places of the peak, norm kept",
    "a{}n1": "q4_0's rule",
    "a{}s1": "q4_0's rule, least squares",
    "a{}c3": "q4_0's rule, three tries, norm kept",
    "a{}s3": "q4_0's rule, three tries, least squares",
}
"""Quantizers of `format_study` in words."""

PARTS = ((64, 3), (64, 2), (32, 5), (32, 4), (32, 3), (32, 2))

Records = list[dict[str, Any]]


def study() -> Records:
    """Return the records, without the lines that say what was run; none before the study was."""
    lines = STUDY.read_text().splitlines() if STUDY.exists() else []
    return [record for record in map(json.loads, lines) if "started" not in record]


def distortion() -> dict[str, Any]:
    """Return the record of squared errors."""
    found: dict[str, Any] = json.loads(DISTORTION.read_text())
    return found


def tables() -> dict[str, str]:
    """Return table name to table."""
    records, lost = study(), distortion()
    models = [model for model in MODELS if any(record["model"] == model for record in records)]

    def by_model(rows: Iterator[tuple[str, Mapping[str, Any]]]) -> str:
        body = []
        for name, key in rows:
            found = [matching(records, {"model": model, **key}) for model in models]
            if any(found):
                body.append([name, *(digits(cell[0]["kl"]) if cell else "" for cell in found)])
        return table(["", *(MODELS[model] for model in models)], body)

    return {
        "format-values": by_model(_values()),
        "format-keys": by_model(_keys()),
        "format-halves": by_model(_halves()),
        "format-distortion": _lost(lost),
        "format-sizes": table(
            ["format", "values", "lost"],
            [
                [entry["format"], f"{entry['values'][0]} to {entry['values'][1] - 1}", f"{entry['lost']:.3g}"]
                for entry in lost["formats"]
            ],
        ),
    }


def _single(bits: int) -> Iterator[tuple[str, str]]:
    for how, words in CHOICES.items():
        if not (bits == 2 and how.startswith("p")):
            yield f"{bits} bits, {words}", f"64{how.format(bits)}"


def _values() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for bits in (3, 2):
        for words, name in _single(bits):
            yield words, {"k": "f16", "v": name}


def _keys() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for bits in (3, 2):
        for words, name in _single(bits):
            yield words, {"k": name, "transform": "diagonal"}


def _halves() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for transform, kind in (("balanced", "balanced"), ("diagonal", "diagonal")):
        for strong, weak in ((5, 3), (4, 2)):
            for how, words in CHOICES.items():
                left, right = how.format(strong), (how.replace("p", "l") if weak == 2 else how).format(weak)
                yield (
                    f"{kind}, {strong} + {weak}: {words}",
                    {"k": f"32{left}+32{right}", "transform": transform},
                )
            for how in ("a{}n1", "p{}c2"):
                weak_how = (how.replace("p", "l") if weak == 2 else how).format(weak)
                three = f"16{how.format(strong)}+16{how.format(strong - 1)}+32{weak_how}"
                words = f"{kind}, {strong} + {strong - 1} + {weak}: {CHOICES[how]}"
                yield words, {"k": three, "transform": transform}
        for how in ("a4n1", "a4s1", "a4c3", "a4s3", "p4c2"):
            yield (
                f"{kind}, 4 bits: {CHOICES[how.replace('4', '{}')]}",
                {"k": f"32{how}", "transform": transform},
            )


def _lost(record: Mapping[str, Any]) -> str:
    found = {(entry["n"], entry["bits"], entry["choice"]): entry["lost"] for entry in record["choices"]}
    body = [["exact, one try, the norm", *(_share(found, *part, "exact, norm") for part in PARTS)]]
    body += [
        [words, *(_share(found, *part, how.format("")) for part in PARTS)] for how, words in CHOICES.items()
    ]
    head = ["", *(f"{n} values, {bits} bits" for n, bits in PARTS)]
    return table(head, [row for row in body if any(row[1:])])


def _share(found: Mapping[tuple[int, int, str], float], n: int, bits: int, choice: str) -> str:
    return f"{found[n, bits, choice]:.3g}" if (n, bits, choice) in found else ""


if __name__ == "__main__":
    show(__doc__, PAGE, tables())
