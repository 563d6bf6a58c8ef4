"""`kvquant policy`: a policy in its one canonical spelling, on a model, and in the notations of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from kvquant.cli.options import (
    POLICY,
    PolicyChoice,
    default_options,
    default_types,
    json_option,
    shape_from_options,
    shape_options,
)
from kvquant.documents import to_json
from kvquant.errors import PolicyError, UsageError
from kvquant.policy import policy_document, preset_text
from kvquant.policy.exchange import NOTATIONS, export_policy, import_policy
from kvquant.policy.grammar import ABOUT
from kvquant.policy.presets import measured_presets

_MAX_FILE = 1 << 20
"""Bytes; a line for each of thousands of layers takes less."""


class _PolicyGroup(click.Group):
    """A group whose first word may be a policy: one that is no command is for ``show``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {*self.commands, *(name for option in self.params for name in option.opts)} | {"-h", "--help"}
        if args and args[0] not in own:
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self.commands["show"]


@click.group(cls=_PolicyGroup, invoke_without_command=True)
@click.option("--list", "as_list", is_flag=True, help="List the presets, and what real models say of them.")
@json_option
@click.pass_context
def policy(context: click.Context, as_list: bool, as_json: bool) -> None:
    """Print a policy in canonical form: kvquant policy POLICY|@FILE, short for kvquant policy show.

    POLICY is a list of rules or a preset. Rules: 0-10:q8_0,11-31:q4_0 (layers count from 0, both ends
    included), 7:f16, 20-:q4_0, *:q8_0, first2:q8_0,last2:q8_0,rest:q4_0, 0-3:k=q8_0/v=q4_0, kv0-kv1:q8_0
    (positions among the layers that keep a cache). Presets: hybrid, k8v4, and every type's name. @FILE
    reads the policy from a file, which may have several lines and # comments. Grammar:
    docs/policy-language.md.

    \b
    Example:
      kvquant policy 11-31:q4_0,0-10:q8_0
      kvquant policy first1:q8_0,last1:q8_0,rest:q4_0 --shape qwen3.5-2b
      kvquant policy --list
    """
    if context.invoked_subcommand is not None:
        return
    if not as_list:
        raise UsageError("no POLICY; give one such as k8v4, or --list")
    rows = [(name, str(preset_text(name)), about) for name, about in ABOUT.items()]
    measured = measured_presets()
    if as_json:
        found = [{"name": name, "policy": text, "about": about} for name, text, about in rows]
        click.echo(to_json({"presets": found, "measured": measured}))
        return
    for name, text, about in rows:
        click.echo(f"{name:<7}  {text:<21}  {about}")
    for preset in measured:
        click.echo(f"\n{preset.model}, {preset.of_f16:.3f}x of f16: {preset.measured}\n  {preset.policy}")
    click.echo("Any other type's name is a preset too (kvquant formats). Measurements: docs/claims.md.")


@policy.command()
@click.argument("text", metavar="POLICY|@FILE", type=POLICY)
@shape_options
@default_options
@json_option
def show(
    text: str,
    model: Path | None,
    shape: str | None,
    default: str | None,
    k_type: str | None,
    v_type: str | None,
    as_json: bool,
) -> None:
    """Print POLICY in canonical form; with a model, also the types each layer gets.

    \b
    Example:
      kvquant policy show 0-10:q8_0,rest:q4_0 --shape qwen3.5-2b
    """
    choice = PolicyChoice(text, *default_types(default, k_type, v_type))
    if model is None and shape is None:
        click.echo(json.dumps({"policy": str(choice.policy)}) if as_json else str(choice.policy))
        return
    resolved = choice.on(shape_from_options(model, shape))
    if as_json:
        click.echo(json.dumps(policy_document(choice.policy, resolved), indent=1))
        return
    click.echo(str(choice.policy))
    click.echo(f"{'layer':>6}{'kv':>5}  {'K':<10} V")
    for layer in resolved.layers:
        click.echo(f"{layer.layer:>6}{layer.kv_index:>5}  {layer.k_type:<10} {layer.v_type}")


@policy.command("import")
@click.argument("file", metavar="FILE|-")
@click.option("--from", "notation", type=click.Choice(NOTATIONS), help="Its notation.  [default: found out]")
@json_option
def import_(file: str, notation: str | None, as_json: bool) -> None:
    """Translate another program's configuration into a policy; FILE, or - for standard input.

    Settings that a policy cannot express are reported on stderr. A type without a llama.cpp cache type is
    an error.

    \b
    Example:
      kvquant policy import Qwen2.5-7B-Instruct_KVTuner6_0.yaml
      echo '-ctk q8_0 -ctv q4_0 -ctk-first f16,2' | kvquant policy import - --from ik_llama.cpp
    """
    try:
        found = import_policy(_read(file), notation)
    except PolicyError as error:
        raise PolicyError(f"{file}: {error}", code=error.code) from None
    for note in found.notes:
        click.echo(f"kvquant: {found.notation}: {note}", err=True)
    document = {"policy": str(found.policy), "notation": found.notation, "notes": found.notes}
    click.echo(to_json(document) if as_json else str(found.policy))


@policy.command("export")
@click.argument("text", metavar="POLICY|@FILE", type=POLICY)
@click.option("--to", "notation", type=click.Choice(NOTATIONS), required=True, help="The notation.")
@shape_options
def export(text: str, notation: str, model: Path | None, shape: str | None) -> None:
    """Translate POLICY into another program's notation, for one model; what it cannot express is an error.

    \b
    Example:
      kvquant policy export k8v4 --to kvtuner --shape qwen2.5-7b
      kvquant policy export first2:q8_0,rest:q4_0 --to ik_llama.cpp --model model.gguf
    """
    choice = PolicyChoice(text)
    resolved = choice.on(shape_from_options(model, shape))
    click.echo(export_policy(resolved, choice.policy, notation), nl=False)


def _read(file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_FILE + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"{file}: the file cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise UsageError(f"{file}: too large for a policy; give the configuration of a KV cache")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: byte {error.start} is not UTF-8; give a text file") from error
