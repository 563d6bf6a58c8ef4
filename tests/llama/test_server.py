"""Starting and talking to llama-server, against a stand-in that speaks as it does."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvquant.errors import LlamaError
from kvquant.llama.server import LlamaServer, ServerOptions

Start = Callable[..., LlamaServer]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "llama-server"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_server.py")} "$@"\n')
    script.chmod(0o755)
    model = tmp_path / "model.gguf"
    model.touch()

    def started(mode: str = "good", start_seconds: float = 30.0, **options: object) -> LlamaServer:
        monkeypatch.setenv("FAKE_SERVER_MODE", mode)
        return LlamaServer(programs, ServerOptions(model, n_ctx=512, **options), start_seconds)  # type: ignore[arg-type]

    return started


def test_arguments_and_answers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy that cannot be reached must not matter for an address on this machine.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with start(k_type="q8_0", kv_layers="0:f16", n_parallel=2, n_threads=3, extra=("--swa-full",)) as server:
        answer = server.completion("hi", 4, top_k=1)
        assert answer["path"] == "/completion"
        assert answer["body"] == {
            "prompt": "hi", "n_predict": 4, "temperature": 0.0, "seed": 0, "top_k": 1,
        }  # fmt: skip
        argv = answer["argv"]
        pairs = dict(itertools.pairwise(argv))
        assert pairs["--cache-type-k"] == "q8_0" and pairs["--cache-type-v"] == "f16"
        assert pairs["--kv-layers"] == "0:f16"
        assert pairs["--ctx-size"] == "512" and pairs["--parallel"] == "2" and pairs["--threads"] == "3"
        assert pairs["--port"] == "0" and pairs["--host"] == "127.0.0.1"
        assert argv[-1] == "--swa-full"
        assert server.tokenize("ab") == [97, 98]
        saved = server.save_slot(name="one")
        assert saved.read_bytes() == b"saved"
        assert server.get("/health") == {"status": "ok"}
    assert not saved.exists() and not server.slot_folder.exists()


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("error", "llama-server: the request exceeds the context"),
        ("bare-error", "llama-server: HTTP status 500"),
        ("garbage", "not JSON"),
        ("list", "not a JSON object"),
        ("crash", r"ended with status 134: GGML_ASSERT\(n > 0\) failed"),
    ],
)
def test_what_goes_wrong_is_one_line(start: Start, mode: str, message: str) -> None:
    with start(mode) as server, pytest.raises(LlamaError, match=message) as raised:
        server.completion("hi", 1)
    assert "\n" not in str(raised.value)


def test_a_server_that_fails_says_why(start: Start) -> None:
    with pytest.raises(LlamaError, match="ended with status 3: main: no such model type"):
        start("fail")


def test_a_server_that_never_listens_is_given_up(start: Start) -> None:
    with pytest.raises(LlamaError, match=r"did not load .* within 0.5 s"):
        start("silent", start_seconds=0.5)


def test_a_missing_program_and_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(LlamaError, match="no llama-server in"):
        LlamaServer(tmp_path, ServerOptions(tmp_path / "m.gguf", n_ctx=512))
    (tmp_path / "llama-server").touch()
    with pytest.raises(LlamaError, match="no such model file"):
        LlamaServer(tmp_path, ServerOptions(tmp_path / "m.gguf", n_ctx=512))
    (tmp_path / "m.gguf").touch()
    with pytest.raises(LlamaError, match=r"status 127: cannot start .*Permission denied"):
        LlamaServer(tmp_path, ServerOptions(tmp_path / "m.gguf", n_ctx=512))
