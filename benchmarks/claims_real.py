"""What is often said about KV-cache quantization, held against the records of real models in llama.cpp.

    python benchmarks/claims_real.py          # print the table of docs/claims.md
    python benchmarks/claims_real.py --write  # put it into the page

As in claims.py: a claim is a function of a model's record, and the verdict over the models is computed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from claims import LOSSLESS_KL, PAGE, Finding, verdict
from kvquant.results.divergence import DivergenceResult, Floor, PolicyDivergence
from marked_page import filled
from real_models import CRITICAL, EDGES, FIRST_KEYS, HYBRID, LAST_KEYS, MIRROR, SIDES, UNIFORM, records
from real_models_page import TITLES, Found, at, digits, find

BIAS_LAYERS = {"qwen2.5-coder-0.5b": (0, 1, 2, 8), "qwen2.5-coder-1.5b": (0, 1)}
"""Layers whose attn_k.bias stands out, as `kvquant doctor --model NAME` says, by model."""

BROKEN_KL = 0.1
"""Nats a token from which the page calls a model broken. Where to draw the line is a choice."""


@dataclass(frozen=True)
class Record:
    """The record of one model, prefill in chunks of 512."""

    model: str
    result: DivergenceResult

    def of(self, name: str, *, rotation: bool = True) -> PolicyDivergence:
        """What was measured of a policy. Raises LookupError for what was not."""
        found = find(self.result, name, rotation=rotation)
        if found is None or found.kl_mean is None:
            raise LookupError(f"{self.model}: no record of {name}")
        return found

    def kl(self, name: str, *, rotation: bool = True) -> float:
        """Mean KL divergence in nats a token."""
        return _kl(self.of(name, rotation=rotation))

    @property
    def floor(self) -> Floor:
        """What the float16 cache is from itself on the other path."""
        if self.result.floor is None:
            raise LookupError(f"{self.model}: no record of the floor")
        return self.result.floor


@dataclass(frozen=True)
class Claim:
    """A claim in words, and how it is tested on a model; None where it says nothing about it."""

    words: str
    test: Callable[[Record], Finding | None]


def _lossless(record: Record) -> Finding:
    q8_0, floor = record.of("q8_0"), record.floor
    numbers = (
        f"{digits(q8_0.kl_mean)} ({digits(q8_0.kl_low)} to {digits(q8_0.kl_high)}), "
        f"floor {digits(floor.kl_mean)}"
    )
    # Of a difference below the floor nothing can be said; so the lower end has to be above both.
    limit = max(LOSSLESS_KL, floor.kl_high or floor.kl_mean)
    return Finding((q8_0.kl_low or 0.0) < limit, numbers)


def _keys_matter_more(record: Record) -> Finding:
    k, v = (record.kl(name) for name in SIDES)
    return Finding(k > 2 * v, f"keys {digits(k)}, values {digits(v)}")


def _more_bits_for_keys(record: Record) -> Finding:
    k8v4, q5_1 = record.kl("k8v4"), record.kl("q5_1")
    return Finding(k8v4 < q5_1, f"{digits(k8v4)}, q5_1 {digits(q5_1)}")


def _first_layers(record: Record) -> Finding:
    hybrid, mirror = record.of(HYBRID), record.of(MIRROR)
    holds = _kl(hybrid) < _kl(mirror)
    return Finding(holds, f"{_at(hybrid)}, the other way round {_at(mirror)}")


def _edges(record: Record) -> Finding:
    edges, q5_0 = record.of(EDGES), record.of("q5_0")
    return Finding(_kl(edges) < _kl(q5_0), f"{_at(edges)}, q5_0 {_at(q5_0)}")


def _hybrid_is_a_good_default(record: Record) -> Finding:
    hybrid = record.of(HYBRID)
    rivals = [record.of(name) for name in UNIFORM]
    better = [
        (_kl(policy), name)
        for name, policy in zip(UNIFORM, rivals, strict=True)
        if policy.of_f16 <= 1.1 * hybrid.of_f16 and _kl(policy) < _kl(hybrid)
    ]
    if not better:
        return Finding(True, _at(hybrid))
    name = min(better)[1]
    return Finding(False, f"{_at(hybrid)}, {name} {_at(record.of(name))}")


def _rotation_helps(record: Record) -> Finding:
    names = [
        name
        for name in (*UNIFORM, HYBRID, MIRROR, EDGES)
        if find(record.result, name, rotation=False) is not None
    ]
    pairs = {name: (record.of(name), record.of(name, rotation=False)) for name in names}
    better = [name for name, (turned, plain) in pairs.items() if _kl(turned) < _kl(plain)]
    # Told apart: the interval without rotation ends before the other begins.
    worse = [name for name, (turned, plain) in pairs.items() if (plain.kl_high or 0) < (turned.kl_low or 0)]
    shown = dict.fromkeys(("q4_0", *(name for name in names if name not in better)))
    listed = (f"{name} {digits(_kl(pairs[name][1]))} to {digits(_kl(pairs[name][0]))}" for name in shown)
    return Finding(not worse, f"better for {len(better)} of {len(names)} policies: {', '.join(listed)}")


def _bias_predicts(record: Record) -> Finding:
    layers = BIAS_LAYERS.get(record.model, ())
    broken = record.kl("q4_0") > BROKEN_KL
    said = f"in layers {', '.join(map(str, layers))}" if layers else "nowhere"
    return Finding(bool(layers) == broken, f"stands out {said}; q4_0 {digits(record.kl('q4_0'))}")


def _critical_heads(record: Record) -> Finding | None:
    if record.model != "qwen2.5-coder-0.5b":
        return None
    chosen, first, last = (record.kl(name) for name in (CRITICAL, FIRST_KEYS, LAST_KEYS))
    return Finding(
        chosen < min(first, last),
        f"q4_0 {digits(record.kl('q4_0'))}; with keys of layers 0, 1, 2, 8 in q8_0 {digits(chosen)}, "
        f"of 0 to 3 {digits(first)}, of the last four {digits(last)}",
    )


def _qwen_breaks(record: Record) -> Finding | None:
    if not record.model.startswith("qwen"):
        return None
    plain, rotated = record.of("q4_0", rotation=False), record.of("q4_0")
    before = record.result.baseline_perplexity
    numbers = f"{digits(before)} to {digits(plain.perplexity)}, rotated {digits(rotated.perplexity)}"
    return Finding((plain.perplexity or 0.0) > 2 * (before or 0.0), numbers)


def _kl(policy: PolicyDivergence) -> float:
    return policy.kl_mean or 0.0


def _at(policy: PolicyDivergence) -> str:
    return f"{digits(policy.kl_mean)} at {policy.of_f16:.2f}"


CLAIMS = (
    Claim(f"q8_0 is lossless (KL not shown to be above {LOSSLESS_KL:g} and the floor)", _lossless),
    Claim("K is the sensitive side (q4_0 keys cost more than twice what q4_0 values do)", _keys_matter_more),
    Claim("Bits belong in K: k8v4 (6.5 bits) beats q5_1 (6 bits) on both sides", _more_bits_for_keys),
    Claim("The first layers matter most: 0-10 at q8_0 beats all but 0-10 at q8_0", _first_layers),
    Claim("Keeping the first and last four layers at q8_0 over q4_0 beats q5_0 at about its bytes", _edges),
    Claim(
        "The hybrid 0-10:q8_0 over q4_0 is a good default (nothing uniform of a tenth more bytes is better)",
        _hybrid_is_a_good_default,
    ),
    Claim("Rotation always helps (it is nowhere shown to be worse)", _rotation_helps),
    Claim("A K bias that stands out predicts that q4_0 breaks, and none that it does not", _bias_predicts),
    Claim("KVmix's critical heads of Qwen2.5-0.5B lie in layers 0, 1, 2 and 8", _critical_heads),
    Claim("Without rotation q4_0 breaks Qwen2.5 (perplexity more than doubled)", _qwen_breaks),
)


def table(found: Found) -> str:
    """Return the table of claims as Markdown."""
    models = [Record(model, result) for model, result in at(found, 512, "prefill").items()]
    heads = " | ".join(TITLES[record.model] for record in models)
    lines = [f"| claim | verdict | {heads} |", f"|{'---|' * (len(models) + 2)}"]
    for claim in CLAIMS:
        cells, findings = [], []
        for record in models:
            try:
                finding = claim.test(record)
            except LookupError:
                cells.append("not measured")
                continue
            if finding is None:
                cells.append("–")
            else:
                findings.append(finding)
                cells.append(f"{'yes' if finding.holds else 'no'}: {finding.numbers}")
        summed_up = verdict(findings) if findings else "not measured"
        lines.append(f"| {claim.words} | **{summed_up}** | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put it into docs/claims.md")
    content = table(records())
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(), {"real claims": content}))
    else:
        print(content)


if __name__ == "__main__":
    main()
