"""The fixed conversation: timings as the server gives them, the same work for every policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvquant.errors import LlamaError
from kvquant.evals.speed import CONVERSATION, ChatTurn, chat_of, parse_turn, run_chat
from kvquant.llama.server import LlamaServer, ServerOptions
from llama.proof import PATCHED, needs_patched

REFERENCE = Path(__file__).parents[2] / "eval/reference-model/kvquant-reference-f16.gguf"

RECORDED = {
    "choices": [{"finish_reason": "length", "index": 0, "message": {"role": "assistant", "content": "{"}}],
    "usage": {"completion_tokens": 8, "prompt_tokens": 41, "total_tokens": 49},
    "timings": {
        "cache_n": 0,
        "prompt_n": 41,
        "prompt_ms": 433.442,
        "prompt_per_second": 94.59166393658207,
        "predicted_n": 8,
        "predicted_ms": 579.923,
        "predicted_per_second": 12.070567989198565,
    },
}


def test_recorded_answer() -> None:
    turn = parse_turn(RECORDED)
    assert turn == ChatTurn(41, 0, 0.433442, 8, 0.579923)
    chat = chat_of([turn])
    # The first token comes with the prompt, so that seven were made in this time; the server counts alike.
    assert chat.tokens_per_second == pytest.approx(RECORDED["timings"]["predicted_per_second"])
    assert chat.ttft_seconds == 0.433442


@pytest.mark.parametrize("answer", [{}, {"timings": None}, {"timings": {"prompt_n": "many"}}])
def test_an_answer_without_timings_is_refused(answer: dict) -> None:
    with pytest.raises(LlamaError, match="without timings"):
        parse_turn(answer)


def test_what_is_not_known_is_none() -> None:
    assert chat_of([]).ttft_seconds is None
    assert chat_of([ChatTurn(9, 0, 0.5, 1, 0.0)]).tokens_per_second is None


@needs_patched
def test_the_real_server() -> None:
    assert PATCHED is not None
    with LlamaServer(
        PATCHED, ServerOptions(REFERENCE, n_ctx=1024, n_threads=1, kv_layers="*:q8_0")
    ) as server:
        turns = run_chat(server, n_generate=2)
        again = run_chat(server, n_generate=2)
    assert [turn.n_generated for turn in turns] == [2] * len(CONVERSATION)
    assert turns[0].n_cached == 0 and all(turn.n_cached > 0 for turn in turns[1:])
    work = [(turn.n_prompt, turn.n_cached) for turn in turns]
    assert work == [(turn.n_prompt, turn.n_cached) for turn in again], "the second time had less to do"
    assert all(turn.prompt_seconds > 0 and turn.generate_seconds > 0 for turn in turns)
