"""Training and test documents: what they promise about splits, answers and length."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.errors import UsageError
from kvquant.reference.tasks import (
    REQUESTS,
    TASKS,
    Document,
    Size,
    Split,
    chat_question,
    draw_document,
    held_out_documents,
    recall_prompt,
    split_of,
)
from kvquant.reference.tokenizer import encode
from kvquant.reference.vocabulary import ANIMALS, COLOURS, FOODS, JOBS, KEYS, PLACES, VALUES
from reference_model.batches import answer_mask, draw_batch

SEEDS = st.integers(0, 2**32)
SPLITS = st.sampled_from(Split)
NAMES = st.sampled_from(sorted(TASKS))
SIZES = st.builds(Size, st.integers(2, 400), st.integers(1, 256), st.sampled_from([16, 64, 256]))

_OBJECTS = (PLACES, FOODS, COLOURS, JOBS)


def stated_pairs(document: Document) -> list[tuple[int, int]]:
    """Every pair of words that ``document`` states or answers, as indices, found in its text alone."""
    text = document.text
    keys = {key: index for index, key in enumerate(KEYS)}
    pairs = [
        (keys[key], int(value) - int(VALUES[0])) for key, value in re.findall(r"\b([a-z]{4})=(\d{3})\b", text)
    ]
    pairs += [(keys[a], keys[b]) for a, b in re.findall(r"\b([a-z]{4})->([a-z]{4})\b", text)]
    if document.kind == "copy":
        for words in re.findall(r"[|:]((?: [a-z]{4})+)", text):
            numbers = [keys[word] for word in words.split()]
            pairs += pairwise(numbers)
    if document.kind == "arithmetic":
        for a, sign, b in re.findall(r"(\d+)([+-])(\d+)=", text):
            pairs.append((int(a), int(b)) if sign == "+" else (int(a) - int(b), int(b)))
    for animal, word in re.findall(r" The (\w+) (?:lives in|eats|wears|is a) (\w+)\.", text):
        objects = next(words for words in _OBJECTS if word in words)
        pairs.append((ANIMALS.index(animal), objects.index(word)))
    return pairs


def check_pairs_belong_to(document: Document, split: Split) -> None:
    """Fail when ``document`` states a pair that another split may state."""
    strangers = [pair for pair in stated_pairs(document) if split_of(*pair) is not split]
    assert not strangers, f"{document.kind} states {strangers[:3]}, which are not of split {split.value}"


@given(SEEDS, SPLITS, NAMES, SIZES)
def test_a_document_states_pairs_of_its_split_only(seed, split, name, size):
    check_pairs_belong_to(TASKS[name](np.random.default_rng(seed), split, size), split)


def test_the_check_of_splits_can_fail():
    train = TASKS["recall"](np.random.default_rng(1), Split.TRAIN, Size(64, 8))
    with pytest.raises(AssertionError, match="not of split test"):
        check_pairs_belong_to(train, Split.TEST)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_check_of_splits_sees_pairs_in_every_task(name):
    assert stated_pairs(TASKS[name](np.random.default_rng(1), Split.TRAIN, Size(200, 32)))


def test_every_pair_has_one_split_and_every_split_can_extend_every_word():
    for first in range(256):
        of_first = [split_of(first, second) for second in range(16)]
        assert [of_first.count(split) for split in (Split.TEST, Split.VALIDATION, Split.TRAIN)] == [2, 2, 12]


@given(SEEDS, SPLITS, NAMES, SIZES)
def test_documents_are_long_enough_and_answers_are_whole_tokens(seed, split, name, size):
    document = TASKS[name](np.random.default_rng(seed), split, size)
    assert len(encode(document.text)) >= size.n_tokens
    mask = answer_mask(document)
    data = document.text.encode()
    answered = "".join(data[start:end].decode() for start, end in document.answers)
    ids = np.array(encode(document.text))[mask]
    assert list(ids) == encode_pieces(document)
    assert answered or not mask.any()
    spans = [position for span in document.answers for position in span]
    assert spans == sorted(spans)
    assert all(0 <= position <= len(data) for position in spans)


def encode_pieces(document: Document) -> list[int]:
    """The tokens of each answer on its own: equal to those in the text when no token crosses an edge."""
    data = document.text.encode()
    return [index for start, end in document.answers for index in encode(data[start:end].decode())]


@given(SEEDS, NAMES)
def test_the_same_seed_gives_the_same_document(seed, name):
    first, again = (TASKS[name](np.random.default_rng(seed), Split.TRAIN, Size(80, 16)) for _ in range(2))
    assert first == again


@given(SEEDS, st.integers(1, 64), st.integers(0, 300))
def test_a_recall_prompt_asks_what_it_stated(seed, n_pairs, extra):
    n_tokens = 2 * n_pairs + 2 + extra
    document = recall_prompt(np.random.default_rng(seed), Split.TEST, n_pairs, n_tokens, n_pairs)
    facts, asked = document.text.split(" Ask:")
    stated = dict(re.findall(r"([a-z]{4})=(\d{3})", facts))
    assert len(stated) == n_pairs
    assert dict(re.findall(r"([a-z]{4})=(\d{3})", asked)) == stated
    assert len(encode(facts + " Ask:")) == n_tokens


@pytest.mark.parametrize(
    ("n_pairs", "n_tokens", "n_asked"), [(0, 64, 1), (257, 1024, 1), (32, 65, 1), (4, 64, 5)]
)
def test_recall_prompts_that_cannot_be_are_refused(n_pairs, n_tokens, n_asked):
    with pytest.raises(UsageError, match="each pair takes 2 tokens"):
        recall_prompt(np.random.default_rng(1), Split.TEST, n_pairs, n_tokens, n_asked)


@given(SEEDS, st.sampled_from(sorted(REQUESTS)))
def test_chat_questions_are_answered_by_their_facts(seed, kind):
    question = chat_question(np.random.default_rng(seed), Split.TEST, kind, 8, 60)
    facts, asked = question.user.split("\n")
    stated = dict(re.findall(r"([a-z]{4})=(\d{3})", facts))
    keys = [word for word in re.findall(r"\b[a-z]{4}\b", asked) if word in stated]
    assert keys
    if kind == "tool":
        assert json.loads(question.answer) == {"name": "lookup", "arguments": {"key": keys[0]}}
    elif kind == "json":
        assert json.loads(question.answer) == {keys[0]: int(stated[keys[0]])}
    elif kind == "csv":
        rows = [f"{key},{stated[key]}" for key in keys]
        assert question.answer.splitlines() == ["key,value", *rows]
    else:
        assert re.findall(r"([a-z]{4})=(\d{3})", question.answer) == [(key, stated[key]) for key in keys]


def test_unknown_chat_requests_are_named():
    with pytest.raises(UsageError, match=r"'poem'.*pair, tool, json"):
        chat_question(np.random.default_rng(1), Split.TEST, "poem", 4, 60)


def test_unknown_tasks_are_named():
    with pytest.raises(UsageError, match=r"poem.*recall"):
        draw_document(np.random.default_rng(1), Split.TEST, {"poem": 1.0}, Size(10, 1))


def test_held_out_documents_take_the_tasks_in_turn():
    kinds = [document.kind for document in held_out_documents(1, Split.TEST, 9, Size(60, 8))]
    assert kinds == [*TASKS, next(iter(TASKS))]


def test_batches_are_rows_of_one_length_and_depend_on_the_seed_alone():
    batches = [
        draw_batch((1, 2, step), Split.TRAIN, {"recall": 1.0, "chat": 1.0}, 6, Size(48, 8))
        for step in (0, 0, 1)
    ]
    assert batches[0].tokens.shape == (6, 49)
    assert batches[0].answers.shape == (6, 48)
    assert np.array_equal(batches[0].tokens, batches[1].tokens)
    assert not np.array_equal(batches[0].tokens, batches[2].tokens)
    assert set(batches[0].kinds) <= {"recall", "chat"}
    assert batches[0].answers.any(axis=1).all()
