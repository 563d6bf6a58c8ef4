"""The tokens of the reference model: three control tokens, the 256 bytes, and whole words in the forms texts
use.

A recall task is learnt fast when a key and a value are one token each, so every key word and every number has
one token per form it is written in: `kobu`, ` kobu`, `->kobu` and `417`, `=417`. Forms of one word share an
identity, which the trainer uses to start their embeddings alike. Anything else is spelt in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
CONTROL = (END_OF_TEXT, TURN_START, TURN_END)

_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")

N_KEYS = 256
N_VALUES = 256


def _key(index: int) -> str:
    """Return the key word of ``index``: a pair of syllables, different for every index below 70 * 70."""
    first = (index * 37) % len(_SYLLABLES)
    second = (index * 11 + index // len(_SYLLABLES) * 29 + 3) % len(_SYLLABLES)
    return _SYLLABLES[first] + _SYLLABLES[second]


KEYS = tuple(_key(index) for index in range(N_KEYS))
VALUES = tuple(str(100 + index) for index in range(N_VALUES))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _words(
    """ant bear bee bird bull camel cat cow crab crow deer dog dove duck eagle eel fish fly fox frog goat
    goose hare hawk hen horse lamb lion lizard mole monkey moth mouse mule otter owl ox panda pig rabbit rat
    raven seal shark sheep snail snake spider swan tiger toad turtle whale wolf worm zebra"""
)
PLACES = _words(
    """Accra Athens Bergen Berlin Bogota Boston Cairo Chicago Dakar Delhi Denver Dublin Geneva Hanoi Havana
    Jakarta Kiev Lagos Lima Lisbon London Lyon Madrid Malmo Manila Miami Milan Mumbai Munich Nairobi Naples
    Osaka Oslo Paris Porto Prague Quito Rabat Riga Rome Seoul Seville Sofia Sydney Tokyo Toronto Tunis Turin
    Vienna Warsaw York Zurich"""
)
FOODS = _words(
    """apples bacon beans beets bread butter cake carrots cheese cherries corn dates eggs figs garlic grapes
    honey leeks lemons lentils melons milk nuts oats olives onions pasta peaches pears peas plums rice"""
)
COLOURS = _words(
    "amber beige black blue bronze brown coral cream gold green grey indigo orange pink red white"
)
JOBS = _words(
    """baker banker barber builder butcher chef clerk dancer doctor driver farmer guard hunter judge lawyer
    miner nurse painter pilot poet porter sailor singer smith soldier tailor teacher trader waiter weaver
    writer"""
)
FILLER = _words(
    """again also and any are as at away back because been before being both but by came can could day did
    down each even every far few first for from gave go good had hand has he her here him his home house how
    if into its just kept last left less light like little long made many may men more most much must near
    never new next night no none not now of off old on once one only open or other our out over own part past
    people quite rather road room round said saw say see set she should show side since sky small so some soon
    still stood such sun take tell than that their them then there these they thing this those time to too
    took tree two under until up upon very walk was water way we well went were when where which while who why
    wide wind with woman wood word work would year yet you young"""
)
GRAMMAR = _words("The the lives in eats wears is a Where What does live eat wear")
MARKS = (
    ".",
    "?",
    ":",
    ",",
    "\n",
    " |",
    " Facts:",
    " Ask:",
    " Follow:",
    " Copy:",
    "user\n",
    "assistant\n",
    "What is",
    "Look up",
    "Give",
    "List",
    " with the tool",
    " as JSON",
    " as CSV",
    "key,value\n",
    "- ",
    '{"',
    '": ',
    "}",
    '{"name": "lookup", "arguments": {"key": "',
    '"}}',
)


@dataclass(frozen=True)
class Token:
    """One token: its text as bytes, whether it is a control token, and the word whose form it is (None: no
    word).
    """

    text: bytes
    control: bool = False
    word: str | None = None


def _tokens() -> tuple[Token, ...]:
    """Return the whole vocabulary, each text once, in the order of its ids."""
    found: dict[bytes, Token] = {}

    def add(text: str, *, control: bool = False, word: str | None = None) -> None:
        found.setdefault(text.encode(), Token(text.encode(), control, word))

    for name in CONTROL:
        add(name, control=True)
    for byte in range(256):
        found[bytes([byte])] = Token(bytes([byte]))
    for key in KEYS:
        for form in (key, f" {key}", f"->{key}"):
            add(form, word=key)
    for value in VALUES:
        for form in (value, f"={value}"):
            add(form, word=value)
    for words in (ANIMALS, PLACES, FOODS, COLOURS, JOBS, GRAMMAR, FILLER):
        for word in words:
            add(f" {word}", word=word)
    for mark in MARKS:
        add(mark)
    return tuple(found.values())


TOKENS = _tokens()
"""Every token; the position is the token id."""

TOKEN_IDS: dict[bytes, int] = {token.text: index for index, token in enumerate(TOKENS)}
"""Token text to token id."""
