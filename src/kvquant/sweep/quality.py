"""Quality from folders that exist: validations, runs of `kvquant eval`, divergences. Nothing is measured
here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from kvquant.documents import read_json
from kvquant.errors import KVQuantError, UsageError
from kvquant.evals.rank import rank
from kvquant.evals.records import FILE_NAME, Run, read_run
from kvquant.evals.summary import is_right
from kvquant.evals.validation.records import RESULT as VALIDATION
from kvquant.evals.validation.records import runs_in
from kvquant.policy import parse_policy
from kvquant.results.divergence import DivergenceResult
from kvquant.results.sweep import Quality
from kvquant.results.validation import read_result

DIVERGENCE = "divergence.json"
TOOL_CALLS = "tool call"
"""How the categories of tool calls begin."""

ByModel = dict[tuple[str, str], Quality]
"""By the model's sha256 and the policy's canonical text; a run of an endpoint by its model's name and ""."""


def read_quality(folders: Iterable[Path]) -> ByModel:
    """Read folders, later ones winning where two say the same. Raises KVQuantError, one line, for one that
    holds none of the three, or is damaged.
    """
    found: ByModel = {}
    for folder in folders:
        parts = _of_folder(folder)
        if not parts:
            raise UsageError(
                f"{folder} contains no validation, run or divergence; name the --out of kvquant validate, "
                f"eval or "
                "divergence"
            )
        for key, quality in parts:
            known = found.get(key, Quality())
            news = {
                name: value for name, value in vars(quality).items() if value is not None and name != "source"
            }
            source = tuple(dict.fromkeys((*known.source, *quality.source)))
            found[key] = replace(known, **news, source=source)
    return found


def _of_folder(folder: Path) -> list[tuple[tuple[str, str], Quality]]:
    found: list[tuple[tuple[str, str], Quality]] = []
    if folder.is_file() or (folder / DIVERGENCE).is_file():
        path = folder if folder.is_file() else folder / DIVERGENCE
        found += _divergences(read_json(DivergenceResult, path), folder.name)
    if (folder / VALIDATION).is_file():
        result = read_result(folder / VALIDATION)
        for policy in result.policies:
            worst = policy.worst_divergence
            if worst is not None and worst.mean is not None:
                key = (result.model.sha256, policy.policy)
                found.append((key, Quality(kl=worst.mean, source=(folder.name,))))
    for run_folder in runs_in(folder) if folder.is_dir() else ():
        if (run_folder / FILE_NAME).is_file():
            run = read_run(run_folder)
            key = run_key(run)
            found.append((key, _of_run(run, folder.name)))
    return found


def _divergences(result: DivergenceResult, name: str) -> list[tuple[tuple[str, str], Quality]]:
    sha256 = result.start.model.sha256
    found = [
        ((sha256, _canonical(entry.policy)), Quality(kl=entry.kl_mean, source=(name,)))
        for entry in result.policies
        if entry.rotation and entry.kl_mean is not None
    ]
    return [((sha256, _canonical(result.baseline)), Quality(kl=0.0, source=(name,))), *found]


def run_key(run: Run) -> tuple[str, str]:
    """Which model and policy a run was of, by what kvquant wrote into it; else by the endpoint's model
    name.
    """
    report = run.info.model_report or {}
    sha256, policy = report.get("sha256"), report.get("policy")
    if isinstance(sha256, str) and isinstance(policy, str):
        return sha256, _canonical(policy)
    return run.info.model, ""


def _of_run(run: Run, name: str) -> Quality:
    samples = run.samples
    tools = [sample for sample in samples if sample.category.startswith(TOOL_CALLS)]
    if not samples:
        return Quality(source=(name,))
    (ranked,) = rank([run])
    return Quality(
        suite=run.info.suite,
        n=len(samples),
        rate=sum(map(is_right, samples)) / len(samples),
        tool_rate=sum(map(is_right, tools)) / len(tools) if tools else None,
        weighted=ranked.quality,
        wall_seconds=ranked.wall_seconds,
        composite=ranked.score,
        source=(name,),
    )


def _canonical(text: str) -> str:
    try:
        return str(parse_policy(text))
    except KVQuantError:
        return text


def quality_of(known: ByModel, sha256: str | None, name: str, policy: str | None) -> Quality:
    """Return what is known of a model under a policy; of an endpoint by its model's name."""
    if policy is None or sha256 is None:
        return known.get((name, ""), Quality())
    return known.get((sha256, policy), Quality())
