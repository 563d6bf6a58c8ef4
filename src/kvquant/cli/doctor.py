"""`kvquant doctor`: what would spoil a run, before it is started."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from kvquant.cli.options import PolicyChoice, ctx_option, json_option, policy_options, shape_options
from kvquant.errors import CheckFailed, KVQuantError, UsageError
from kvquant.evals.doctor import (
    Finding,
    Severity,
    check_gguf,
    check_key_bias,
    check_machine,
    check_policy,
    check_rkllm,
    failed,
    key_bias_norms,
)
from kvquant.evals.machine import Machine, read_machine
from kvquant.memory import ContextOptions, largest_context, memory_of, total_bytes
from kvquant.memory.cells import PADDING
from kvquant.model.architectures import shape_of
from kvquant.model.presets import load_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import ResolvedPolicy
from kvquant.units import format_n_bytes

DEFAULT_CTX = 4096


@click.command("doctor")
@shape_options
@policy_options
@ctx_option("Tokens to have room for.", default=DEFAULT_CTX, show_default=True)
@click.option(
    "--root",
    default="/",
    type=click.Path(path_type=Path),
    hidden=True,
    help="Where /proc and /sys are looked for.",
)
@json_option
def doctor(
    model: Path | None,
    shape: str | None,
    policy: PolicyChoice,
    ctx: int,
    root: Path,
    as_json: bool,
) -> None:
    """Look for what would spoil a run: the model file, the policy, memory, clocks and heat.

    With --model FILE (.gguf or .rkllm) the file is checked, and with --policy or --default the policy against
    it: rules without effect, types that cannot run or are slow, K types that its biases predict to break.
    Nothing is changed. Exit code 3 when something must be fixed.

    \b
    Example:
      kvquant doctor
      kvquant doctor --model model.gguf --policy 0-10:q8_0,11-31:q4_0 --ctx 16k
    """
    machine = read_machine(root)
    findings = check_machine(machine)
    if model is not None and model.suffix.lower() == ".rkllm":
        if policy.text is not None:
            raise UsageError("--policy and an .rkllm file: the NPU takes no KV-cache policy; leave one out")
        findings += check_rkllm(model, machine.soc)
    elif model is not None or shape is not None:
        findings += _check_model(model, shape, policy, ctx, machine)
    elif policy.text is not None:
        raise UsageError("--policy needs a model to be checked against; add --model FILE or --shape NAME")
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    click.echo(json.dumps([asdict(f) for f in findings], indent=1) if as_json else _text(findings))
    n_fix = sum(finding.severity is Severity.FIX for finding in findings)
    if n_fix:
        raise CheckFailed(f"{n_fix} {'thing' if n_fix == 1 else 'things'} must be fixed first")


def _check_model(
    model: Path | None, shape: str | None, choice: PolicyChoice, ctx: int, machine: Machine
) -> list[Finding]:
    file = None
    findings: list[Finding] = []
    if model is not None:
        file, findings = check_gguf(model)
        if file is None:
            return findings
    try:
        the_shape = load_shape(shape) if shape is not None else shape_of(file)  # type: ignore[arg-type]
    except UsageError:
        raise
    except KVQuantError as error:
        return [*findings, failed(Path(str(model or shape)), error)]
    policy = choice.policy.resolve(the_shape, choice.k_default, choice.v_default)
    findings += check_policy(the_shape, policy)
    file_bytes = 0
    if file is not None:
        chosen = None if choice.is_plain else policy
        findings += check_key_bias(key_bias_norms(file), chosen, file.shown)
        file_bytes = file.n_bytes
    return [*findings, *check_memory(the_shape, policy, ctx, file_bytes, machine.available_n_bytes)]


def check_memory(
    shape: ModelShape, policy: ResolvedPolicy, ctx: int, file_bytes: int, available: int | None
) -> list[Finding]:
    """Compare weights and KV cache with free memory. file_bytes: 0 when the weights are not known."""
    options = ContextOptions(n_ctx=ctx, n_parallel=1)
    try:
        kv_bytes = total_bytes(memory_of(shape, policy, options))
    except KVQuantError as error:
        return [Finding(Severity.FIX, "memory", str(error), "change the policy or the context")]
    needed = file_bytes + kv_bytes
    what = f"a context of {options.n_ctx} needs {format_n_bytes(kv_bytes)} of KV cache"
    if file_bytes:
        what += f" beside {format_n_bytes(file_bytes)} of weights"
    if available is None:
        return [Finding(Severity.NOTE, "memory", f"{what}; how much is free is not known here")]
    what += f"; {format_n_bytes(available)} are free"
    if needed <= available:
        return [Finding(Severity.NOTE, "memory", what)]
    if file_bytes >= available:
        return [Finding(Severity.FIX, "memory", what, "free some memory, or take a smaller model")]
    return [Finding(Severity.FIX, "memory", what, _smaller_context(shape, policy, available - file_bytes))]


def _smaller_context(shape: ModelShape, policy: ResolvedPolicy, budget: int) -> str:
    try:
        options = ContextOptions(n_ctx=PADDING, n_parallel=1)
        fits = largest_context(shape, policy, budget, options)
    except KVQuantError:
        return "free some memory, or take a smaller model"
    return f"use at most -c {fits}, or types with fewer bits"


def _text(findings: list[Finding]) -> str:
    if not findings:
        return "nothing found"
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:<9} {finding.subject}: {finding.what}")
        if finding.fix:
            lines.append(f"{'':<9} fix: {finding.fix}")
    return "\n".join(lines)
