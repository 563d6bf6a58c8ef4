"""The divergence part: policies on one path against the baseline, chunk by chunk on the disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from kvquant.evals.divergence import CacheSetup, DivergenceRequest, FeedPath
from kvquant.evals.divergence_log import measure_into, open_token_log
from kvquant.evals.divergence_summary import summarize_divergence
from kvquant.evals.suite_parts import DivergencePart
from kvquant.evals.validation.plan import Plan, PlannedPolicy, Texts, divergence_part
from kvquant.evals.validation.records import Folder, JournalWriter


def request_for(
    plan: Plan, part: DivergencePart, texts: Texts, policies: Sequence[PlannedPolicy], path: FeedPath
) -> DivergenceRequest:
    """Return what is asked of the program; the baseline is measured against itself, which is the floor."""
    baseline = _setup(plan.baseline, path)
    return DivergenceRequest(
        model=plan.model,
        texts=texts.files,
        policies=tuple(
            baseline.on_the_other_path() if policy == plan.baseline else _setup(policy, path)
            for policy in policies
        ),
        baseline=baseline,
        n_ctx=part.n_ctx,
        parse_special=texts.parse_special,
        n_threads=plan.settings.n_threads,
    )


def _setup(policy: PlannedPolicy, path: FeedPath) -> CacheSetup:
    return CacheSetup(policy.kv_layers, path=path, transform=policy.transform)


def run_divergence(
    plan: Plan,
    request: DivergenceRequest,
    policies: Sequence[PlannedPolicy],
    folder: Folder,
    journal: JournalWriter,
) -> None:
    """Measure what is not measured yet of policies on a path, in one run of the program, and record the sums.

    A policy that fails is recorded, with the program's log kept, and is not an exception.
    """
    path = request.baseline.path
    part = divergence_part(path)
    log = folder.logs / f"divergence-{path}.log"
    log.parent.mkdir(exist_ok=True)
    begun = time.monotonic()
    with ExitStack() as stack:
        logs = [
            stack.enter_context(open_token_log(folder.divergence(policy.text, path))) for policy in policies
        ]
        failures = measure_into(plan.programs, request, logs, log)
    seconds = (time.monotonic() - begun) / len(policies)
    for index, (policy, tokens) in enumerate(zip(policies, logs, strict=True)):
        summary = summarize_divergence(tokens.tokens)
        if index in failures:
            journal.fail(policy.text, part, failures[index], str(log.relative_to(folder.root)))
        elif summary is None:
            journal.fail(policy.text, part, "the texts are too short: no token was scored", None)
        else:
            journal.measure(policy.text, part, {"path": path, **asdict(summary)}, seconds)
    if not failures:
        log.unlink(missing_ok=True)
