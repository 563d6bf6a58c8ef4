"""A fixed conversation with a running llama-server: the wait for the first token, the speed of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kvquant.errors import LlamaError
from kvquant.llama.server import LlamaServer

_ABOUT = (
    "A key-value cache keeps what attention needs of every earlier token, so that a new token costs one row "
    "and not the whole text again. It grows with the text, with the layers and with the heads. "
)

CONVERSATION: tuple[tuple[str, str], ...] = (
    (_ABOUT * 2 + "Which of its two halves is usually more sensitive?", "Usually the keys."),
    ("And which layers matter most?", "Often the first and the last ones, but that depends on the model."),
    (_ABOUT + "What happens when it no longer fits into memory?", "Then the machine swaps or gives up."),
    ("So how would you choose the type of each layer?", "By measuring what each one costs."),
)
"""Turns of (user, assistant). The assistant's words are given, so that every policy is asked the same."""

N_GENERATE = 48
"""Tokens made in each turn, whatever the model would like to end with."""


@dataclass(frozen=True)
class ChatTurn:
    """One answer, as the server timed it.

    n_prompt: tokens processed for it; n_cached: tokens that were in the cache already. prompt_seconds: from
    the start of the prompt to the first token. generate_seconds: for the tokens after the first.
    """

    n_prompt: int
    n_cached: int
    prompt_seconds: float
    n_generated: int
    generate_seconds: float


def run_chat(server: LlamaServer, n_generate: int = N_GENERATE) -> tuple[ChatTurn, ...]:
    """Hold the conversation, each turn on top of the ones before, whose tokens the server still has.

    The first turn starts from an empty sequence; the whole takes up to 1,024 tokens of context. Raises
    LlamaError when the server fails or answers without timings.
    """
    messages: list[dict[str, str]] = []
    turns = []
    for number, (question, answer) in enumerate(CONVERSATION):
        messages.append({"role": "user", "content": question})
        body = {
            "messages": messages,
            "max_tokens": n_generate,
            "temperature": 0,
            "seed": 0,
            "ignore_eos": True,
            "cache_prompt": number > 0,
        }
        turns.append(parse_turn(server.post("/v1/chat/completions", body)))
        messages.append({"role": "assistant", "content": answer})
    return tuple(turns)


def parse_turn(answer: dict[str, Any]) -> ChatTurn:
    """Read the timings of a chat completion. Raises LlamaError when they are missing."""
    try:
        timings = answer["timings"]
        return ChatTurn(
            n_prompt=int(timings["prompt_n"]),
            n_cached=int(timings["cache_n"]),
            prompt_seconds=float(timings["prompt_ms"]) / 1000,
            n_generated=int(timings["predicted_n"]),
            generate_seconds=float(timings["predicted_ms"]) / 1000,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LlamaError("llama-server answered a chat without its timings") from error


def chat_document(turns: Sequence[ChatTurn]) -> dict[str, Any]:
    """Sum up one or more conversations as JSON.

    ttft_seconds: median time to the first token. tokens_per_second: of the tokens after each turn's first,
    None without any.
    """
    n_after_first = sum(max(turn.n_generated - 1, 0) for turn in turns)
    seconds = sum(turn.generate_seconds for turn in turns)
    return {
        "ttft_seconds": median(turn.prompt_seconds for turn in turns) if turns else None,
        "tokens_per_second": n_after_first / seconds if n_after_first and seconds > 0 else None,
        "n_turns": len(turns),
        "n_prompt": sum(turn.n_prompt for turn in turns),
        "n_generated": sum(turn.n_generated for turn in turns),
    }
