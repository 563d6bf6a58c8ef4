"""Every task: right answers count as right, and what else there is counts as what it is."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.solvers import follows, solve
from evals.task_marks import RECORDED, mark
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.answers import check_choice, check_number, numbers_in
from kvquant.evals.outcome import RIGHT, Outcome
from kvquant.evals.reply import Reply, ToolCall, is_refusal, strip_reasoning
from kvquant.evals.suite import load_suite, parse_suite, samples, suite_names
from kvquant.evals.task import Parameters, Question, Task, grade, questions
from kvquant.evals.tasks import TASKS, published
from kvquant.evals.tasks.reasoning import INVALID, VALID

# Published sets are fetched and have tests of their own.
TASK_NAMES = sorted(set(TASKS) - {task.name for task in published.TASKS})
CODE = {"list_comprehension", "palindrome"}
MANY = {name: 4 if name in CODE else 40 for name in TASK_NAMES}


@pytest.mark.parametrize("name", TASK_NAMES)
def test_right_answers_are_right(name: str) -> None:
    for question in questions(TASKS[name], MANY[name], 7, name, {}):
        graded = grade(question, solve(question.prompt))
        assert graded.outcome is Outcome.RIGHT, (question.prompt, graded)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_the_answer_to_another_question_is_not_right(name: str) -> None:
    first, *others = questions(TASKS[name], 12, 3, name, {})
    right = solve(first.prompt)
    different = next(reply for reply in (solve(other.prompt) for other in others) if reply != right)
    assert grade(first, different).outcome in {Outcome.WRONG, Outcome.MALFORMED}


@pytest.mark.parametrize("name", TASK_NAMES)
def test_what_is_no_answer(name: str) -> None:
    question = questions(TASKS[name], 1, 5, name, {})[0]
    right = solve(question.prompt)
    assert grade(question, Reply("")).outcome is Outcome.MALFORMED
    assert grade(question, replace(right, finish_reason="length")).outcome is Outcome.TRUNCATED
    assert grade(question, Reply("<think>It could be")).outcome is Outcome.TRUNCATED
    assert grade(question, Reply("I'm sorry, but I can't help with that.")).outcome is Outcome.REFUSAL
    thought = replace(right, text=f"<think>It is 41, no, Rome.\nAnswer: 0</think>\n\n{right.text}")
    assert grade(question, thought).outcome is Outcome.RIGHT


@pytest.mark.parametrize("name", TASK_NAMES)
def test_two_hundred_different_questions_that_depend_on_the_seed_alone(name: str) -> None:
    drawn = [question.prompt for question in questions(TASKS[name], 200, 0, name, {})]
    assert len(set(drawn)) == 200
    assert drawn[:50] == [question.prompt for question in questions(TASKS[name], 50, 0, name, {})]
    assert drawn[:50] != [question.prompt for question in questions(TASKS[name], 50, 1, name, {})]


def test_a_task_that_runs_out_says_so() -> None:
    small = Task("small", "", lambda rng, _: replace(QUESTION, prompt=str(rng.randrange(3))))
    with pytest.raises(UsageError, match="about 3 different questions, not 4; lower --n"):
        questions(small, 4, 0, "small", {})


QUESTION = questions(TASKS["bat_and_ball"], 1, 0, "x", {})[0]


def test_syllogisms_are_what_they_are_called() -> None:
    words = ("All {} are {}.", "No {} are {}.", "Some {} are {}.", "Some {} are not {}.")
    sentence = dict(zip(("all", "no", "some", "some-not"), words, strict=True))
    for forms, valid in ((VALID, True), (INVALID, False)):
        for form in forms:
            said = [sentence[quantifier].format("abc"[a], "abc"[b]) for quantifier, a, b in form]
            assert follows(said[:2], said[2]) is valid, form


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>\nb", "b"),
        ("<thinking>\na\n</thinking> b <think>c</think>", "b"),
        ("<|channel>thought\na<channel|>b", "b"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            "b",
        ),
        ("b", "b"),
        ("x < think > y", "x < think > y"),
        ("<think>a", None),
        ("<|channel>thought\na", None),
        ("<|channel|>analysis<|message|>a", None),
    ],
)
def test_reasoning_is_stripped(text: str, answer: str | None) -> None:
    assert strip_reasoning(text) == answer


def test_refusals() -> None:
    assert is_refusal("I’m unable to do that.")
    assert is_refusal("As an AI, I cannot say.")
    assert not is_refusal(
        "The capital of the country that was asked about is the city of Paris, on the Seine; I can't go on."
    )


def test_final_numbers() -> None:
    right, wrong, malformed = Outcome.RIGHT, Outcome.WRONG, Outcome.MALFORMED
    cases = {
        "Answer: 5": right,
        "**Answer:** 5 cents": right,
        "10 - 5 = 5": right,
        "Answer: 5.0": right,
        "The answer is 5, because 5 + 100 = 105.": right,
        "5 is what comes first to mind, but it is 10.": wrong,
        "Answer: 50": wrong,
        "Answer: -5": wrong,
        "Answer: five": malformed,
        "Answer: " + "5" * 5000: malformed,
    }
    assert {text: check_number(text, 5).outcome for text in cases} == cases


@given(st.fractions(min_value=0, max_value=10**12, max_denominator=1))
def test_numbers_are_read_with_separators(value: Fraction) -> None:
    assert numbers_in(f"It is {int(value):,}.") == [value]
    assert numbers_in(f"It is -{int(value)}, so") == [-value]


def test_choices_must_be_one() -> None:
    assert check_choice("Answer: C++", "C++", ("C", "C#")).outcome is Outcome.RIGHT
    assert check_choice("C", "C++", ("C", "C#")).outcome is Outcome.WRONG
    assert check_choice("C or C++", "C++", ("C", "C#")).outcome is Outcome.MALFORMED
    assert check_choice("It is invalid.", "valid", ("invalid",)).outcome is Outcome.WRONG


def test_tool_calls() -> None:
    question = next(q for q in questions(TASKS["calculator"], 50, 0, "x", {}) if "plus" in q.prompt)
    a, b, c = (int(x) for x in re.findall(r"\d+", question.prompt))

    def outcome(*calls: tuple[str, str]) -> Outcome:
        return grade(question, Reply("", tuple(ToolCall(*call) for call in calls))).outcome

    right = f'{{"expression": "{a} * {b} + {c}"}}'
    assert outcome(("calculator", right)) is Outcome.RIGHT
    assert outcome(("calculator", f'{{"expression": "({c}) + {b}×{a}.0"}}')) is Outcome.RIGHT
    assert outcome(("calculator", f'{{"expression": "{a * b + c}"}}')) is Outcome.WRONG
    assert outcome(("calculator", f'{{"expression": "{a} * {b}"}}')) is Outcome.WRONG
    assert outcome(("web_search", f'{{"query": "{a} * {b} + {c}"}}')) is Outcome.WRONG
    assert outcome(("calculator", right), ("calculator", right)) is Outcome.WRONG
    for arguments in (
        "{",
        "[]",
        '{"expression": 3}',
        '{"expression": "9**9**9"}',
        '{"expression": "1/0"}',
        "[" * 10**5,
    ):
        assert outcome(("calculator", arguments)) is Outcome.MALFORMED, arguments
    assert outcome(("calculator", right[:-1] + ', "precision": 3}')) is Outcome.MALFORMED


def test_needles_lie_where_the_label_says() -> None:
    for question in questions(TASKS["needle"], 20, 0, "x", {"n_words": 800, "depths": [0.0, 0.3, 1.0]}):
        text = question.prompt.partition("\n\n")[0]
        assert len(text.split()) == pytest.approx(800, abs=20)
        place = len(text.partition("The code of")[0].split()) / len(text.split())
        assert place == pytest.approx(float(question.labels["depth"]), abs=0.02)


def test_the_agent_suite_is_the_published_one() -> None:
    suite = load_suite("agent")
    counts = {c: sum(test.category == c for test in suite.tests) for c in suite.categories}
    assert counts == {"reasoning": 3, "factual": 3, "code": 2, "instruction": 3, "tool calls": 2, "math": 1}
    weights = {test.category: test.weight for test in suite.tests}
    assert (weights["reasoning"], weights["tool calls"], weights["math"]) == (3.0, 2.5, 1.0)


@pytest.mark.parametrize("name", ["agent", "recall", "short", "standard"])
def test_samples_are_spread_and_a_short_run_is_part_of_a_long_one(name: str) -> None:
    suite = load_suite(name)
    drawn = samples(suite, 6, 0)
    assert [s.test.category for s in drawn[: len(suite.categories)]] == list(suite.categories)
    assert len({s.id for s in drawn}) == 6 * len(suite.categories)
    prompts = {s.id: s.question.prompt for s in drawn}
    assert all(prompts[s.id] == s.question.prompt for s in samples(suite, 2, 0))


def test_every_shipped_suite_loads() -> None:
    assert suite_names() == SUITES
    suites = [load_suite(name) for name in SUITES]
    # Those without tests ask nothing of their own; what tells them apart are their other parts.
    asking = [suite.digest for suite in suites if suite.tests]
    assert len(set(asking)) == len(asking) == 7
    assert len({(suite.digest, repr(suite.parts)) for suite in suites}) == len(SUITES)


SUITES = [*("agent", "bfcl", "gsm8k", "human-eval", "kld", "memory", "recall", "short", "speed", "standard")]
HEAD = {"suite": {"name": "s", "about": "a", "n": 3, "max_tokens": 9}}
RULES = {"rules": {"alpha": 0.05, "power": 0.8, "disagreement": 0.05, "safe_loss": 0.05, "broken_loss": 0.2}}
TEST = {"task": "needle", "category": "c", "weight": 1.0}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**HEAD, **RULES}, "has no \\[\\[test\\]\\]"),
        ({**HEAD, "test": [TEST]}, "object missing required field `rules`"),
        ({**HEAD, **RULES, "test": [TEST], "tset": 1}, "unknown key 'tset'"),
        (
            {**HEAD, **RULES, "test": [{**TEST, "task": "neddle"}]},
            "test\\[0\\]: no task 'neddle'; known: bat_and_ball,",
        ),
        ({**HEAD, **RULES, "test": [{**TEST, "n_keys": 3}]}, "unknown key 'n_keys'"),
        ({**HEAD, **RULES, "test": [{**TEST, "weight": 0}]}, "test\\[0\\].weight: expected `float` > 0"),
        ({**HEAD, **RULES, "test": [{**TEST, "weight": True}]}, "weight: expected `float`, got `bool`"),
        ({**HEAD, **RULES, "test": [{**TEST, "weight": float("nan")}]}, "weight: expected `float` > 0"),
        ({**HEAD, **RULES, "test": [3]}, "test\\[0\\]: expected `object`, got `int`"),
        ({"suite": {"name": "s", "about": "a"}, **RULES, "test": [TEST]}, "needs both n and max_tokens"),
        ({**HEAD, **RULES, "test": [TEST, TEST]}, "two tests are called 'needle'"),
        (
            {**HEAD, "rules": {**RULES["rules"], "alpha": 5}, "test": [TEST]},
            "rules.alpha: expected `float` < 1",
        ),
        (
            {**RULES, "suite": {**HEAD["suite"], "name": 3}, "test": [TEST]},
            "suite.name: expected `str`, got `int`",
        ),
    ],
)
def test_a_suite_with_a_mistake_says_where(document: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"mine.toml.*{message}"):
        parse_suite(document, "mine.toml")


def test_unknown_suites(tmp_path: object) -> None:
    with pytest.raises(UsageError, match=f"no suite 'agnet'; known: {', '.join(SUITES)}"):
        load_suite("agnet")
    with pytest.raises(KVQuantError, match="cannot be read"):
        load_suite(f"{tmp_path}/no.toml")


def test_the_digest_follows_what_is_asked_and_not_the_rules() -> None:
    base = parse_suite({**HEAD, **RULES, "test": [TEST]}, "s").digest
    stricter = {"rules": {**RULES["rules"], "alpha": 0.01}}
    assert parse_suite({**HEAD, **stricter, "test": [TEST]}, "s").digest == base
    assert parse_suite({**HEAD, **RULES, "test": [{**TEST, "n_words": 9}]}, "s").digest != base


# Of the first version that had suites; runs of that time can be resumed and compared.
FIRST_DIGESTS = {
    "agent": "da38487e5c1366fab98eaffb21284f3c4231caaf67ec212761831e553fb4e205",
    "recall": "821f170010154276f401b19e1c2df0e7e7bf4c953e2de94154e5cd285f089672",
    "short": "5e9e038b0e55c94dac91f099dac7ba26ccd85a537820553af0ecc8c68e9d37b6",
    "standard": "b86d36bd218c02d0bc26f425a8a802acae5a754b3e700550ca11ef88e78783a7",
}


def test_the_first_digests_are_still_known() -> None:
    assert {name: load_suite(name).digest for name in FIRST_DIGESTS} == FIRST_DIGESTS


def test_the_digest_follows_versions_and_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {**HEAD, **RULES, "test": [TEST]}
    base = parse_suite(document, "s").digest
    with monkeypatch.context() as patch:
        patch.setitem(TASKS, "needle", replace(TASKS["needle"], version=2))
        assert parse_suite(document, "s").digest != base
    with monkeypatch.context() as patch:
        patch.setitem(TASKS, "multi_key", replace(TASKS["multi_key"], version=2))
        assert parse_suite(document, "s").digest == base
    with monkeypatch.context() as patch:
        patch.setattr("kvquant.evals.suite.GRADING_VERSION", 2)
        assert parse_suite(document, "s").digest != base
    with monkeypatch.context() as patch:
        patch.setattr("kvquant.evals.suite.all_facts", lambda: {"words": {}})
        assert parse_suite(document, "s").digest != base
    assert parse_suite(document, "s").digest == base


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_task_that_asks_or_grades_otherwise_has_another_version(name: str) -> None:
    recorded = json.loads(RECORDED.read_text())
    assert mark(TASKS[name]) == recorded[f"{name} {TASKS[name].version}"], (
        f"raise the version of {name}, then PYTHONPATH=tests python tests/evals/task_marks.py"
    )


def test_marks_see_other_questions_and_other_grades() -> None:
    task = TASKS["bat_and_ball"]

    def dearer(rng: random.Random, parameters: Parameters) -> Question:
        return task.generate(random.Random(rng.random()), parameters)

    def kinder(rng: random.Random, parameters: Parameters) -> Question:
        return replace(task.generate(rng, parameters), check=lambda _answer, _calls: RIGHT)

    base, asked, graded = (mark(replace(task, generate=g)) for g in (task.generate, dearer, kinder))
    assert asked["questions"] != base["questions"] == graded["questions"]
    assert graded["grades"] != base["grades"]


def test_another_folder_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVQUANT_EVAL", "/nowhere")
    with pytest.raises(UsageError, match="no suite 'agent'"):
        load_suite("agent")


def test_questions_do_not_touch_the_global_generator() -> None:
    random.seed(1)
    first = random.random()
    random.seed(1)
    questions(TASKS["needle"], 3, 0, "x", {})
    assert random.random() == first
