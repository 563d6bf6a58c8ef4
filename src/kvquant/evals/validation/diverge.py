"""The divergence part: one policy on one path against the baseline, chunk by chunk on the disk."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

from kvquant.errors import LlamaError, UsageError
from kvquant.evals.divergence import (
    CacheTypes,
    DivergenceRequest,
    FeedPath,
    measure_divergence,
)
from kvquant.evals.divergence_summary import summarize_divergence
from kvquant.evals.suite_parts import DivergencePart
from kvquant.evals.validation.plan import Plan, PlannedPolicy, Texts, divergence_part
from kvquant.evals.validation.records import Folder, JournalWriter
from kvquant.evals.validation.token_log import open_token_log


def request_for(
    plan: Plan, part: DivergencePart, texts: Texts, policy: PlannedPolicy, path: FeedPath
) -> DivergenceRequest:
    """Return what is asked of the program; the baseline is measured against itself, which is the floor."""
    request = DivergenceRequest(
        model=plan.model,
        texts=texts.files,
        policy=CacheTypes(policy.text),
        baseline=CacheTypes(plan.baseline.text),
        path=path,
        n_ctx=part.n_ctx,
        parse_special=texts.parse_special,
        n_threads=plan.settings.n_threads,
    )
    return request.against_itself() if policy == plan.baseline else request


def _without_folders(request: DivergenceRequest) -> DivergenceRequest:
    """The request as it is recorded: where its files were means nothing elsewhere."""
    texts = tuple(Path(text.name) for text in request.texts)
    return replace(request, model=Path(request.model.name), texts=texts)


def run_divergence(
    plan: Plan,
    request: DivergenceRequest,
    policy: PlannedPolicy,
    folder: Folder,
    journal: JournalWriter,
) -> None:
    """Measure what is not measured yet of a policy on a path and record the sum.

    A program that fails is recorded, with its log kept, and is not an exception.
    """
    path = request.path
    part = divergence_part(path)
    log = folder.log(policy.text, f"divergence-{path}")
    log.parent.mkdir(exist_ok=True)
    begun = time.monotonic()
    with open_token_log(folder.divergence(policy.text, path)) as tokens:
        skip = len(tokens.tokens)
        tokens.start(_without_folders(request).arguments(skip))
        try:
            measure_divergence(plan.programs, request, log, tokens.append, skip=skip)
        except (LlamaError, UsageError) as error:
            # The log has a field of its own.
            what = str(error).removesuffix(f" (log: {log})")
            journal.fail(policy.text, part, what, str(log.relative_to(folder.root)))
            return
        tokens.flush()
        summary = summarize_divergence(tokens.tokens)
    log.unlink(missing_ok=True)
    if summary is None:
        journal.fail(policy.text, part, "the texts are too short: no token was scored", None)
        return
    journal.measure(policy.text, part, {"path": path, **asdict(summary)}, time.monotonic() - begun)
