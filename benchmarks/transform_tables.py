"""The tables of docs/transform.md, from the records of transform_study.py and transform_real.py.

python benchmarks/transform_tables.py          # print them
python benchmarks/transform_tables.py --write  # put them into the page
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import real_tasks
from kvquant.documents import read_json
from kvquant.results.calibration import CalibrationResult
from kvquant.results.divergence import DivergenceResult, PolicyDivergence
from marked_page import filled

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/transform-study.jsonl"
WEIGHTED = ROOT / "benchmarks/results/transform-weights.jsonl"
REAL = ROOT / "benchmarks/results/transform"
EXACT = ROOT / "benchmarks/results"
COST = ROOT / "benchmarks/results/transform-cost.json"
PAGE = ROOT / "docs/transform.md"

MODELS = {
    "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B",
    "smollm2-135m": "SmolLM2-135M",
    "gemma3-270m": "Gemma-3-270M",
}
REAL_MODELS = {**MODELS, "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B"}
"""The models of the study, and those that only llama.cpp was measured with."""

ALL_ALIKE = ("13f5f9db7ed1", "9478b1006a92", "244a6c9dea83", "950fe3d97d7d")
"""Series of patches whose llama-kv-moments counted all keys and queries alike, by how their digests begin."""

RECIPES = {
    "none": "rotation alone",
    "centre": "centre",
    "diagonal-uncentred": "diagonal",
    "diagonal": "centre, diagonal",
    "balanced-uncentred": "balanced",
    "balanced": "centre, balanced",
}
TYPES = ("q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0", "tq3", "tq2")
BITS = {"q4_0": 4.5, "s53": 4.5, "l53": 4.5, "s62": 4.5, "s42": 3.5, "l42": 3.5, "s33": 3.5, "l33": 3.5}
BITS |= {"tq3": 3.25, "s31": 2.5, "l31": 2.5, "tq2": 2.25}
PAIRS = (
    "q8_0 q4_0",
    "q5_0 q5_0",
    "q4_0 q4_0",
    "q8_0 tq3",
    "q5_0 tq3",
    "q4_0 tq3",
    "tq3 tq3",
    "s53 q4_0",
    "s42 tq3",
)
DEFAULTS = {
    "n_ctx": 512,
    "v": "f16",
    "transform": "none",
    "fit_ctx": 512,
    "exact_first": 0,
    "rotate": True,
    "shrink": 0.0,
    "floor": 1e-4,
    "scale": "norm",
    "weights": "none",
}
"""What a setting is where a table does not say."""

Records = list[dict[str, Any]]
Key = Mapping[str, Any]


def read(path: Path = RECORD) -> Records:
    """Return the settings of a record, without the lines that begin a run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "started" not in line]


def tables(records: Records) -> dict[str, str]:
    """Return every table by the name of its markers."""
    by_model = {
        "depth": ("fitted at, used at, kind", dict(_depths())),
        "values": ("V", dict(_values())),
        "pairs": ("K and V, kind", dict(_pairs())),
        "split": ("K, bits a value, kind", dict(_splits())),
        "tried": ("q4_0 keys", dict(_tried())),
    }
    found = {f"keys-{model}": _keys(records, model) for model in MODELS}
    for name, (head, rows) in by_model.items():
        cells = {row: [{"model": model, **key} for model in MODELS] for row, key in rows.items()}
        found[name] = _table(records, [head, *MODELS.values()], cells)
    weighted = {row: [{"model": model, **key} for model in MODELS] for row, key in _weights()}
    return found | {
        "weights": _table(read(WEIGHTED), ["q4_0 keys", *MODELS.values()], weighted),
        "calibrations": _calibrations(),
        "answers": _answers(),
        "real": _real(),
        "types": _types(),
        "exact": _exact(),
        "cost": _cost(),
    }


def calibrations() -> dict[str, CalibrationResult]:
    """Return the calibrations that are on record, by MODEL.CONTEXT."""
    paths = sorted(REAL.glob("*.calibration.json"), key=_order)
    return {path.name.removesuffix(".calibration.json"): read_json(CalibrationResult, path) for path in paths}


def divergences() -> dict[str, DivergenceResult]:
    """Return the measurements that are on record, by MODEL.CONTEXT[.fitted-CONTEXT].TEXT."""
    paths = [path for path in REAL.glob("*.json") if not path.name.endswith(".calibration.json")]
    return {path.stem: read_json(DivergenceResult, path) for path in sorted(paths, key=_order)}


def of_own_types(name: str) -> bool:
    """Whether a record is of the types that the series adds, calibrated for them."""
    return ".types" in name


def _parts(name: str) -> tuple[str, int, int | None]:
    """The model, the context, and where it differs the context of the calibration, of a record's name."""
    model = next(model for model in REAL_MODELS if name.startswith(model))
    n_ctx, _, rest = name.removeprefix(f"{model}.").partition(".")
    fitted = re.search(r"fitted-(\d+)", rest)
    return model, int(n_ctx), int(fitted[1]) if fitted else None


def _order(path: Path) -> tuple[int, int, str]:
    model, n_ctx, _ = _parts(path.name)
    return list(REAL_MODELS).index(model), n_ctx, path.name


def _model_words(name: str) -> str:
    model, n_ctx, fitted = _parts(name)
    words = f"{REAL_MODELS[model]}, {n_ctx:,}" + (f" (calibrated to {fitted:,})" if fitted else "")
    return words + ", ordered" * of_own_types(name) + _mark(name)


def _mark(name: str) -> str:
    """What tells apart the records whose file was fitted to moments that were not weighed."""
    model, n_ctx, fitted = _parts(name)
    path = REAL / f"{model}.{fitted or n_ctx}{'.types' * of_own_types(name)}.calibration.json"
    build = read_json(CalibrationResult, path).build
    weighed = build is not None and not (build[1] or "").startswith(ALL_ALIKE)
    return "" if weighed else " \\*"


def _calibrations() -> str:
    head = [
        "model, context",
        "layers by what they take",
        "held-out KL without",
        "with",
        "95 % of the difference",
        "minutes",
    ]
    body = []
    for name, found in calibrations().items():
        kinds = Counter(layer.kind for layer in found.layers)
        judged = found.judgement
        change = "" if judged.change is None else f"{judged.change.low:.2g} to {judged.change.high:.2g}"
        cells = (
            _model_words(name),
            ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
            digits(judged.kl_without),
            digits(judged.kl_with),
            change,
            f"{sum(found.seconds.values()) / 60:.0f}",
        )
        body.append(cells)
    return table(head, body)


def _answers() -> str:
    """Right answers under q4_0 with and without a transform, of every validation that has both."""
    rows = []
    for result in real_tasks.records().values():
        totals = {
            one.transform is not None: one.total for one in result.policies if one.policy[:6] == "*:q4_0"
        }
        calibrated, plain = totals.get(True), totals.get(False)
        if calibrated is not None and plain is not None:
            right = (calibrated.n_right, *(row.n_both + row.n_gained for row in (calibrated, plain)))
            name = f"{REAL_MODELS[real_tasks.model_name(result)]}, {result.suite.name}"
            rows.append([name, *map(str, (calibrated.n, *right))])
    return table(["", "questions", "float16", "q4_0 with the file", "q4_0 without"], rows)


def _real() -> str:
    """One row for a model, context and policy; prose and code, each without and with."""
    head = ["model, context", "policy", "of f16", "prose without", "with", "code without", "with"]
    body = []
    found = divergences()
    for name in dict.fromkeys(key.rpartition(".")[0] for key in found if not of_own_types(key)):
        results, policies = _both_texts(found, name)
        words = _model_words(name)
        for policy, one in policies.items():
            cells = [cell for result in results for cell in _pair(result, policy)]
            shown = policy.removeprefix("*:")
            body.append([words, shown, f"{one.of_f16:.3f}", *cells])
    return table(head, body)


def _both_texts(
    found: Mapping[str, DivergenceResult], name: str
) -> tuple[list[DivergenceResult | None], dict[str, PolicyDivergence]]:
    """Return what was measured on prose and on code, None where nothing was, and the policies by name."""
    results = [found.get(f"{name}.{text}") for text in ("prose", "code")]
    return results, {p.policy: p for result in results if result for p in result.policies}


def _types() -> str:
    """One row for a model and policy; prose and code, each without and with an ordering transform."""
    found = divergences()
    names = dict.fromkeys(key.rpartition(".")[0] for key in found if of_own_types(key))
    rows = []
    for name in names:
        results, policies = _both_texts(found, name)
        model = REAL_MODELS[_parts(name)[0]] + _mark(name)
        for policy, one in sorted(policies.items(), key=lambda entry: -entry[1].kv_bytes):
            cells = [cell for result in results for cell in _pair(result, policy)]
            rows.append([model, policy.removeprefix("*:"), f"{one.of_f16:.3f}", *cells])
    return table(["model", "policy", "of f16", "prose without", "with", "code without", "with"], rows)


def _exact() -> str:
    """Of each model: by how much predictions change, and by how much where keys are rounded to float16."""
    places = ("at once", "restored", "shifted")
    body = []
    for model, title in MODELS.items():
        path = EXACT / f"transform-exact-{model}.json"
        for change, found in json.loads(path.read_text())["differences"].items() if path.exists() else ():
            cells = ["other tokens" if found[place] is None else f"{found[place]:.1e}" for place in places]
            body.append([title, change, *cells])
    return table(["model", "change", *places], body)


def _cost() -> str:
    """Processor time with a transform by that without, the median of the rounds and their range."""
    body = []
    for row in json.loads(COST.read_text())["summary"] if COST.exists() else ():
        cells = [
            "{median:.3f} ({least:.3f} to {most:.3f})".format(**row[phase]) for phase in ("prefill", "decode")
        ]
        body.append([row["arm"], str(row["depth"]), *cells, f"{row['allowed']:.2f}"])
    return table(["transform", "depth", "prefill", "decode", "target"], body)


def _pair(result: DivergenceResult | None, policy: str) -> tuple[str, str]:
    if result is None:
        return "", ""
    of_policy = [found for found in result.policies if found.policy == policy]
    kl = {found.transform is not None: found.kl_mean for found in of_policy}
    without, calibrated = (kl.get(key) for key in (False, True))
    return tuple("" if value is None else digits(value) for value in (without, calibrated))  # type: ignore[return-value]


def _keys(records: Records, model: str) -> str:
    kinds: dict[str, Key] = {words: {"transform": name} for name, words in RECIPES.items()}
    kinds["no rotation"] = {"rotate": False}
    rows = {k: [{"model": model, "k": k, **kind} for kind in kinds.values()] for k in TYPES}
    return _table(records, ["K", *kinds], rows)


def _depths() -> Iterator[tuple[str, Key]]:
    for n_ctx in (512, 4096, 16384):
        yield f"-, {n_ctx:,}, {RECIPES['none']}", {"n_ctx": n_ctx, "k": "q4_0"}
        for transform in ("centre", "diagonal", "balanced", "balanced-uncentred"):
            for fit_ctx in (512, 4096, 16384):
                name = f"{fit_ctx:,}, {n_ctx:,}, {RECIPES[transform]}"
                yield name, {"n_ctx": n_ctx, "k": "q4_0", "transform": transform, "fit_ctx": fit_ctx}


def _values() -> Iterator[tuple[str, Key]]:
    for v in TYPES:
        yield v, {"k": "f16", "v": v}
    for v in ("tq3", "tq2"):
        for scale in ("corrected", "searched"):
            yield f"{v}, scale {scale}", {"k": "f16", "v": v, "scale": scale}


def _pairs() -> Iterator[tuple[str, Key]]:
    for pair in PAIRS:
        k, v = pair.split()
        for transform in ("none", "diagonal", "balanced-uncentred"):
            yield f"{k} / {v}, {RECIPES[transform]}", {"k": k, "v": v, "transform": transform}


def _splits() -> Iterator[tuple[str, Key]]:
    for k, bits in BITS.items():
        for transform in ("diagonal", "balanced"):
            yield f"{k}, {bits}, {RECIPES[transform]}", {"k": k, "transform": transform}


def _tried() -> Iterator[tuple[str, Key]]:
    diagonal: Key = {"k": "q4_0", "transform": "diagonal"}
    balanced: Key = {"k": "q4_0", "transform": "balanced"}
    yield "centre, diagonal", diagonal
    yield "first row exact", {**diagonal, "exact_first": 1}
    yield "first 4 rows exact", {**diagonal, "exact_first": 4}
    for floor in (1e-6, 1e-3, 1e-2):
        yield f"floor {floor:g}", {**diagonal, "floor": floor}
    yield "centre, balanced", balanced
    for shrink in (0.1, 0.5):
        yield f"shrunk by {shrink}", {**balanced, "shrink": shrink}
    for scale in ("norm", "corrected", "searched"):
        for k in ("tq3", "tq2"):
            yield f"{k}, centre, diagonal, scale {scale}", {**diagonal, "k": k, "scale": scale}


def _weights() -> Iterator[tuple[str, Key]]:
    yield RECIPES["none"], {"k": "q4_0"}
    words = {"none": "", "softmax": ", weighed by p (1 − p)", "output": ", weighed by p² (v − o)²"}
    for transform, shrink in (("diagonal", 0.0), ("balanced", 0.3)):
        kind = RECIPES[transform] + (f", shrunk by {shrink}" if shrink else "")
        for weights, more in words.items():
            yield kind + more, {"k": "q4_0", "transform": transform, "shrink": shrink, "weights": weights}


def written(page: str, found: Mapping[str, str]) -> str:
    """Return a page with each table in its part."""
    return filled(page, {f"table {name}": text for name, text in found.items()})


def _table(records: Records, head: list[str], rows: Mapping[str, list[dict[str, Any]]]) -> str:
    cells = {name: [_cell(records, key) for key in keys] for name, keys in rows.items()}
    return table(head, [[name, *found] for name, found in cells.items() if any(found)])


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])


def matching(records: Records, key: Key) -> Records:
    """Return the records of a setting; what ``key`` does not name is as in `DEFAULTS`."""
    wanted = {**DEFAULTS, **key}
    return [
        record
        for record in records
        if all(record.get(name, DEFAULTS.get(name)) == value for name, value in wanted.items())
    ]


def _cell(records: Records, key: Key) -> str:
    found = matching(records, key)
    return digits(found[0]["kl"]) if found else ""


def digits(kl: float) -> str:
    """Return a KL divergence as the tables print it."""
    return f"{kl:.2g}" if kl < 0.001 else f"{kl:.4f}" if kl < 0.1 else f"{kl:.3f}" if kl < 1 else f"{kl:.2f}"


def show(about: str | None, page: Path, found: Mapping[str, str]) -> None:
    """The command line of a script of tables: print them, or with --write put them into their page."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put them into docs/{page.name}")
    if parser.parse_args().write:
        page.write_text(written(page.read_text(), found))
        return
    for name, text in found.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    show(__doc__, PAGE, tables(read()))
