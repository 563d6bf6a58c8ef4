"""Text to token ids and back: at each byte the longest token that fits, control tokens cut out first.

This is the rule llama.cpp applies for the tokenizer model named `rwkv` (src/llama-vocab.cpp,
llm_tokenizer_rwkv): the vocabulary is a trie over bytes, the single bytes are in it, and so every text has
exactly one reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kvquant.reference.vocabulary import TOKEN_IDS, TOKENS, TURN_END, TURN_START

TOKENIZER_MODEL = "rwkv"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Longest first, so that the first alternative that matches is the longest token.
_LONGEST = re.compile(
    b"|".join(re.escape(token.text) for token in sorted(TOKENS, key=lambda token: -len(token.text))),
    re.DOTALL,
)


def encode(text: str) -> list[int]:
    """Return the token ids of ``text``; control tokens written out in it become those tokens."""
    return [TOKEN_IDS[piece] for piece in _LONGEST.findall(text.encode())]


def token_ends(text: str) -> list[int]:
    """Return, for each token of ``text``, the byte offset at which it ends."""
    return [match.end() for match in _LONGEST.finditer(text.encode())]


def decode(ids: Iterable[int]) -> str:
    """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(TOKENS[index].text for index in ids).decode(errors="replace")


def escape(text: bytes) -> str:
    r"""Return ``text`` as the file holds it: \t, \n, \r, \\ and \xNN for what is not printable ASCII."""
    named = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x5C: "\\\\"}
    return "".join(
        named.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}") for byte in text
    )


def chat(messages: Sequence[tuple[str, str]], *, answer: bool = True) -> str:
    """Return (role, content) ``messages`` as the chat template writes them; ``answer`` opens the next
    turn.
    """
    turns = "".join(f"{TURN_START}{role}\n{content}{TURN_END}\n" for role, content in messages)
    return f"{turns}{TURN_START}assistant\n" if answer else turns
