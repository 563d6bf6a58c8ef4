"""Text to tokens and back, by the longest token at each place."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from kvquant.reference.tokenizer import chat, decode, encode, escape, token_ends
from kvquant.reference.vocabulary import CONTROL, KEYS, TOKEN_IDS, TOKENS, VALUES

TEXTS = st.lists(
    st.one_of(st.text(max_size=8), st.sampled_from([token.text.decode("latin-1") for token in TOKENS]))
).map("".join)


def longest_match(text: str) -> list[int]:
    """The rule, written the slow way: at each byte, the longest token that fits."""
    data, found = text.encode(), []
    longest = max(len(token.text) for token in TOKENS)
    while data:
        piece = next(data[:n] for n in range(longest, 0, -1) if data[:n] in TOKEN_IDS)
        found.append(TOKEN_IDS[piece])
        data = data[len(piece) :]
    return found


@given(TEXTS)
@example("")
@example("\x00\n\\ é \U0001f600")
@example(" babo=100->babo babo=1000")
def test_every_text_has_one_reading_and_comes_back(text):
    ids = encode(text)
    assert decode(ids) == text
    assert ids == longest_match(text)
    assert token_ends(text)[-1:] == ([len(text.encode())] if text else [])


def test_every_form_of_a_word_is_one_token():
    for key in KEYS:
        assert [len(encode(form)) for form in (key, f" {key}", f"->{key}")] == [1, 1, 1]
    for value in VALUES:
        assert [len(encode(form)) for form in (value, f"={value}")] == [1, 1]


def test_keys_and_values_are_all_different():
    assert len(set(KEYS)) == len(KEYS) == 256
    assert len(set(VALUES)) == len(VALUES) == 256
    assert len({token.text for token in TOKENS}) == len(TOKENS)


def test_the_bytes_are_all_there():
    assert all(bytes([byte]) in TOKEN_IDS for byte in range(256))


def test_escapes_are_printable_and_tell_tokens_apart():
    escaped = [escape(token.text) for token in TOKENS]
    assert len(set(escaped)) == len(escaped)
    assert all(text.isascii() and text.isprintable() for text in escaped)
    assert escape(b"\t\n\r\\\x00\xffa") == r"\t\n\r\\\x00\xffa"


def test_control_tokens_come_first_and_are_cut_out_of_text():
    assert [token.control for token in TOKENS].index(False) == len(CONTROL)
    assert encode(f"a{CONTROL[1]}b") == [*encode("a"), 1, *encode("b")]


def test_a_chat_is_written_in_turns():
    messages = [("user", "What is babo?"), ("assistant", "babo=100")]
    asked = "<|im_start|>user\nWhat is babo?<|im_end|>\n"
    assert chat(messages[:1]) == f"{asked}<|im_start|>assistant\n"
    assert chat(messages, answer=False) == f"{asked}<|im_start|>assistant\nbabo=100<|im_end|>\n"
