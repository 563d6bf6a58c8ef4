"""Right answers worked out from the prompts alone, apart from the tasks' own arithmetic."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable

from kvquant.evals.location import facts
from kvquant.evals.reply import Reply, ToolCall


def solve(prompt: str) -> Reply:
    """Return the reply of a model that is always right."""
    for pattern, solver in _SOLVERS:
        match = re.search(pattern, prompt, re.DOTALL)
        if match:
            found = solver(match)
            return found if isinstance(found, Reply) else Reply(found, finish_reason="stop")
    raise AssertionError(f"no solver for {prompt!r}")


def _answer(value: object) -> str:
    return f"Let me think.\nAnswer: {value}"


def _bat_and_ball(m: re.Match[str]) -> str:
    total, difference = (round(float(m[i]) * 100) for i in (1, 2))
    return _answer((total - difference) // 2)


def follows(premises: list[str], conclusion: str) -> bool:
    """Whether a conclusion holds in every world of three terms in which the premises do and each term occurs.

    A world is the set of kinds of things there are; a kind says which of the terms it falls under.
    """
    statements = [_statement(text) for text in (*premises, conclusion)]
    terms = sorted({term for _, a, b in statements for term in (a, b)})
    kinds = [dict(zip(terms, bits, strict=True)) for bits in itertools.product((False, True), repeat=3)]
    for size in range(1, len(kinds) + 1):
        for world in itertools.combinations(kinds, size):
            if not all(any(kind[term] for kind in world) for term in terms):
                continue
            *held, concluded = (_holds(statement, world) for statement in statements)
            if all(held) and not concluded:
                return False
    return True


def _statement(text: str) -> tuple[str, str, str]:
    quantifier, a, negation, b = re.fullmatch(r"(All|No|Some) (\w+) are (not )?(\w+)\.", text).groups()  # type: ignore[union-attr]
    return quantifier + (" not" if negation else ""), a, b


def _holds(statement: tuple[str, str, str], world: tuple[dict[str, bool], ...]) -> bool:
    quantifier, a, b = statement
    both = [kind[b] for kind in world if kind[a]]
    return {"All": all(both), "No": not any(both), "Some": any(both), "Some not": not all(both)}[quantifier]


def _syllogism(m: re.Match[str]) -> str:
    first, second = re.findall(r"[^.]+\.", m[1])
    return _answer("valid" if follows([first.strip(), second.strip()], m[2]) else "invalid")


def _rate(m: re.Match[str]) -> str:
    n, minutes, made, many, wanted = (int(m[i]) for i in range(1, 6))
    return _answer(wanted * n * minutes // (made * many))


def _row(name: str, column: int, value: object) -> tuple[object, ...]:
    return next(row for row in facts(name) if str(row[column]).lower() == str(value).lower())


def _first_language(m: re.Match[str]) -> str:
    return min((m[1], m[2]), key=lambda name: int(str(_row("languages", 0, name)[2])))


def _code(m: re.Match[str]) -> str:
    name, keep, k, make, n = m[1], m[2], m[3], m[4], m[5]
    condition = {"greater than": f"v > {k}", "smaller than": f"v < {k}", "divisible by": f"not v % {k}"}
    kept = condition.get(keep, f"v % {k}")
    made = {"plus": f"v + {n}", "times": f"v * {n}"}.get(make, f"v ** 2 - {n}")
    return f"Sure:\n```python\ndef {name}(values):\n    return [{made} for v in values if {kept}]\n```\nDone."


def _palindrome(m: re.Match[str]) -> str:
    name, rules = m[1], m[2]
    fold = ".lower()" if "count as the same" in rules else ""
    keep = "if c.isalnum()" if "Skip" in rules else ""
    one = f"def one(t):\n    s = ''.join(c for c in t{fold} {keep})\n    return s == s[::-1]\n"
    body = "sum(map(one, x))" if "how many" in rules else "one(x)"
    return f"{one}def {name}(x):\n    return {body}"


def _people(prompt: str) -> list[tuple[str, int, str]]:
    found = re.findall(r"(\w+) is (\d+) years old and lives in (\w+)\.", prompt)
    return [(name, int(age), city) for name, age, city in found]


def _csv(m: re.Match[str]) -> str:
    return "\n".join(["name,age,city", *(f"{n},{a},{c}" for n, a, c in _people(m.string))])


def _json(m: re.Match[str]) -> str:
    ((name, age, city),) = _people(m.string)
    return json.dumps({"city": city, "name": name, "age": age})


def _call(name: str, argument: str, text: str) -> Reply:
    return Reply("", (ToolCall(name, json.dumps({argument: text})),), "tool_calls")


def _calculator(m: re.Match[str]) -> Reply:
    return _call("calculator", "expression", f"{m[1]} * {m[2]} {'+' if m[3] == 'plus' else '-'} {m[4]}")


def _fact_list(m: re.Match[str]) -> str:
    return "\n".join(f"- {key}={_fact(m[1], key)}" for key in m[2].split())


def _fact(facts_text: str, key: str) -> str:
    return dict(re.findall(r" (\w+)=(\d+)", facts_text))[key]


_SOLVERS: tuple[tuple[str, Callable[[re.Match[str]], str | Reply]], ...] = (
    (r"^ Facts:(.*)\nWhat is (\w+)\?$", lambda m: f"It is {_fact(m[1], m[2])}."),
    (r"\nLook up (\w+) with", lambda m: json.dumps({"name": "lookup", "arguments": {"key": m[1]}})),
    (r"^ Facts:(.*)\nList (.*)\.$", _fact_list),
    (r"cost \$([\d.]+) together.*costs \$([\d.]+) more", _bat_and_ball),
    (r"Premises: (.*) Conclusion: (.*?\.) Does", _syllogism),
    (r"(\d+) \w+ take (\d+) minutes to make (\d+).* do (\d+) \w+ take to make (\d+)", _rate),
    (r"capital of (.*?)\?", lambda m: f"It is {_row('countries', 0, m[1])[1]}."),
    (r"Which country has (.*) as its capital", lambda m: str(_row("countries", 1, m[1])[0])),
    (r"On which continent is (.*?):", lambda m: f"**{_row('countries', 0, m[1])[2]}**"),
    (r"Who designed the programming language (.*?)\?", lambda m: str(_row("languages", 0, m[1])[1])),
    (r"appeared first, (.*) or (.*?)\?", _first_language),
    (r"chemical symbol of (\w+)", lambda m: f"`{_row('elements', 2, m[1])[1]}`."),
    (r"element has the symbol (\w+)", lambda m: str(_row("elements", 1, m[1])[2]).title()),
    (r"atomic number of (\w+)", lambda m: str(_row("elements", 2, m[1])[0])),
    (r"element has the atomic number (\d+)", lambda m: str(_row("elements", 0, m[1])[2])),
    (r"function (\w+)\(values\).*each value that is (.*?) (\d+), (\w+).*? (\d+), in", _code),
    (r"function (\w+)\(texts?\) (.*)", _palindrome),
    (r"as CSV", _csv),
    (r"exactly (\d+) sentences", lambda m: "It is there. " * int(m[1])),
    (r"one JSON object", _json),
    (r"Find out about (.*)\. Use a tool", lambda m: _call("web_search", "query", m[1])),
    (r"compute (\d+) times (\d+), (\w+) (\d+)", _calculator),
    (r"covers (\d+) km in (\d+) hours", lambda m: _answer(f"{int(m[1]) // int(m[2])} km/h")),
    (r"at (\d+) km/h for (\d+) hours", lambda m: _answer(int(m[1]) * int(m[2]))),
    (
        r"at (\d+) km/h\. How many hours does it take for (\d+)",
        lambda m: _answer(f"{int(m[2]) / int(m[1]):.1f}"),
    ),
    (
        r"What is the code of the (.*?)\?",
        lambda m: re.search(rf"The code of the {m[1]} is (\d+)\.", m.string)[1],
    ),  # type: ignore[index]
)
