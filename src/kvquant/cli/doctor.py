"""`kvquant doctor`: what would spoil a run, before it is started."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from kvquant.cli.options import (
    PolicyChoice,
    ctx_option,
    json_option,
    policy_options,
    rotation_line,
    sequence_options,
    shape_beside,
    shape_options,
)
from kvquant.errors import CheckFailed, KVQuantError, UsageError
from kvquant.evals.doctor import (
    TYPES,
    Finding,
    Severity,
    check_context,
    check_gguf,
    check_key_bias,
    check_machine,
    check_memory,
    check_policy,
    check_rkllm,
    failed,
    key_bias_norms,
)
from kvquant.evals.machine import Machine, read_machine
from kvquant.memory import ContextOptions, server_options
from kvquant.model.architectures import NoRulesError, shape_of
from kvquant.model.gguf_file import GgufModel
from kvquant.model.presets import load_shape
from kvquant.model.shape import ModelShape

DEFAULT_CTX = 4096


@dataclass(frozen=True)
class ServerSettings:
    """What --ctx, --parallel and --kv-unified say, None where they were left out."""

    ctx: int | None
    parallel: int | None
    kv_unified: bool

    def on(self, shape: ModelShape) -> ContextOptions:
        """The options of a server for this model."""
        n_ctx = self.ctx or min(DEFAULT_CTX, shape.n_ctx_train or DEFAULT_CTX)
        return server_options(n_ctx, self.parallel, kv_unified=self.kv_unified)


@click.command("doctor")
@shape_options
@policy_options
@ctx_option(f"Tokens to have room for.  [default: {DEFAULT_CTX}, or what the model was trained on if less]")
@sequence_options
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
    ctx: int | None,
    parallel: int | None,
    kv_unified: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Look for anything that would spoil a run: the model file, the policy, memory, clocks and heat.

    --model FILE (.gguf or .rkllm) checks the file; --policy or --default also checks the policy against
    it: rules without effect, types that cannot run or run slowly, K types that the model's biases are
    likely to break. Memory is counted for the sequences llama-server serves by default, as in `kvquant
    memory`. Changes nothing. Exits with 3 if something must be fixed.

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
        settings = ServerSettings(ctx, parallel, kv_unified)
        findings += _check_model(model, shape, policy, settings, machine)
    elif policy.text is not None:
        raise UsageError("--policy needs a model to check it against; add --model FILE or --shape NAME")
    findings.sort(key=lambda finding: list(Severity).index(finding.severity))
    click.echo(json.dumps([asdict(f) for f in findings], indent=1) if as_json else _text(findings))
    n_fix = sum(finding.severity is Severity.FIX for finding in findings)
    if n_fix:
        raise CheckFailed(f"{n_fix} {'thing' if n_fix == 1 else 'things'} must be fixed first")


def _check_model(
    model: Path | None, shape: str | None, choice: PolicyChoice, options: ServerSettings, machine: Machine
) -> list[Finding]:
    file = None
    findings: list[Finding] = []
    if model is not None:
        file, findings = check_gguf(model)
        if file is None:
            return findings
    try:
        the_shape = _shape(file, shape)
    except NoRulesError as error:
        # llama.cpp may run it all the same.
        return [*findings, replace(failed(file.path if file else Path(), error), severity=Severity.WARNING)]
    except KVQuantError as error:
        return [*findings, failed(Path(str(model or shape)), error)]
    policy = choice.policy.resolve(the_shape, choice.k_default, choice.v_default)
    findings += check_policy(the_shape, policy, rotation_line(the_shape, policy))
    file_bytes = 0
    if file is not None:
        chosen = None if choice.is_plain else policy
        findings += check_key_bias(key_bias_norms(file), chosen, file.shown)
        file_bytes = file.n_bytes
    context = options.on(the_shape)
    findings += check_context(the_shape, context, file)
    if any(finding.subject == TYPES for finding in findings):
        return findings  # what cannot run takes no memory
    return [*findings, *check_memory(the_shape, policy, context, file_bytes, machine.available_n_bytes)]


def _shape(file: GgufModel | None, shape: str | None) -> ModelShape:
    if file is None:
        return load_shape(str(shape))
    return shape_of(file) if shape is None else shape_beside(file, shape)


def _text(findings: list[Finding]) -> str:
    if not findings:
        return "nothing found"
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity:<9} {finding.subject}: {finding.what}")
        if finding.fix:
            lines.append(f"{'':<9} fix: {finding.fix}")
    return "\n".join(lines)
