"""What is often said about KV-cache quantization, held against the record of transform_study.py.

    python benchmarks/claims.py          # print the table of docs/claims.md
    python benchmarks/claims.py --write  # put it into the page

A claim is a function of a model that says whether it holds there and by which numbers. The verdict over the
models is computed: it holds, it holds for some, or it is refuted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from marked_page import filled
from transform_tables import MODELS, Records, digits, matching, read

PAGE = Path(__file__).resolve().parent.parent / "docs/claims.md"

LOSSLESS_KL = 0.001
"""Nats a token below which the page calls a cache lossless. Where to draw the line is a choice."""

TYPES = ("q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0")


class Kl:
    """The record of one model: mean KL divergence by setting, nats a token."""

    def __init__(self, records: Records, model: str) -> None:
        self._records, self._model = records, model

    def __call__(self, k: str = "f16", v: str = "f16", **more: Any) -> float:
        """Return the KL with K and V of these types. Raises ValueError for what was not measured."""
        (found,) = matching(self._records, {"model": self._model, "k": k, "v": v, **more})
        return float(found["kl"])


@dataclass(frozen=True)
class Finding:
    """Whether a claim holds on a model, and the numbers that say so."""

    holds: bool
    numbers: str


@dataclass(frozen=True)
class Claim:
    """A claim in words, and how it is tested on a model."""

    words: str
    test: Callable[[Kl], Finding]


def _below(limit: float, *values: float) -> bool:
    return max(values) < limit


def _lossless(kl: Kl) -> Finding:
    k, v = kl("q8_0"), kl(v="q8_0")
    return Finding(_below(LOSSLESS_KL, k, v), f"K {digits(k)}, V {digits(v)}")


def _keys_matter_more(kl: Kl) -> Finding:
    k, v = kl("q4_0"), kl(v="q4_0")
    return Finding(k > 2 * v, f"K {digits(k)}, V {digits(v)}")


def _rotation_helps(kl: Kl) -> Finding:
    worse = [k for k in TYPES if kl(k, rotate=False) < kl(k)]
    numbers = ", ".join(f"{k} {digits(kl(k))}, {digits(kl(k, rotate=False))} without" for k in worse[:2])
    return Finding(not worse, f"worse for {len(worse)} of {len(TYPES)} types{': ' if worse else ''}{numbers}")


def _eight_and_four_bits_beat_five(kl: Kl) -> Finding:
    mixed, uniform = kl("q8_0", "q4_0"), kl("q5_0", "q5_0")
    return Finding(mixed < uniform, f"{digits(mixed)}, q5_0 on both {digits(uniform)}")


def _iq4_nl_beats_q4_0(kl: Kl) -> Finding:
    k, v = (kl("iq4_nl"), kl("q4_0")), (kl(v="iq4_nl"), kl(v="q4_0"))
    numbers = f"K {digits(k[0])} to {digits(k[1])}, V {digits(v[0])} to {digits(v[1])}"
    return Finding(k[0] < 0.95 * k[1], numbers)


def _centre_helps(kl: Kl) -> Finding:
    before, after = kl("q4_0"), kl("q4_0", transform="centre")
    return Finding(after < before, f"{digits(before)} to {digits(after)}")


def _centre_helps_at_depth(kl: Kl) -> Finding:
    before, after = kl("q4_0", n_ctx=4096), kl("q4_0", n_ctx=4096, transform="centre")
    return Finding(after < before / 2, f"{digits(before)} to {digits(after)}")


def _three_bit_keys(kl: Kl) -> Finding:
    k, v = kl("tq3"), kl(v="tq3")
    return Finding(_below(0.05, k), f"K {digits(k)}, V {digits(v)}")


def _least_squares_is_best(kl: Kl) -> Finding:
    searched, corrected = kl(v="tq3", scale="searched"), kl(v="tq3", scale="corrected")
    return Finding(searched < corrected, f"least squares {digits(searched)}, norm kept {digits(corrected)}")


CLAIMS = (
    Claim(f"q8_0 is lossless (KL below {LOSSLESS_KL:g})", _lossless),
    Claim("K is the sensitive side (q4_0 keys cost more than twice what q4_0 values do)", _keys_matter_more),
    Claim("Rotating K helps, whatever its type", _rotation_helps),
    Claim(
        "q8_0 keys with q4_0 values (6.5 bits) beat q5_0 on both sides (5.5 bits)",
        _eight_and_four_bits_beat_five,
    ),
    Claim("iq4_nl keys beat q4_0 keys at the same bytes", _iq4_nl_beats_q4_0),
    Claim("Subtracting K's mean helps q4_0 keys", _centre_helps),
    Claim("A mean fitted on 512 tokens still halves the KL of q4_0 keys at 4,096", _centre_helps_at_depth),
    Claim("3-bit TurboQuant-like keys are near lossless (KL below 0.05)", _three_bit_keys),
    Claim("The scale with the least squared error is the best for 3-bit values", _least_squares_is_best),
)


def verdict(findings: Sequence[Finding]) -> str:
    """Return what the findings on all models come to."""
    n_holds = sum(finding.holds for finding in findings)
    return "holds" if n_holds == len(findings) else "holds for some" if n_holds else "refuted"


def table(records: Records) -> str:
    """Return the table of claims as Markdown."""
    lines = [f"| claim | verdict | {' | '.join(MODELS.values())} |", f"|{'---|' * (len(MODELS) + 2)}"]
    for claim in CLAIMS:
        findings = [claim.test(Kl(records, model)) for model in MODELS]
        cells = [f"{'yes' if finding.holds else 'no'}: {finding.numbers}" for finding in findings]
        lines.append(f"| {claim.words} | **{verdict(findings)}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put it into docs/claims.md")
    content = table(read())
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(), {"claims": content}))
    else:
        print(content)


if __name__ == "__main__":
    main()
