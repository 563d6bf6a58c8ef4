"""Write what pages and the package say of committed searches: two pages and the measured presets.

python tools/write_search_records.py

Reads eval/results/search/*.json, the results of `kvquant search --out DIR` (DIR/search.json). docs/search.md
has a line for each and one of them whole, the page beside the records all of them.
tests/search/test_records.py holds pages and presets to the records.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

from kvquant.assets.registry import models, texts
from kvquant.documents import read_json, to_json
from kvquant.files import write_atomic
from kvquant.policy.presets import MeasuredPreset
from kvquant.report.search import comparison_table, kl_words
from kvquant.results.divergence import FileUsed
from kvquant.results.search import MeasuredPolicy, SearchResult
from kvquant.tables import NONE, Table, markdown, small
from marked_page import filled

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "eval/results/search"
PAGE = ROOT / "docs/search.md"
ALL = RECORDS / "README.md"
EXAMPLE = "qwen2.5-coder-0.5b-0.30x.json"
"""The record that docs/search.md shows whole."""
PRESETS = ROOT / "src/kvquant/policy/presets.json"


def records() -> dict[str, SearchResult]:
    """Return every committed search by its file's name, ordered by model and size."""
    found = {path.name: read_json(SearchResult, path) for path in RECORDS.glob("*.json")}
    return dict(sorted(found.items(), key=lambda item: (model_name(item[1]), item[1].of_f16)))


def model_name(result: SearchResult) -> str:
    """Return the name `kvquant models` has for the file, else the file's own."""
    known = {model.file: name for name, model in models().items()}
    return known.get(result.start.model.name, Path(result.start.model.name).stem)


def text_name(file: FileUsed) -> str:
    """Return the name `kvquant texts` has for a text, else the file's own."""
    known = {text.calibration.sha256: f"{text.name}:calibration" for text in texts().values()}
    known |= {text.held_out.sha256: f"{text.name}:held-out" for text in texts().values()}
    return known.get(file.sha256, file.name)


def presets() -> list[MeasuredPreset]:
    """Return what the package lists: the policy of each record with what it loses.

    Not of searches with a transform: without its file such a policy loses more.
    """
    return [
        preset(name, result)
        for name, result in records().items()
        if result.kl_held_out is not None and result.start.transform is None
    ]


def preset(name: str, result: SearchResult) -> MeasuredPreset:
    """Return one record as a preset."""
    kl = result.kl_held_out
    assert kl is not None
    rival = best_rival(result)
    low, high = (None, None) if kl.interval is None else kl.interval
    return MeasuredPreset(
        model=model_name(result),
        policy=result.policy,
        of_f16=result.of_f16,
        n_ctx=result.n_ctx,
        kl=kl.mean,
        low=low,
        high=high,
        held_out=text_name(result.start.held_out),
        n_tokens=kl.n_tokens,
        rival=None if rival is None else rival.name,
        rival_kl=None if rival is None or rival.kl_held_out is None else rival.kl_held_out.mean,
        record=f"eval/results/search/{name}",
    )


def best_rival(result: SearchResult) -> MeasuredPolicy | None:
    """Return the simple rule that the policy was compared with, None where there was none."""
    name = result.against and result.against.rival
    return next((entry for entry in result.rivals if entry.name == name), None)


def summary() -> str:
    """Return a line for each record: what the search found and the best rule in the same bytes."""
    head = ("model", "of f16", "KL, held out", "best rule", "its KL", "times", "the search is")
    lines = tuple(_line(result) for result in records().values())
    verdicts = Counter(line[-1] for line in lines)
    said = (
        f"Of {len(lines)} searches {verdicts['better']} found a policy that is better than every rule, "
        f"{verdicts['level']} one level with the best rule, {verdicts['worse']} one that is worse on the "
        f"held-out text, and {verdicts['that rule']} ended at a rule."
    )
    return f"{markdown(Table(head, lines, words=(3, 6)))}\n\n{textwrap.fill(said, 118)}"


def _line(result: SearchResult) -> tuple[str, ...]:
    rival, kl = best_rival(result), result.kl_held_out
    calibrated = "" if result.start.transform is None else ", calibrated"
    begin = f"{model_name(result)}{calibrated}", f"{result.of_f16:.3f}", kl_words(kl)
    if result.simple is not None:
        return *begin, result.simple, NONE, NONE, "that rule"
    if rival is None or rival.kl_held_out is None or kl is None or result.against is None:
        raise ValueError(f"a record of {model_name(result)} has nothing to compare with")
    times = rival.kl_held_out.mean / kl.mean
    return *begin, rival.name, kl_words(rival.kl_held_out), f"{times:.1f}", result.against.verdict


def parts() -> str:
    """Return each record with its policy and its rivals."""
    return "\n\n".join(_part(name, result) for name, result in records().items())


def _part(name: str, result: SearchResult, link: str = "") -> str:
    found = result.additivity
    ratio = (
        "" if found.ratio is None else f"The median policy measures {found.ratio:.2f} times its prediction"
    )
    rank = "" if found.rank_correlation is None else f"; rank correlation {found.rank_correlation:.2f}"
    kl = result.kl_held_out
    said = (
        f"Chosen on {text_name(result.start.fit)}, compared on {0 if kl is None else kl.n_tokens} tokens of "
        f"{text_name(result.start.held_out)} in chunks of {result.start.n_ctx}; types "
        f"{', '.join(result.types)}; floor "
        f"{small(result.floor.mean)}. {ratio}{rank} ({found.n_policies} policies)."
    )
    return "\n".join(
        [
            f"### {model_name(result)}, {result.of_f16:.3f}x of f16"
            + ("" if result.start.transform is None else ", with a transform of K"),
            "",
            f"    {result.policy}",
            "",
            textwrap.fill(said, 118),
            f"[Record]({link}{name}).",
            "",
            markdown(comparison_table(result)),
        ]
    )


def page() -> str:
    """Return docs/search.md with a line for each record, and one record whole."""
    example = _part(EXAMPLE, records()[EXAMPLE], "../eval/results/search/")
    return filled(PAGE.read_text(encoding="utf-8"), {"records": summary(), "one record": example})


def all_records() -> str:
    """Return the page beside the records."""
    return filled(ALL.read_text(encoding="utf-8"), {"records": parts()})


def main() -> None:
    """Write the pages and the presets."""
    write_atomic(PAGE, page())
    write_atomic(ALL, all_records())
    write_atomic(PRESETS, to_json(presets()) + "\n")


if __name__ == "__main__":
    main()
