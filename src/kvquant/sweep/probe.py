"""Context probes: the longest context that loads, the longest that answers, and the longest that does so
again and again.

An answer is right when facts that stand at the start, in the middle and at the end of a text that fills the
context are all recalled. Both are searched by doubling and then by bisection, as if every shorter context did
what a longer one does; where a model answers at 8k and not at 4k, the search finds one of the two.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from kvquant.errors import EndpointError, KVQuantError, LlamaError
from kvquant.evals.tasks.recall import haystack, keys, value
from kvquant.results.sweep import Attempt, Ending, ProbeRecord, Setting
from kvquant.sweep.ask import complete
from kvquant.sweep.cell import Running, ending_of, memory_problem, started
from kvquant.sweep.conditions import Watcher, cool_down, read_conditions
from kvquant.sweep.plan import Probe, SweepPlan, Task, tokens
from kvquant.sweep.survey import Host, check_threads, needed_bytes, predicted_context

DEPTHS = (0.0, 0.5, 1.0)
"""Where the facts stand: at the start, in the middle, at the end."""

_N_ANSWER = 12
"""Tokens of an answer: six digits or two words, in most vocabularies."""

_FOR_QUESTION = 64
"""Tokens that a question and its answer take at most."""

_KEPT_STATES = ("--ctx-checkpoints", "8")
"""Lets a model with a sliding window keep the text between two questions."""


def longest(does: Callable[[int], bool], start: int, limit: int, step: int) -> int | None:
    """Return the largest multiple of ``step``, or ``start`` or ``limit``, up to ``limit`` that ``does`` holds
    for; None where not even ``start`` does. By doubling from ``start``, then bisection.
    """
    if not does(start):
        return None
    good, bad = start, None
    while bad is None and good < limit:
        following = min(2 * good, limit)
        good, bad = (following, None) if does(following) else (good, following)
    while bad is not None:
        middle = (good + bad) // 2 // step * step
        if not good < middle < bad:
            break
        good, bad = (middle, bad) if does(middle) else (good, middle)
    return good


@dataclass(frozen=True)
class Needles:
    """A text with three facts, and the questions: (what to complete, how it must go on)."""

    text: str
    questions: tuple[tuple[str, str], ...]


def needles(n_words: int, trial: int) -> Needles:
    """Make a text of about ``n_words`` words; another one for each trial. No fact has the form of another."""
    rng = random.Random(f"{trial}/needles")
    shop, ship, dish = keys(rng, len(DEPTHS))
    facts = (
        (f"The code of the {shop} is", value(rng)),
        ("The ship of the old captain is called the", ship),
        ("The secret ingredient of the soup is a", dish),
    )
    placed = {f"{start} {end}.": depth for (start, end), depth in zip(facts, DEPTHS, strict=True)}
    questions = tuple((f"\n\nSo, as was said above: {start}", end) for start, end in facts)
    return Needles(haystack(rng, n_words, placed), questions)


def run_probe(plan: SweepPlan, task: Task, host: Host) -> ProbeRecord:
    """Probe a model under a policy and return the record; whatever goes wrong ends a try, not the sweep."""
    probe = plan.probe or Probe()
    cool_down(plan.cooling.below_celsius, plan.cooling.at_most_seconds, lambda: read_conditions(host.root))
    before = read_conditions(host.root)
    setting, begun = task.setting, time.monotonic()
    swept = next(model for model in host.board.models if model.name == setting.model)
    free = before.available_n_bytes
    record = ProbeRecord(
        board=host.board.name,
        setting=setting,
        ending=Ending.DONE,
        detail="",
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        wall_seconds=0.0,
        times=probe.times,
        limit=setting.n_ctx,
        trained=swept.n_ctx_train,
        available_n_bytes=free,
        reserve_n_bytes=plan.reserve_n_bytes,
        predicted=None,
        before=before,
    )
    try:
        check_threads(host, setting)
        budget = None if free is None else free - plan.reserve_n_bytes
        predicted = None if budget is None else predicted_context(host, setting, budget)
        record = _search(plan, probe, replace(record, predicted=predicted), host)
    except KVQuantError as error:
        record = replace(record, ending=Ending.REFUSED, detail=str(error))
    return replace(record, wall_seconds=round(time.monotonic() - begun, 3))


def _search(plan: SweepPlan, probe: Probe, record: ProbeRecord, host: Host) -> ProbeRecord:
    tries = _Tries(plan, record.setting, host)
    start, step = tokens(probe.start), tokens(probe.step)
    loaded = longest(tries.loads, start, record.limit, step)
    answered = stable = None
    if loaded is not None:
        answered = longest(lambda n_ctx: tries.answers(n_ctx, 1), start, loaded, step)
    if answered is not None:
        stable = answered
        if not tries.answers(answered, probe.times):
            stable = longest(lambda n_ctx: tries.answers(n_ctx, probe.times), start, answered, step)
    problem = next((found for found in tries.attempts if not found.ok), None)
    return replace(
        record,
        loaded=loaded,
        answered=answered,
        stable=stable,
        need_n_bytes=None if stable is None else needed_bytes(host, replace(record.setting, n_ctx=stable)),
        attempts=tuple(tries.attempts),
        detail="" if stable is not None or problem is None else problem.detail,
    )


class _Tries:
    """Tries contexts, each with a server of its own, none of them twice."""

    def __init__(self, plan: SweepPlan, setting: Setting, host: Host) -> None:
        self._plan, self._setting, self._host = plan, setting, host
        self.attempts: list[Attempt] = []
        self._known: dict[tuple[int, int], bool] = {}

    def loads(self, n_ctx: int) -> bool:
        """Whether the server starts with a context, by the guard's leave. What it answers is noted too."""
        return self._try(n_ctx, range(0))

    def answers(self, n_ctx: int, times: int) -> bool:
        """Whether the first ``times`` trials are all right."""
        known = [self._known.get((n_ctx, trial)) for trial in range(times)]
        if False in known:
            return False
        missing = [trial for trial, found in enumerate(known) if found is None]
        return not missing or self._try(n_ctx, missing)

    def _try(self, n_ctx: int, trials: Sequence[int]) -> bool:
        setting = replace(self._setting, n_ctx=n_ctx)
        begun = time.monotonic()
        watcher = Watcher(self._plan.reserve_n_bytes, self._host.root)

        def note(part: str, trial: int, ok: bool, detail: str, n_prompt: int | None = None) -> bool:
            seconds = round(time.monotonic() - begun, 3)
            self.attempts.append(Attempt(n_ctx, part, trial, ok, detail, n_prompt, seconds))
            if part == "answer":
                self._known[n_ctx, trial] = ok
            return ok

        problem = memory_problem(self._plan, setting, self._host)
        if problem is not None:
            return note("load", 0, False, problem)
        trial, part = 0, "load"
        try:
            with watcher, started(self._plan, setting, self._host, watcher, _KEPT_STATES) as running:
                if not trials:
                    return note("load", 0, True, "")
                part = "answer"
                for trial in trials:
                    begun = time.monotonic()
                    n_prompt, wrong = _ask(running, n_ctx, trial)
                    if not note("answer", trial, not wrong, wrong, n_prompt):
                        return False
        except (LlamaError, EndpointError) as error:
            ending, detail = ending_of(error, watcher)
            return note(part, trial, False, f"{ending}: {detail}")
        return True


def _ask(running: Running, n_ctx: int, trial: int) -> tuple[int, str]:
    """Ask all questions of a trial on a text that fills a context; its tokens, and what was wrong, "" for
    nothing.
    """
    server, room = running.server, n_ctx - _FOR_QUESTION
    found = needles(room, trial)
    # Long enough in any vocabulary; now as long as fits, measured in this one.
    n_words = max(1, int(room * room / len(server.tokenize(found.text))))
    prompt: list[int] = []
    while not prompt or len(prompt) > room:
        found = needles(n_words, trial)
        prompt = server.tokenize(found.text)
        n_words -= max(1, n_words // 50)
    wrong = []
    for place, (question, right) in zip(("start", "middle", "end"), found.questions, strict=True):
        asked = server.tokenize(found.text + question)
        answer = complete(running.endpoint, asked, _N_ANSWER, go_on=False, cached=True)
        said = answer.text.strip()
        if not said.lower().startswith(right.lower()):
            wrong.append(f"at the {place}: {said[:24]!r}, expected {right!r}")
    return len(prompt), "; ".join(wrong)
