"""What a validation will do: one model, one suite, the policies with the baseline first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvquant.errors import LlamaError, PolicyError, UsageError
from kvquant.evals.suite import Sample, Suite, samples
from kvquant.evals.validation.result import ModelFile
from kvquant.evals.validation.texts import check_text
from kvquant.llama.build import BuildInfo, read_info
from kvquant.memory import ContextOptions, memory_of
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.shape import ModelShape
from kvquant.policy import Policy, ResolvedPolicy, parse_policy, preset_text

BASELINE = "*:f16"
"""The policy the others are compared with, where it is among them; else it is the first one."""


@dataclass(frozen=True)
class PlannedPolicy:
    """A policy as it is shown, as it was read, and layer by layer for this model."""

    label: str
    policy: Policy
    resolved: ResolvedPolicy

    @property
    def text(self) -> str:
        """The canonical text, which names the policy in every record."""
        return str(self.policy)


@dataclass(frozen=True)
class Settings:
    """What is equal for all policies.

    n: samples per category. n_threads: None leaves it to llama.cpp. timeout_seconds: for one answer.
    """

    n: int
    seed: int
    n_ctx: int
    n_threads: int | None
    timeout_seconds: float


@dataclass(frozen=True)
class Plan:
    """policies: the baseline first. samples: empty for a suite without tests. build: None without a record of
    it beside the programs.
    """

    programs: Path
    build: BuildInfo | None
    model: Path
    model_file: ModelFile
    shape: ModelShape
    suite: Suite
    samples: tuple[Sample, ...]
    settings: Settings
    policies: tuple[PlannedPolicy, ...]

    @property
    def baseline(self) -> PlannedPolicy:
        """The policy the others are compared with."""
        return self.policies[0]


def make_plan(
    programs: Path, model: Path, suite: Suite, policy_texts: Sequence[str], settings: Settings
) -> Plan:
    """Check everything that can be checked before anything runs.

    Raises KVQuantError, one line, for programs, a model file or a policy that will not do.
    """
    for name in _programs_needed(suite):
        if not (programs / name).is_file():
            raise LlamaError(f"there is no {name} in {programs}; kvquant llama build makes one")
    if suite.parts.divergence is not None:
        check_text(suite.parts.divergence)
    opened = open_model(model)
    opened.require_loadable()
    shape = shape_of(opened)
    options = ContextOptions(settings.n_ctx, 1)
    policies = [planned_policy(text, shape, options) for text in policy_texts]
    texts = [policy.text for policy in policies]
    twice = next((policy for policy in policies if texts.count(policy.text) > 1), None)
    if twice is not None:
        raise UsageError(f"--policy {twice.label}: {twice.text} is given twice; give each policy once")
    if not policies:
        raise UsageError("no --policy; name at least one, such as --policy f16 --policy q8_0")
    return Plan(
        programs=programs,
        build=read_info(programs.parent),
        model=model,
        model_file=_model_file(opened, shape),
        shape=shape,
        suite=suite,
        samples=tuple(samples(suite, settings.n, settings.seed)) if suite.tests else (),
        settings=settings,
        policies=tuple(sorted(policies, key=lambda policy: policy.text != BASELINE)),
    )


def planned_policy(text: str, shape: ModelShape, options: ContextOptions) -> PlannedPolicy:
    """Read a policy and fit it to a model. Raises PolicyError or another KVQuantError, one line."""
    policy = parse_policy(text)
    resolved = policy.resolve(shape)
    missing = memory_of(shape, resolved, options).not_runnable
    if missing:
        raise PolicyError(
            f"--policy {text}: llama.cpp has no cache of type {', '.join(missing)}; measure it with kvquant "
            "analyze, or on whole models with kvquant.torch (docs/reference-model.md)",
            code="type",
        )
    return PlannedPolicy(_label(text, policy), policy, resolved)


def _label(text: str, policy: Policy) -> str:
    word = text.strip(" \t\r\n").lower()
    return word if preset_text(word) is not None else str(policy).removeprefix("*:")


def _programs_needed(suite: Suite) -> list[str]:
    parts = suite.parts
    chats = parts.speed is not None and parts.speed.n_chats > 0
    needed = {
        "llama-server": bool(suite.tests) or parts.memory or chats,
        "llama-bench": parts.speed is not None,
        "llama-kv-divergence": parts.divergence is not None,
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _model_file(model: GgufModel, shape: ModelShape) -> ModelFile:
    return ModelFile(shape.name, model.sha256(), model.n_bytes, shape.arch, shape.n_layer)
