"""llama-server on this machine: start it, wait until it answers, ask for tokens, save and restore slots."""

from __future__ import annotations

import http.client
import json
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvquant.errors import LlamaError
from kvquant.llama.logs import KVLog, failure_line, parse_kv_log
from kvquant.processes.background import BackgroundProgram, clean_environment

START_SECONDS = 600.0
"""How long a server may take to load its model; a large one on a slow disk needs minutes."""

_POLL_SECONDS = 0.05
_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")

# No proxy is asked for an address on this machine, whatever the environment says.
_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class ServerOptions:
    """What a server is started with. n_ctx counts all sequences together, as llama.cpp's ``-c`` does.

    kv_layers: a policy, which needs a patched build; k_type and v_type are then the types of unnamed layers.
    rotation: False stores quantized K and V without the Hadamard rotation. kv_attention: False computes
    attention on the CPU with llama.cpp's own code, which is all that a stock build has. n_threads: None
    leaves it to llama.cpp. kv_transform: a file of kvquant calibrate. extra: further arguments as they are.
    prefix: a command that becomes the server, such as taskset -c 4-7.
    """

    model: Path
    n_ctx: int
    n_parallel: int = 1
    k_type: str = "f16"
    v_type: str = "f16"
    kv_layers: str | None = None
    rotation: bool = True
    kv_attention: bool = True
    n_threads: int | None = None
    kv_transform: Path | None = None
    extra: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()

    def arguments(self, slot_folder: Path) -> list[str]:
        """Return the command line after the program's name.

        Prompt cache, checkpoints, memory fitting and the warm-up run are off: a run holds the sequences it
        was given and nothing else.
        """
        arguments = ["--host", "127.0.0.1", "--port", "0", "--model", str(self.model)]
        arguments += ["--ctx-size", str(self.n_ctx), "--parallel", str(self.n_parallel)]
        arguments += ["--cache-type-k", self.k_type, "--cache-type-v", self.v_type]
        if self.kv_layers is not None:
            arguments += ["--kv-layers", self.kv_layers]
        if self.kv_transform is not None:
            arguments += ["--kv-transform", str(self.kv_transform)]
        if self.n_threads is not None:
            arguments += ["--threads", str(self.n_threads)]
        arguments += ["--cache-ram", "0", "--ctx-checkpoints", "0", "--fit", "off", "--no-warmup"]
        arguments += ["--slot-save-path", f"{slot_folder}/", "--verbosity", "4", "--log-colors", "off"]
        return [*arguments, *self.extra]

    def environment(self) -> dict[str, str]:
        """Return the whole environment the server runs in."""
        added = {}
        if not self.rotation:
            added["LLAMA_ATTN_ROT_DISABLE"] = "1"
        if not self.kv_attention:
            added["GGML_KV_ATTN"] = "0"
        return clean_environment(**added)


class LlamaServer:
    """A running llama-server; as a context manager it ends with the block, and its files go with it."""

    def __init__(
        self,
        programs: Path,
        options: ServerOptions,
        start_seconds: float = START_SECONDS,
        *,
        log: Path | None = None,
        scratch: Path | None = None,
        while_loading: Callable[[], None] = lambda: None,
    ) -> None:
        """Start ``programs``/llama-server and wait until it has loaded the model.

        log: a file for its output that outlives it, by default one of its temporary files. scratch: the
        folder for these, by default the system's. while_loading: called again and again; what it raises ends
        the server. Raises LlamaError with the line of its log that explains a failure.
        """
        program = programs / "llama-server"
        if not program.is_file():
            raise LlamaError(f"there is no llama-server in {programs}; kvquant llama build makes one")
        if not options.model.is_file():
            raise LlamaError(f"{options.model}: there is no such model file")
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="kvquant-server-", dir=scratch)
        self.slot_folder = Path(self._folder.name)
        argv = [*options.prefix, str(program), *options.arguments(self.slot_folder)]
        self._while_loading = while_loading
        try:
            log = log or self.slot_folder / "log"
            self._program = BackgroundProgram(argv, log, env=options.environment())
            try:
                self.port = self._wait(start_seconds)
            except BaseException:
                self._program.stop()
                raise
        except BaseException:
            self._folder.cleanup()
            raise

    def completion(self, prompt: str | list[int], n_predict: int, **parameters: Any) -> dict[str, Any]:
        """POST /completion, greedy unless ``parameters`` say otherwise; the server's whole answer."""
        body = {"prompt": prompt, "n_predict": n_predict, "temperature": 0.0, "seed": 0, **parameters}
        return self.post("/completion", body)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of ``text``, with the special tokens a prompt starts with."""
        answer = self.post("/tokenize", {"content": text, "add_special": True})
        return [int(token) for token in answer["tokens"]]

    def save_slot(self, slot: int = 0, name: str = "slot") -> Path:
        """Save a slot's sequence and return the file, which is gone when the server is."""
        self.post(f"/slots/{slot}?action=save", {"filename": name})
        return self.slot_folder / name

    def restore_slot(self, slot: int = 0, name: str = "slot") -> dict[str, Any]:
        """Restore a slot from a file in ``slot_folder``. Raises LlamaError when the server refuses it."""
        return self.post(f"/slots/{slot}?action=restore", {"filename": name})

    def get(self, path: str, timeout_seconds: float = 60.0) -> Any:
        """GET ``path`` and return the JSON answer. Raises LlamaError."""
        return self._ask(urllib.request.Request(self._url(path)), timeout_seconds)

    def post(self, path: str, body: Mapping[str, Any], timeout_seconds: float = 3600.0) -> dict[str, Any]:
        """POST ``body`` as JSON and return the JSON object that answers. Raises LlamaError."""
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        answer = self._ask(urllib.request.Request(self._url(path), data, headers), timeout_seconds)
        if not isinstance(answer, dict):
            raise LlamaError(f"llama-server answered {path} with something that is not a JSON object")
        return answer

    def log_text(self) -> str:
        """Return what the server has printed so far."""
        return self._program.log_text()

    def kv_log(self) -> KVLog:
        """Return what its log says about the KV cache."""
        return parse_kv_log(self.log_text())

    def peak_n_bytes(self) -> int | None:
        """Return the most memory the server has had resident so far, the model's file included."""
        return self._program.peak_n_bytes()

    def cpu_seconds(self) -> float | None:
        """Return the processor time the server has had so far, over all its threads."""
        return self._program.cpu_seconds()

    def check_running(self) -> None:
        """Raise LlamaError, with the line of its log that says why, when the server has ended."""
        self._wait_briefly_for_its_end()
        self._raise_if_ended()

    def stop(self) -> None:
        """End the server and remove its files."""
        self._program.stop()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def _wait(self, start_seconds: float) -> int:
        """Return the port once the server listens and reports that it is healthy."""
        deadline = time.monotonic() + start_seconds
        while (listening := _LISTENING.search(self.log_text())) is None:
            self._sleep_unless_over(deadline, start_seconds)
        self.port = int(listening[1])
        while not self._is_healthy():
            self._sleep_unless_over(deadline, start_seconds)
        return self.port

    def _sleep_unless_over(self, deadline: float, start_seconds: float) -> None:
        self._raise_if_ended()
        self._while_loading()
        if time.monotonic() > deadline:
            raise LlamaError(f"llama-server did not load {self.options.model} within {start_seconds:g} s")
        time.sleep(_POLL_SECONDS)

    def _raise_if_ended(self) -> None:
        status = self._program.exit_status()
        if status is not None:
            raise LlamaError(f"llama-server ended with status {status}: {failure_line(self.log_text())}")

    def _is_healthy(self) -> bool:
        try:
            with _LOOPBACK.open(self._url("/health"), timeout=10) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def _ask(self, request: urllib.request.Request, timeout_seconds: float) -> Any:
        try:
            with _LOOPBACK.open(request, timeout=timeout_seconds) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise LlamaError(f"llama-server: {_error_message(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
                raise LlamaError(f"llama-server did not answer within {timeout_seconds:g} s") from error
            self.check_running()
            raise LlamaError(f"llama-server: the connection broke ({error})") from error
        except ValueError as error:
            raise LlamaError("llama-server answered with something that is not JSON") from error

    def _wait_briefly_for_its_end(self) -> None:
        """A server that crashed closes its connections a moment before its end can be seen."""
        deadline = time.monotonic() + 2.0
        while self._program.exit_status() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _error_message(error: urllib.error.HTTPError) -> str:
    """The message llama-server put in the body of an error, or the HTTP status."""
    with error:
        try:
            message = json.loads(error.read())["error"]["message"]
        except (OSError, ValueError, KeyError, TypeError):
            return f"HTTP status {error.code}"
    return " ".join(str(message).split())
