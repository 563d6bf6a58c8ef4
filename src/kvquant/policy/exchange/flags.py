"""llama.cpp's and ik_llama.cpp's options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from kvquant.policy.exchange.common import Imported, cache_type, left, one_pair, options, refused
from kvquant.policy.policy import Policy, ResolvedPolicy, parse_policy
from kvquant.policy.rules import Counting, Rule

_FLAGS = {"-ctk": "k", "--cache-type-k": "k", "-ctv": "v", "--cache-type-v": "v"}
_ENDS = {f"{flag}-{end}": (side, end) for flag, side in _FLAGS.items() for end in ("first", "last")}


def read_llama(text: str) -> Imported:
    """Read -ctk and -ctv, and --kv-layers of the patch series."""
    types = {"k": "f16", "v": "f16"}
    layers: str | None = None
    other: list[str] = []
    for flag, value in options(text):
        if flag in _FLAGS:
            types[_FLAGS[flag]] = cache_type(value, flag)
        elif flag in ("--kv-layers", "-kvl"):
            layers = value
        elif flag in _ENDS:
            raise refused(f"{flag} is ik_llama.cpp's, not llama.cpp's; read it with --from ik_llama.cpp")
        else:
            other.append(flag)
    if layers is None:
        policy = parse_policy(f"*:k={types['k']}/v={types['v']}")
    else:
        policy = parse_policy(layers)
        if types != {"k": "f16", "v": "f16"}:
            policy = _with_rest(policy, types["k"], types["v"])
    return Imported(policy, "llama.cpp", left(other))


def _with_rest(policy: Policy, k_type: str, v_type: str) -> Policy:
    """What -ctk and -ctv say beside rules: the type of the layers that no rule names."""
    if any(rule.counting is Counting.REST or (rule.first, rule.last) == (0, None) for rule in policy.rules):
        return policy
    if any(rule.k_type is None or rule.v_type is None for rule in policy.rules):
        raise refused(
            "rules for one side beside -ctk or -ctv: say both sides in every rule, as 0-3:k=q8_0/v=q4_0"
        )
    return Policy((*policy.rules, Rule(Counting.REST, 0, None, k_type, v_type)))


def read_ik(text: str) -> Imported:
    """Read -ctk, -ctv and their -first and -last, TYPE,N for the first or last N layers."""
    types = {"k": "f16", "v": "f16"}
    ends: dict[tuple[str, str], tuple[str, int]] = {}
    other: list[str] = []
    for flag, value in options(text):
        if flag in _FLAGS:
            types[_FLAGS[flag]] = cache_type(value, flag)
        elif flag in _ENDS:
            name, _, count = value.partition(",")
            if not re.fullmatch(r"[0-9]{1,5}", count):
                raise refused(f"{flag} {value}: not TYPE,N, a type and a number of layers")
            if int(count):
                ends[_ENDS[flag]] = (cache_type(name, flag), int(count))
        else:
            other.append(flag)
    rules: list[Rule] = []
    for end, counting in (("first", Counting.LAYERS), ("last", Counting.LAST)):
        found = {side: ends[side, end] for side in "kv" if (side, end) in ends}
        start = 0
        for n_layers in sorted({n for _, n in found.values()}):
            k, v = (
                found[side][0] if side in found and found[side][1] >= n_layers else types[side]
                for side in "kv"
            )
            first, last = (start, n_layers - 1) if counting is Counting.LAYERS else (start + 1, n_layers)
            rules.append(Rule(counting, first, last, k, v))
            start = n_layers
    rest = Rule(Counting.REST if rules else Counting.LAYERS, 0, None, types["k"], types["v"])
    return Imported(Policy((*rules, rest)), "ik_llama.cpp", left(other))


def write_llama(resolved: ResolvedPolicy, policy: Policy) -> str:
    """Write stock llama.cpp's options where they can say it, else the option of the patch series."""
    pair = one_pair(resolved)
    if pair is not None:
        return f"-ctk {pair[0]} -ctv {pair[1]}\n"
    return f"--kv-layers {shlex.quote(str(policy))}\n"


def write_ik(resolved: ResolvedPolicy, _policy: Policy) -> str:
    """Write at most three runs of types for each side."""
    words = []
    for side, types in (
        ("k", [layer.k_type for layer in resolved.layers]),
        ("v", [layer.v_type for layer in resolved.layers]),
    ):
        words.append(_ends_of(side, types))
    return f"{' '.join(words)}\n"


def _ends_of(side: str, types: Sequence[str]) -> str:
    """Options for at most three runs of types: the first layers, the last ones, and those between."""
    runs: list[tuple[str, int]] = []
    for name in types:
        if runs and runs[-1][0] == name:
            runs[-1] = (name, runs[-1][1] + 1)
        else:
            runs.append((name, 1))
    if len(runs) > 3:
        raise refused(
            f"{side.upper()} changes its type {len(runs) - 1} times along the layers; ik_llama.cpp can say "
            "one type for the first, one for the last and one for the layers between"
        )
    flag = f"-ct{side}"
    if len(runs) == 1:
        return f"{flag} {runs[0][0]}"
    if len(runs) == 2:
        return f"{flag} {runs[1][0]} {flag}-first {runs[0][0]},{runs[0][1]}"
    return f"{flag} {runs[1][0]} {flag}-first {runs[0][0]},{runs[0][1]} {flag}-last {runs[2][0]},{runs[2][1]}"
