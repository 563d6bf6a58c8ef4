"""What the reference model reads: documents from a seed, whose later text mostly follows from the earlier.

Every document is built of statements that join two words (a key and a value, an animal and a place, two
numbers to add). `split_of` gives each such pair to one split, and a document of a split states pairs of that
split only. So no statement of a test document occurs in any training document, whatever the seeds are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from kvquant.errors import UsageError
from kvquant.reference.tokenizer import encode
from kvquant.reference.vocabulary import (
    ANIMALS,
    COLOURS,
    FILLER,
    FOODS,
    JOBS,
    KEYS,
    PLACES,
    TURN_END,
    TURN_START,
    VALUES,
)


class Split(Enum):
    """Which documents a pair of words may appear in."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_RESIDUES: Final[Mapping[Split, tuple[int, ...]]] = {
    Split.TEST: (0,),
    Split.VALIDATION: (1,),
    Split.TRAIN: (2, 3, 4, 5, 6, 7),
}


def split_of(first: int, second: int) -> Split:
    """Return the one split that may state the pair of word indices (``first``, ``second``)."""
    residue = (3 * first + second) % 8
    return next(split for split, residues in _RESIDUES.items() if residue in residues)


def _partner(rng: np.random.Generator, split: Split, first: int, n: int) -> int:
    """Return a random index below ``n`` that ``split`` may join to ``first``."""
    while True:
        second = int(rng.integers(n))
        if split_of(first, second) is split:
            return second


@dataclass(frozen=True)
class Document:
    """A text and the byte spans of it that a reader who remembers the rest can predict.

    kind: the task. text: what the model reads. answers: (start, end) byte offsets, ascending, not
    overlapping.
    """

    kind: str
    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Size:
    """How long and how hard training documents are.

    n_tokens: a document has at least so many. most_pairs: it states at most so many pairs (fewer when short).
    n_words: keys and values come from the first so many words of each list, the knob of the first lessons.
    """

    n_tokens: int
    most_pairs: int
    n_words: int = len(KEYS)


class _Writer:
    """Collects a document piece by piece and counts its tokens."""

    def __init__(self, n_tokens: int) -> None:
        self._parts: list[str] = []
        self._answers: list[tuple[int, int]] = []
        self._n_bytes = 0
        self._left = n_tokens

    @property
    def left(self) -> int:
        """Tokens still to be written before the document has the length asked for."""
        return self._left

    def say(self, *pieces: str) -> None:
        for piece in pieces:
            self._parts.append(piece)
            self._n_bytes += len(piece.encode())
            self._left -= len(encode(piece))

    def answer(self, *pieces: str) -> None:
        start = self._n_bytes
        self.say(*pieces)
        self._answers.append((start, self._n_bytes))

    def document(self, kind: str) -> Document:
        return Document(kind, "".join(self._parts), tuple(self._answers))


@dataclass(frozen=True)
class _Facts:
    """Pairs of a key and a value: `keys` are different words, `values` may repeat."""

    keys: tuple[str, ...]
    values: tuple[str, ...]

    @staticmethod
    def draw(rng: np.random.Generator, split: Split, n: int, n_words: int = len(KEYS)) -> _Facts:
        keys = rng.permutation(n_words)[:n]
        values = [_partner(rng, split, int(key), n_words) for key in keys]
        return _Facts(tuple(KEYS[key] for key in keys), tuple(VALUES[value] for value in values))

    def __len__(self) -> int:
        return len(self.keys)


def _filler(rng: np.random.Generator, n: int) -> list[str]:
    return [f" {FILLER[index]}" for index in rng.integers(len(FILLER), size=n)]


def _gaps(rng: np.random.Generator, n_gaps: int, n_words: int) -> list[int]:
    """Return ``n_gaps`` random counts of filler words that sum to ``n_words``."""
    return [int(count) for count in rng.multinomial(max(n_words, 0), np.full(n_gaps, 1 / n_gaps))]


def _state_facts(writer: _Writer, rng: np.random.Generator, facts: _Facts, n_filler: int) -> None:
    """Write each pair once, `` key=value``, with ``n_filler`` distracting words spread between them."""
    for key, value, gap in zip(facts.keys, facts.values, _gaps(rng, len(facts), n_filler), strict=True):
        writer.say(*_filler(rng, gap), f" {key}", f"={value}")


def recall_prompt(
    rng: np.random.Generator, split: Split, n_pairs: int, n_tokens: int, n_asked: int
) -> Document:
    """Return a recall test: ``n_pairs`` pairs and filler in ``n_tokens`` tokens, then ``n_asked`` keys.

    Raises UsageError when the pairs need more room than ``n_tokens``, or there are not that many keys.
    """
    if not 1 <= n_pairs <= len(KEYS) or 2 * n_pairs + 2 > n_tokens or not 1 <= n_asked <= n_pairs:
        raise UsageError(
            f"cannot ask {n_asked} of {n_pairs} pairs within {n_tokens} tokens: each pair takes 2 tokens, "
            f"there are {len(KEYS)} keys, and a key is asked at most once"
        )
    facts = _Facts.draw(rng, split, n_pairs)
    writer = _Writer(n_tokens)
    writer.say(" Facts:")
    _state_facts(writer, rng, facts, n_tokens - 2 * n_pairs - 2)
    writer.say(" Ask:")
    for index in rng.permutation(n_pairs)[:n_asked]:
        writer.say(f" {facts.keys[index]}")
        writer.answer(f"={facts.values[index]}")
    return writer.document("recall")


def _n_statements(rng: np.random.Generator, most: int) -> int:
    """Return a count from 1 to ``most``, small ones as likely as large ones on a log scale."""
    return int(np.exp(rng.uniform(0, np.log(most + 1))))


def recall(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """Associative recall: pairs stated among filler words, then asked again and again."""
    facts = _Facts.draw(
        rng, split, _n_statements(rng, min(size.most_pairs, size.n_tokens // 8)), size.n_words
    )
    writer = _Writer(size.n_tokens)
    writer.say(" Facts:")
    _state_facts(writer, rng, facts, int(rng.integers(max(1, size.n_tokens // 2 - 2 * len(facts)))))
    writer.say(" Ask:")
    while writer.left > 0:
        index = int(rng.integers(len(facts)))
        writer.say(f" {facts.keys[index]}")
        writer.answer(f"={facts.values[index]}")
    return writer.document("recall")


def stream(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """Associative recall with new pairs arriving while older ones are asked."""
    facts = _Facts.draw(
        rng, split, _n_statements(rng, min(size.most_pairs, size.n_tokens // 6)), size.n_words
    )
    writer = _Writer(size.n_tokens)
    known = 0
    new_rate = rng.uniform(1, 4) * len(facts) / (size.n_tokens / 2)
    while writer.left > 0:
        if known == 0 or (known < len(facts) and rng.random() < new_rate):
            writer.say(f" {facts.keys[known]}", f"={facts.values[known]}")
            known += 1
        else:
            index = int(rng.integers(known))
            writer.say(f" {facts.keys[index]}")
            writer.answer(f"={facts.values[index]}")
    return writer.document("stream")


def grid(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """Recall by two words at once: neither word of ` kobu zane=417` tells the value alone."""
    side = max(2, int(np.sqrt(_n_statements(rng, min(size.most_pairs, size.n_tokens // 10)))))
    words = rng.permutation(size.n_words)[: 2 * side]
    cells = [
        (KEYS[row], KEYS[column], VALUES[_partner(rng, split, int(column), size.n_words)])
        for row in words[:side]
        for column in words[side:]
    ]
    writer = _Writer(size.n_tokens)
    writer.say(" Facts:")
    for index in rng.permutation(len(cells)):
        row, column, value = cells[index]
        writer.say(f" {row}", f" {column}", f"={value}")
    writer.say(" Ask:")
    while writer.left > 0:
        row, column, value = cells[int(rng.integers(len(cells)))]
        writer.say(f" {row}", f" {column}")
        writer.answer(f"={value}")
    return writer.document("grid")


def follow(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """Look-ups over several steps: ` kobu->zane` and ` zane=417` apart, then the whole way from ` kobu`."""
    n_chains = _n_statements(rng, min(size.most_pairs, size.n_tokens // 16))
    order = [int(index) for index in rng.permutation(size.n_words)]
    chains: list[list[str]] = []
    steps: list[tuple[str, str]] = []
    while order and len(chains) < n_chains:
        current = order.pop()
        chain = [f" {KEYS[current]}"]
        for _ in range(int(rng.integers(1, 3))):
            following = next((index for index in reversed(order) if split_of(current, index) is split), None)
            if following is None:
                break
            order.remove(following)
            steps.append((f" {KEYS[current]}", f"->{KEYS[following]}"))
            chain += [f"->{KEYS[following]}", f" {KEYS[following]}"]
            current = following
        value = f"={VALUES[_partner(rng, split, current, size.n_words)]}"
        steps.append((f" {KEYS[current]}", value))
        chains.append([*chain, value])
    writer = _Writer(size.n_tokens)
    writer.say(" Facts:")
    for index in rng.permutation(len(steps)):
        writer.say(*steps[index])
    while writer.left > 0:
        chain = chains[int(rng.integers(len(chains)))]
        writer.say(" Follow:", chain[0])
        writer.answer(*chain[1:])
    return writer.document("follow")


def copy(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """A list of words, then the list again; neighbours in the list are pairs of the split."""
    writer = _Writer(size.n_tokens)
    while writer.left > 0:
        length = 1 + _n_statements(rng, max(1, min(size.most_pairs, size.n_tokens // 4)))
        indices = [int(rng.integers(size.n_words))]
        while len(indices) < length:
            indices.append(_partner(rng, split, indices[-1], size.n_words))
        words = [f" {KEYS[index]}" for index in indices]
        writer.say(" Copy:", *words, " |")
        writer.answer(*words)
    return writer.document("copy")


@dataclass(frozen=True)
class _Relation:
    """One kind of sentence about an animal: how it is stated and asked, and the words that can fill it."""

    states: tuple[str, ...]
    asks: tuple[str, str]
    fillers: tuple[str, ...]


_RELATIONS: Final = (
    _Relation((" lives", " in"), (" Where does the", " live?"), PLACES),
    _Relation((" eats",), (" What does the", " eat?"), FOODS),
    _Relation((" wears",), (" What does the", " wear?"), COLOURS),
    _Relation((" is", " a"), (" What is the", "?"), JOBS),
)


def language(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """Plain English about animals: what was said once is said or asked again much later."""
    most = min(size.most_pairs, size.n_tokens // 16, len(ANIMALS) * len(_RELATIONS))
    chosen = rng.permutation(len(ANIMALS) * len(_RELATIONS))[: _n_statements(rng, most)]
    facts: list[tuple[str, _Relation, str]] = []
    for number in chosen:
        animal, relation = int(number) // len(_RELATIONS), _RELATIONS[int(number) % len(_RELATIONS)]
        filler = relation.fillers[_partner(rng, split, animal, len(relation.fillers))]
        facts.append((f" {ANIMALS[animal]}", relation, f" {filler}"))
    writer = _Writer(size.n_tokens)
    aside = float(rng.uniform(0, 0.5))
    for animal_word, relation, filler in facts:
        writer.say(" The", animal_word, *relation.states, filler, ".")
        if rng.random() < aside:
            writer.say(*_filler(rng, int(rng.integers(2, 8))), ".")
    while writer.left > 0:
        animal_word, relation, filler = facts[int(rng.integers(len(facts)))]
        if rng.random() < 0.5:
            writer.say(" The", animal_word, *relation.states)
        else:
            writer.say(relation.asks[0], animal_word, relation.asks[1])
        writer.answer(filler, ".")
    return writer.document("language")


_LARGEST_TERM: Final = 49


def arithmetic(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """Sums and differences of whole numbers up to 49, one a line."""
    writer = _Writer(size.n_tokens)
    while writer.left > 0:
        first = int(rng.integers(_LARGEST_TERM + 1))
        second = _partner(rng, split, first, _LARGEST_TERM + 1)
        if rng.random() < 0.5:
            writer.say(f"{first}+{second}=")
            writer.answer(f"{first + second}\n")
        else:
            writer.say(f"{first + second}-{second}=")
            writer.answer(f"{first}\n")
    return writer.document("arithmetic")


@dataclass(frozen=True)
class _Request:
    """A thing to ask in a chat: what the user writes before and after the keys, and what is answered."""

    before: str
    after: str
    most_keys: int
    reply: Callable[[_Facts], tuple[str, ...]]


def _reply_pair(facts: _Facts) -> tuple[str, ...]:
    return (facts.keys[0], f"={facts.values[0]}")


def _reply_tool(facts: _Facts) -> tuple[str, ...]:
    return ('{"name": "lookup", "arguments": {"key": "', facts.keys[0], '"}}')


def _reply_json(facts: _Facts) -> tuple[str, ...]:
    return ('{"', facts.keys[0], '": ', facts.values[0], "}")


def _reply_csv(facts: _Facts) -> tuple[str, ...]:
    rows = zip(facts.keys, facts.values, strict=True)
    return ("key,value\n", *(piece for key, value in rows for piece in (key, ",", value, "\n")))


def _reply_list(facts: _Facts) -> tuple[str, ...]:
    rows = zip(facts.keys, facts.values, strict=True)
    return tuple(piece for key, value in rows for piece in ("- ", key, f"={value}", "\n"))


REQUESTS: Final[Mapping[str, _Request]] = {
    "pair": _Request("What is", "?", 1, _reply_pair),
    "tool": _Request("Look up", " with the tool.", 1, _reply_tool),
    "json": _Request("Give", " as JSON.", 1, _reply_json),
    "csv": _Request("Give", " as CSV.", 4, _reply_csv),
    "list": _Request("List", ".", 4, _reply_list),
}
"""The chat requests by name."""


@dataclass(frozen=True)
class Question:
    """One chat question with its only right answer.

    kind: the request's name. user: what the user writes, the facts included. answer: what the model should
    reply.
    """

    kind: str
    user: str
    answer: str


def chat_question(rng: np.random.Generator, split: Split, kind: str, n_pairs: int, n_tokens: int) -> Question:
    """Return a question of ``kind`` about ``n_pairs`` facts spread over about ``n_tokens`` tokens.

    Raises UsageError for an unknown kind, or when the facts need more room.
    """
    request = REQUESTS.get(kind)
    if request is None or not 1 <= n_pairs <= len(KEYS) or 2 * n_pairs > n_tokens:
        raise UsageError(
            f"cannot ask {kind!r} about {n_pairs} pairs in {n_tokens} tokens: "
            f"kinds are {', '.join(REQUESTS)}, each pair takes 2 tokens and there are {len(KEYS)} keys"
        )
    facts = _Facts.draw(rng, split, n_pairs)
    writer = _Writer(n_tokens)
    writer.say(" Facts:")
    _state_facts(writer, rng, facts, n_tokens - 2 * n_pairs)
    asked = _some_facts(rng, facts, request.most_keys)
    writer.say("\n", request.before, *(f" {key}" for key in asked.keys), request.after)
    return Question(kind, writer.document(kind).text, "".join(request.reply(asked)))


def _some_facts(rng: np.random.Generator, facts: _Facts, most: int) -> _Facts:
    indices = rng.permutation(len(facts))[: int(rng.integers(1, most + 1))]
    return _Facts(tuple(facts.keys[i] for i in indices), tuple(facts.values[i] for i in indices))


def chat(rng: np.random.Generator, split: Split, size: Size) -> Document:
    """A chat of many turns over one list of facts, in the template the model file carries."""
    facts = _Facts.draw(
        rng, split, _n_statements(rng, min(size.most_pairs, size.n_tokens // 8)), size.n_words
    )
    requests = list(REQUESTS.values())
    writer = _Writer(size.n_tokens)
    writer.say(TURN_START, "user\n", " Facts:")
    _state_facts(writer, rng, facts, int(rng.integers(max(1, size.n_tokens // 2 - 2 * len(facts)))))
    writer.say("\n")
    while True:
        request = requests[int(rng.integers(len(requests)))]
        asked = _some_facts(rng, facts, request.most_keys)
        writer.say(request.before, *(f" {key}" for key in asked.keys), request.after, TURN_END, "\n")
        writer.say(TURN_START, "assistant\n")
        writer.answer(*request.reply(asked), TURN_END)
        writer.say("\n")
        if writer.left <= 0:
            return writer.document("chat")
        writer.say(TURN_START, "user\n")


Task = Callable[[np.random.Generator, Split, Size], Document]

TASKS: Final[Mapping[str, Task]] = {
    task.__name__: task for task in (recall, stream, grid, follow, copy, language, arithmetic, chat)
}
"""Every training task: (rng, split, size) to a document."""


def draw_document(
    rng: np.random.Generator, split: Split, weights: Mapping[str, float], size: Size
) -> Document:
    """Return a document of a task drawn by ``weights`` (task name to share). Raises UsageError for unknown
    names.
    """
    unknown = sorted(set(weights) - set(TASKS))
    if unknown or not weights:
        raise UsageError(f"unknown tasks {unknown}; known: {', '.join(TASKS)}")
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], dtype=float)
    name = names[int(rng.choice(len(names), p=shares / shares.sum()))]
    return TASKS[name](rng, split, size)


def held_out_documents(seed: int, split: Split, n_documents: int, size: Size) -> Sequence[Document]:
    """Return ``n_documents`` documents, the tasks in turn, for measuring perplexity."""
    tasks = list(TASKS.values())
    return [
        tasks[index % len(tasks)](np.random.default_rng([seed, index]), split, size)
        for index in range(n_documents)
    ]
