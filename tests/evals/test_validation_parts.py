"""The pieces of a validation one by one: suites, names of folders, steps, estimates, token files."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from evals.validations import START, records, rounds_of
from kvquant.cli.main import kvquant
from kvquant.documents import from_document
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.divergence import TokenDivergence
from kvquant.evals.divergence_log import open_token_log, read_tokens
from kvquant.evals.location import eval_folder
from kvquant.evals.suite import Suite, load_suite, parse_suite, samples, suite_names
from kvquant.evals.validation.estimate import recorded, seconds_left
from kvquant.evals.validation.plan import (
    CHAT,
    MEMORY,
    NOTHING,
    REPEAT,
    SERVED,
    SPEED,
    TASKS,
    Done,
    Plan,
    Settings,
    Step,
    done_in,
    make_plan,
    pending,
    steps,
    texts_of,
)
from kvquant.evals.validation.records import Start, check_same, folder_name
from kvquant.model.architectures import read_shape, shape_of
from kvquant.model.gguf_file import open_model
from kvquant.policy import parse_policy

MODEL = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"


def document(name: str, **tables: Any) -> dict[str, Any]:
    """A shipped suite with some tables replaced, None to leave one out."""
    found = tomllib.loads((eval_folder() / "suites" / f"{name}.toml").read_text())
    return {key: table for key, table in {**found, **tables}.items() if table is not None}


def programs(tmp_path: Path) -> Path:
    for name in ("llama-server", "llama-bench", "llama-kv-divergence"):
        (tmp_path / name).touch()
    return tmp_path


def plan_of(tmp_path: Path, suite: Suite, *policies: str) -> Plan:
    settings = Settings(suite.n, 0, suite.parts.n_ctx, None, 60.0)
    model = open_model(MODEL)
    policies = policies or ("q8_0", "f16")
    return make_plan(programs(tmp_path), model, shape_of(model), suite, policies, settings)


@pytest.mark.parametrize("name", ["standard", "short", "kld", "speed", "memory"])
def test_shipped_suites_ask_for_what_their_names_say(name: str) -> None:
    parts = load_suite(name).parts
    asked = (parts.divergence is not None, parts.speed is not None, parts.memory)
    everything = (True, True, True)
    one = {"kld": (True, False, False), "speed": (False, True, False), "memory": (False, False, True)}
    assert asked == one.get(name, everything)
    assert bool(load_suite(name).tests) == (name not in one)


def test_every_shipped_suite_is_read() -> None:
    assert {load_suite(name).name for name in suite_names()} == set(suite_names())


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"kld": {"text": "reference", "docs": 3}}, "unknown key 'docs'; known: n_ctx"),
        ({"kld": {}}, "kld: object missing required field `text`"),
        ({"kld": {"text": "reference", "paths": ["both"]}}, r"kld.paths\[0\]: invalid enum value 'both'"),
        ({"kld": {"text": "reference", "paths": "decode"}}, "kld.paths: expected `array`, got `str`"),
        ({"kld": {"text": "reference", "n_tokens": 0}}, "kld.n_tokens: expected `int` >= 1"),
        ({"kld": {"text": "reference", "n_ctx": 4}}, "kld.n_ctx: expected `int` >= 8"),
        ({"speed": {"depths": [-1]}}, r"speed.depths\[0\]: expected `int` >= 0"),
        ({"speed": {"depths": []}}, "speed.depths: expected `array` of length >= 1"),
        ({"speed": {"n_rounds": True}}, "speed.n_rounds: expected `int`, got `bool`"),
        ({"memory": {"peak": 1}}, "unknown key 'peak'"),
        ({"memory": 3}, "memory: expected `object | null`, got `int`"),
        ({"server": {"n_ctx": "big"}}, "server.n_ctx: expected `int`, got `str`"),
        ({"klds": {}}, "unknown key 'klds'"),
    ],
)
def test_mistakes_in_parts_are_named(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_suite(document("short", **tables), "x.toml")


def test_rules_of_parts_have_limits_of_their_own() -> None:
    suite = parse_suite(document("short"), "x.toml")
    assert suite.rules.safe_kl == 0.01
    rules = {**document("short")["rules"], "broken_kl": 2.0}
    assert parse_suite(document("short", rules=rules), "x.toml").rules.broken_kl == 2.0
    with pytest.raises(UsageError, match=r"rules\.safe_speed: expected `float` < 1"):
        parse_suite(document("short", rules={**rules, "safe_speed": 1.0}), "x.toml")


def test_parts_alone_are_nothing_to_ask() -> None:
    with pytest.raises(UsageError, match="the suite kld has no tests to ask; kvquant validate"):
        samples(load_suite("kld"), 1, 0)
    arguments = ["eval", "--base-url", "http://127.0.0.1:9/v1", "--suite", "kld", "--out", "x"]
    assert isinstance(CliRunner().invoke(kvquant, arguments).exception, UsageError)


def test_a_text_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    suite = parse_suite(document("short", kld={"text": "nowhere.txt"}), "x.toml")
    with pytest.raises(UsageError, match=r"'nowhere\.txt' is neither reference nor a file"):
        plan_of(tmp_path, suite)


def test_texts_are_documents_of_the_test_split_or_the_file(tmp_path: Path) -> None:
    part = load_suite("short").parts.divergence
    assert part is not None
    texts = texts_of(part, 0, tmp_path / "texts")
    assert len(texts.files) == part.n_documents and texts.parse_special
    contents = [file.read_text() for file in texts.files]
    assert len(set(contents)) == len(contents)
    assert contents == [file.read_text() for file in texts_of(part, 0, tmp_path / "texts").files]
    assert contents != [file.read_text() for file in texts_of(part, 1, tmp_path / "texts").files]
    file = tmp_path / "own.txt"
    file.write_text("own")
    own = parse_suite(document("short", kld={"text": str(file)}), "x").parts.divergence
    assert own is not None and texts_of(own, 0, tmp_path).files == (file,)


def test_the_baseline_is_f16_or_the_first(tmp_path: Path) -> None:
    suite = load_suite("memory")
    assert [policy.label for policy in plan_of(tmp_path, suite, "q8_0", "F16", "hybrid").policies] == [
        "f16",
        "q8_0",
        "hybrid",
    ]
    assert plan_of(tmp_path, suite, "q8_0", "0-3:q4_0").baseline.label == "q8_0"


def test_only_the_programs_a_suite_needs_must_be_there(tmp_path: Path) -> None:
    folder = programs(tmp_path)
    (folder / "llama-kv-divergence").unlink()
    suite = load_suite("short")
    settings = Settings(suite.n, 0, 512, None, 60.0)
    with pytest.raises(KVQuantError, match="there is no llama-kv-divergence in"):
        make_plan(folder, open_model(MODEL), None, suite, ["f16"], settings)
    make_plan(folder, open_model(MODEL), None, load_suite("memory"), ["f16"], settings)


def test_a_model_without_memory_rules_is_run_all_the_same(tmp_path: Path) -> None:
    suite = load_suite("memory")
    settings = Settings(suite.n, 0, 512, None, 60.0)
    plan = make_plan(programs(tmp_path), open_model(MODEL), None, suite, ["q8_0", "kv0:q4_0"], settings)
    assert plan.shape is None
    assert [policy.resolved for policy in plan.policies] == [None, None]
    assert plan.model_file.n_layer == read_shape(MODEL).n_layer


TYPES = st.sampled_from(["f16", "q8_0", "q4_0", "k=q8_0/v=q4_0", "v=q5_1"])
RULES = st.lists(
    st.tuples(st.integers(0, 40), TYPES), min_size=1, max_size=40, unique_by=lambda rule: rule[0]
)


@given(RULES, RULES)
def test_folder_names_are_names_and_differ(one: list[tuple[int, str]], other: list[tuple[int, str]]) -> None:
    texts = [str(parse_policy(",".join(f"{n}:{types}" for n, types in rules))) for rules in (one, other)]
    names = [folder_name(text) for text in texts]
    assert all(len(name) <= 80 and "/" not in name and not name.startswith(".") for name in names)
    assert (names[0] == names[1]) == (texts[0] == texts[1])


def test_uniform_policies_have_plain_folder_names() -> None:
    assert folder_name("*:q8_0") == "q8_0"
    assert folder_name("*:k=q8_0/v=q4_0") == "k=q8_0+v=q4_0"


def test_steps_are_all_parts_of_all_policies_and_the_repeat(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, load_suite("short"))
    found = steps(plan, NOTHING)
    for text in ("*:f16", "*:q8_0"):
        parts = [step.part for step in found if step.policy == text and step.part != REPEAT]
        assert parts == [TASKS, CHAT, MEMORY, "divergence prefill", "divergence decode", SPEED]
    assert [step.policy for step in found if step.part == REPEAT] == ["*:f16"]
    assert all(step.n_done == 0 and step.n > 0 for step in found)


def test_steps_know_what_is_finished_and_what_failed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, load_suite("short"))
    ids = [sample.id for sample in plan.samples]
    done = Done(
        samples={("*:q8_0", TASKS): {*ids[:5], "of/9"}, ("*:f16", TASKS): set(ids)},
        measured={("*:q8_0", MEMORY), ("*:f16", CHAT)},
        rounds={(0, "*:q8_0"), (7, "*:q8_0")},
        failed={("*:f16", TASKS)},
    )
    found = {(step.policy, step.part): step for step in steps(plan, done)}
    assert found["*:q8_0", TASKS].n_left == len(ids) - 5
    assert found["*:q8_0", MEMORY].n_left == 0
    # A round beyond those the suite has now does not count.
    assert found["*:q8_0", SPEED].n_done == 1
    every = list(found.values())
    assert pending(every, "*:q8_0", SERVED) == [TASKS, CHAT]
    # All its samples are there, but its last attempt failed: tried again, it clears the failure.
    assert pending(every, "*:f16", SERVED) == [TASKS, MEMORY]


def test_done_is_read_from_records() -> None:
    made = records(rounds=rounds_of({"*:q8_0": [1.0, 2.0]}))
    done = done_in(made)
    assert done.rounds == {(0, "*:q8_0"), (1, "*:q8_0")}
    assert len(done.samples["*:f16", REPEAT]) == 400
    assert ("*:q4_0", MEMORY) in done.measured
    assert done_in(None) == NOTHING


def test_time_left_says_when_it_does_not_know() -> None:
    found = [Step("*:f16", TASKS, 10, 4), Step("*:f16", SPEED, 3, 3), Step("*:f16", MEMORY, 1, 0)]
    assert seconds_left(found, {TASKS: 2.0, MEMORY: 1.0}) == (13.0, True)
    assert seconds_left(found, {TASKS: 2.0}) == (12.0, False)


def test_time_taken_is_read_from_records() -> None:
    made = records(
        rounds=rounds_of({"*:q8_0": [1.0, 2.0]}),
        seconds={("*:f16", MEMORY): 2.0, ("*:q8_0", MEMORY): 4.0, ("*:f16", TASKS): 99.0},
    )
    assert recorded(made) == {TASKS: 1.0, REPEAT: 1.0, MEMORY: 3.0, SPEED: 1.0}


def token(document: int, chunk: int, position: int, kl: float = 0.1) -> TokenDivergence:
    return TokenDivergence(document, chunk, position, kl, True, 1.0, 1.5)


CHUNKS = [[token(*place, position) for position in (4, 5, 6)] for place in itertools.product((0, 1), (0, 1))]
TOKENS = [made for chunk in CHUNKS for made in chunk]


def test_tokens_are_on_the_disk_chunk_by_chunk(tmp_path: Path) -> None:
    path = tmp_path / "new" / "q8_0.prefill.jsonl"
    with open_token_log(path) as log:
        log.start(["--model", "m"])
        for chunk in CHUNKS[:2]:
            log.append(chunk)
        assert read_tokens(path) == TOKENS[:6]
    with open_token_log(path) as log:
        assert (log.tokens, log.n_chunks, log.finished) == (TOKENS[:6], 2, False)
        for chunk in CHUNKS[2:]:
            log.append(chunk)
        log.finish()
    assert read_tokens(path) == TOKENS
    with open_token_log(path) as log:
        assert (log.n_chunks, log.finished) == (4, True)
    path.write_bytes(path.read_bytes()[:-40])
    assert read_tokens(path) == TOKENS[:9]
    with open_token_log(path) as log:
        assert (log.n_chunks, log.finished) == (3, False)


def test_tokens_are_kept_with_the_digits_they_have(tmp_path: Path) -> None:
    with open_token_log(tmp_path / "x.jsonl") as log:
        log.append([token(0, 0, 1, kl=0.123456789012)])
        assert log.tokens == read_tokens(tmp_path / "x.jsonl") == [token(0, 0, 1, kl=0.1234568)]


@pytest.mark.parametrize(
    "damage", [b"0.1,0.1", b'"x",0.1', b"true,0.1", b"-4,0.1", b"4,-0.1", b"4,NaN", b'4,"x"', b"4"]
)
def test_damaged_tokens_name_the_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "x.jsonl"
    with open_token_log(path) as log:
        log.start([])
        log.append(CHUNKS[0])
    path.write_bytes(path.read_bytes().replace(b"[4, 0.1", b"[" + damage))
    with pytest.raises(KVQuantError, match="line 2 is damaged"):
        read_tokens(path)


@pytest.mark.parametrize("name", ["model", "suite", "seed", "context", "baseline", "build of llama.cpp"])
def test_what_makes_another_validation_is_named(tmp_path: Path, name: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "model": {"model": {**vars(START.model), "sha256": "1" * 64}},
        "suite": {"suite": {**vars(START.suite), "name": "t"}},
        "seed": {"seed": 1},
        "context": {"n_ctx": 1024},
        "baseline": {"policies": [vars(policy) for policy in START.policies[::-1]]},
        "build of llama.cpp": {"build": {"commit": "x"}},
    }
    document = {key: value for key, value in vars(START).items() if key not in {"model", "suite", "policies"}}
    whole = {
        **document,
        "model": vars(START.model),
        "suite": vars(START.suite),
        "policies": [vars(policy) for policy in START.policies],
    }
    check_same(tmp_path, START, from_document(Start, whole, "x"))
    with pytest.raises(UsageError, match=f"contains a validation with another {name}; give another --out"):
        check_same(tmp_path, START, from_document(Start, {**whole, **changes[name]}, "x"))
