"""Runs a plan: whatever is not finished yet, policy by policy, each result on the disk before the next."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvquant.documents import to_document, write_json
from kvquant.errors import KVQuantError, LlamaError
from kvquant.evals.machine import read_machine
from kvquant.evals.speed import BenchOptions, SpeedRound, run_rounds
from kvquant.evals.validation.assemble import assemble
from kvquant.evals.validation.diverge import request_for, run_divergence
from kvquant.evals.validation.plan import (
    REPEAT,
    SERVED,
    SPEED,
    Plan,
    PlannedPolicy,
    Step,
    Watch,
    divergence_part,
    done_in,
    pending,
    steps,
    texts_of,
)
from kvquant.evals.validation.records import (
    Folder,
    JournalWriter,
    NamedPolicy,
    Start,
    open_journal,
    read_records,
)
from kvquant.evals.validation.served import Served, run_served
from kvquant.llama.build import BuildInfo
from kvquant.llama.workspace import tree_commit
from kvquant.results.validation import SuiteUsed, ValidationResult
from kvquant.shipped import VERSION, checkout_root


def validate(plan: Plan, folder: Folder, argv: Sequence[str], watch: Watch) -> ValidationResult:
    """Run what is not finished of a plan and return the result, which is in the folder too.

    A policy that fails is part of the result. Raises KVQuantError, one line, when the folder cannot be used
    or the disk is full; whatever was finished by then is kept.
    """
    with open_journal(folder, start_of(plan, argv)) as journal, _scratch(folder):
        try:
            _Engine(plan, folder, tuple(argv), journal, watch).run()
        except OSError as error:
            raise KVQuantError(
                f"cannot work in {folder.root}: {error.strerror or error}; finished parts are kept"
            ) from error
        return _write(folder)


def start_of(plan: Plan, argv: Sequence[str]) -> Start:
    """Describe a validation that starts now, on this machine."""
    suite, settings = plan.suite, plan.settings
    root = checkout_root()
    return Start(
        model=plan.model_file,
        suite=SuiteUsed(suite.name, suite.about, suite.digest, to_document(suite.rules)),
        parts=to_document(suite.parts),
        n=settings.n,
        seed=settings.seed,
        n_ctx=settings.n_ctx,
        n_threads=settings.n_threads,
        policies=tuple(
            NamedPolicy(policy.label, policy.text, policy.transform.used if policy.transform else None)
            for policy in plan.policies
        ),
        build=None if plan.build is None else _build(plan.build),
        provenance={
            "argv": list(argv),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "kvquant_version": VERSION,
            "git_commit": None if root is None else tree_commit(root),
            "timeout_seconds": settings.timeout_seconds,
            "machine": to_document(read_machine()),
            "page_cache_dropped": False,
        },
    )


@dataclass(frozen=True)
class _Engine:
    """One run of a plan. Policies that have failed since it was started are left out of what follows."""

    plan: Plan
    folder: Folder
    argv: tuple[str, ...]
    journal: JournalWriter
    watch: Watch

    def run(self) -> None:
        found = steps(self.plan, done_in(read_records(self.folder)))
        self.watch.plan(found)
        for policy in self.plan.policies:
            self._serve(policy, pending(found, policy.text, SERVED))
        self._serve(self.plan.baseline, pending(found, self.plan.baseline.text, (REPEAT,)))
        self._diverge(found)
        self._bench([policy for policy in self.plan.policies if pending(found, policy.text, (SPEED,))])

    def _serve(self, policy: PlannedPolicy, parts: Sequence[str]) -> None:
        if not parts or self._has_failed(policy):
            return
        run_served(Served(self.plan, policy, self.folder, self.argv), parts, self.journal, self.watch)
        self._finish(policy.text)

    def _diverge(self, found: Sequence[Step]) -> None:
        part = self.plan.suite.parts.divergence
        if part is None:
            return
        texts = texts_of(part, self.plan.settings.seed, self.folder.work / "texts")
        for path in part.paths:
            name = divergence_part(path)
            policies = [
                policy
                for policy in self.plan.policies
                if not self._has_failed(policy) and pending(found, policy.text, (name,))
            ]
            if not policies:
                continue
            self.watch.begin(policies[0].text, name)
            request = request_for(self.plan, part, texts, policies, path)
            run_divergence(self.plan, request, policies, self.folder, self.journal)
            for policy in policies:
                self._finish(policy.text, name)
                # They ran together: what is counted next took no time of its own.
                self.watch.begin(policy.text, name)

    def _bench(self, policies: Sequence[PlannedPolicy]) -> None:
        speed = self.plan.suite.parts.speed
        chosen = {policy.text: policy.policy for policy in policies if not self._has_failed(policy)}
        transforms = {policy.text: policy.transform for policy in policies if policy.transform is not None}
        if speed is None or not chosen:
            return
        folder = self.folder.logs / SPEED
        folder.mkdir(parents=True, exist_ok=True)

        def on_round(measured: SpeedRound) -> None:
            self.journal.round(measured)
            self.watch.advance(measured.policy, SPEED, f"round {measured.index + 1}")

        def on_failure(policy: str, error: LlamaError, log: Path) -> None:
            self.journal.fail(policy, SPEED, str(error), str(log.relative_to(self.folder.root)))
            self._finish(policy)

        options = BenchOptions(
            self.plan.model,
            speed.depths,
            speed.n_prompt,
            speed.n_gen,
            self.plan.settings.n_threads,
        )
        finished = {(measured.index, measured.policy) for measured in self.journal.rounds}
        run_rounds(
            self.plan.programs,
            options,
            chosen,
            speed.n_rounds,
            folder,
            on_round,
            on_failure,
            finished,
            transforms,
        )
        if not any(policy in self.journal.failed_now for policy in chosen):
            shutil.rmtree(folder)

    def _finish(self, policy: str, part: str | None = None) -> None:
        """After a part, or the parts of a server: say how it went, and bring the result up to date."""
        failure = self.journal.failed_now.get(policy)
        if failure is not None:
            self.watch.fail(policy, failure.part, failure.what)
        elif part is not None:
            self.watch.finish(policy, part)
        _write(self.folder)

    def _has_failed(self, policy: PlannedPolicy) -> bool:
        return policy.text in self.journal.failed_now


@contextmanager
def _scratch(folder: Folder) -> Iterator[None]:
    """Make the folder for temporary files, without what a killed kvquant left in it, and remove it, and the
    folder for logs when there is none.
    """
    shutil.rmtree(folder.work, ignore_errors=True)
    try:
        folder.work.mkdir()
    except OSError as error:
        raise KVQuantError(f"cannot write in {folder.root}: {error.strerror}") from error
    try:
        yield
    finally:
        shutil.rmtree(folder.work, ignore_errors=True)
        with suppress(OSError):
            folder.logs.rmdir()


def _write(folder: Folder) -> ValidationResult:
    result = assemble(read_records(folder))
    write_json(folder.result, result)
    return result


def _build(info: BuildInfo) -> dict[str, Any]:
    """What made the programs, without the digest of every file."""
    return {name: value for name, value in to_document(info).items() if name not in {"files", "features"}}
