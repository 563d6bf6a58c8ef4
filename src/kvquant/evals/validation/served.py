"""The parts that need a running llama-server: the tests, the chat timings, the memory check."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvquant.errors import EndpointError, LlamaError
from kvquant.evals.endpoint import Endpoint, EndpointGone, EndpointTimeout, ServedModel
from kvquant.evals.memory_check import check_memory
from kvquant.evals.patience import Patience
from kvquant.evals.records import SampleRecord, open_log
from kvquant.evals.reply import Reply
from kvquant.evals.run import run_info, run_samples
from kvquant.evals.speed import chat_of, run_chat
from kvquant.evals.validation.plan import CHAT, MEMORY, REPEAT, TASKS, Plan, PlannedPolicy, Watch
from kvquant.evals.validation.records import Folder, JournalWriter
from kvquant.llama.server import LlamaServer, ServerOptions
from kvquant.results.validation import Chat, Memory

TIMEOUTS_IN_A_ROW = 3
"""So many answers that do not come, one after the other, and the server counts as hung."""

PATIENCE_SECONDS = 10.0
"""How long a failure is asked again: a server of ours answers nobody else and has no reason to be busy."""

OnSample = Callable[[SampleRecord], None]


class ServedEndpoint(Endpoint):
    """The endpoint of a server of ours. A crash or a hang of the server is no outcome of the sample at hand:
    it ends the run, so that the sample is asked again when the validation is resumed.
    """

    def __init__(self, server: LlamaServer, timeout_seconds: float) -> None:
        super().__init__(f"http://127.0.0.1:{server.port}/v1", timeout_seconds)
        self._server = server
        self._n_timeouts = 0

    def chat(
        self, model: str, prompt: str, tools: Sequence[Mapping[str, Any]], max_tokens: int, seed: int
    ) -> Reply:
        """Ask one question. Raises EndpointGone when the server has ended or hangs."""
        try:
            reply = super().chat(model, prompt, tools, max_tokens, seed)
        except EndpointTimeout as error:
            self._n_timeouts += 1
            if self._n_timeouts == TIMEOUTS_IN_A_ROW:
                hung = f"llama-server hangs: {TIMEOUTS_IN_A_ROW} times in a row {error}"
                raise EndpointGone(hung) from error
            raise
        except EndpointError as error:
            try:
                self._server.check_running()
            except LlamaError as ended:
                raise EndpointGone(str(ended)) from error
            raise
        self._n_timeouts = 0
        return reply


@dataclass(frozen=True)
class Served:
    """One policy, its server to be started, and where the records go. argv: kvquant's own command line."""

    plan: Plan
    planned: PlannedPolicy
    folder: Folder
    argv: tuple[str, ...]

    @property
    def options(self) -> ServerOptions:
        """What the server is started with: nothing but the policy differs between policies."""
        settings = self.plan.settings
        return ServerOptions(
            model=self.plan.model,
            n_ctx=settings.n_ctx,
            kv_layers=self.planned.kv_layers,
            n_threads=settings.n_threads,
            kv_transform=None if self.planned.transform is None else self.planned.transform.path,
        )


def run_served(
    served: Served,
    parts: Sequence[str],
    journal: JournalWriter,
    watch: Watch,
) -> None:
    """Start the policy's server and measure ``parts`` in order, each recorded when it is finished.

    A server that fails is recorded, with its log kept, and is not an exception.
    """
    policy, name = served.planned.text, parts[0]

    def on_sample(record: SampleRecord) -> None:
        watch.advance(policy, name, str(record.outcome))

    log = served.folder.log(policy, "repeat" if parts == [REPEAT] else "server")
    log.parent.mkdir(exist_ok=True)
    try:
        with LlamaServer(served.plan.programs, served.options, log=log, scratch=served.folder.work) as server:
            for name in parts:
                watch.begin(policy, name)
                begun = time.monotonic()
                value = _MEASURES[name](served, server, on_sample)
                journal.measure(policy, name, value, time.monotonic() - begun)
                watch.finish(policy, name)
    except (LlamaError, EndpointError) as error:
        journal.fail(policy, name, str(error), str(log.relative_to(served.folder.root)))
    else:
        log.unlink(missing_ok=True)


def _tasks(
    served: Served, server: LlamaServer, on_sample: OnSample, *, repeat: bool = False
) -> dict[str, Any]:
    plan, settings = served.plan, served.plan.settings
    endpoint = ServedEndpoint(server, settings.timeout_seconds)
    model = ServedModel(plan.model_file.name, _report(served))
    info = run_info(plan.suite, settings.n, settings.seed, model, endpoint.base_url, served.argv)
    with open_log(served.folder.tasks(served.planned.text, repeat=repeat), info) as log:
        run_samples(
            plan.samples, endpoint, info, plan.suite.max_tokens, Patience(PATIENCE_SECONDS), log, on_sample
        )
    return {"n_samples": len(plan.samples)}


def _repeat(served: Served, server: LlamaServer, on_sample: OnSample) -> dict[str, Any]:
    return _tasks(served, server, on_sample, repeat=True)


def _chat(served: Served, server: LlamaServer, _: OnSample) -> Chat:
    speed = served.plan.suite.parts.speed
    n_chats = speed.n_chats if speed else 0
    return chat_of([turn for _ in range(n_chats) for turn in run_chat(server)])


def _memory(served: Served, server: LlamaServer, _: OnSample) -> Memory:
    return check_memory(server, served.plan.shape, served.planned.resolved)


_MEASURES: dict[str, Callable[[Served, LlamaServer, OnSample], Any]] = {
    TASKS: _tasks,
    REPEAT: _repeat,
    CHAT: _chat,
    MEMORY: _memory,
}


def _report(served: Served) -> dict[str, Any]:
    """What a run's records say about the model: which file, under which policy, served by what.

    Files are named without their folders, which mean nothing elsewhere.
    """
    build = served.plan.build
    bare = served.options
    transform = None if bare.kv_transform is None else Path(bare.kv_transform.name)
    options = replace(bare, model=Path(bare.model.name), kv_transform=transform)
    return {
        "sha256": served.plan.model_file.sha256,
        "n_bytes": served.plan.model_file.n_bytes,
        "policy": served.planned.text,
        "server": ["llama-server", *options.arguments(Path("slots"))],
        "llama_cpp_commit": build.commit if build else None,
        "llama_cpp_tag": build.tag if build else None,
        "series_digest": build.series_digest if build else None,
    }
