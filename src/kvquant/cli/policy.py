"""`kvquant policy`: check a policy, print its one canonical spelling, and what it means for a model."""

from __future__ import annotations

import json
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
from kvquant.errors import UsageError
from kvquant.policy import policy_document, preset_text
from kvquant.policy.grammar import ABOUT


@click.command()
@click.argument("text", metavar="POLICY|@FILE", type=POLICY, required=False)
@click.option("--list", "listed", is_flag=True, help="List the presets, and what real models say of them.")
@shape_options
@default_options
@json_option
def policy(
    text: str | None,
    listed: bool,
    model: Path | None,
    shape: str | None,
    default: str | None,
    k_type: str | None,
    v_type: str | None,
    as_json: bool,
) -> None:
    """Print POLICY in canonical form; with a model, also the types each layer gets.

    POLICY is rules such as 0-10:q8_0,11-31:q4_0 (layers count from 0, both ends named), 7:f16, 20-:q4_0,
    *:q8_0, first2:q8_0,last2:q8_0,rest:q4_0, 0-3:k=q8_0/v=q4_0, kv0-kv1:q8_0 (positions among the layers
    that keep a cache), or a preset: hybrid, k8v4, or any type's name. @FILE reads it from a file, where it
    may take several lines and # starts a comment. docs/policy-language.md has the grammar.

    \b
    Example:
      kvquant policy --list
      kvquant policy 11-31:q4_0,0-10:q8_0
      kvquant policy first1:q8_0,last1:q8_0,rest:q4_0 --shape qwen3.5-2b
    """
    if listed:
        _list(as_json)
        return
    if text is None:
        raise UsageError("no POLICY; give one such as k8v4, or --list")
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


def _list(as_json: bool) -> None:
    rows = [(name, str(preset_text(name)), about) for name, about in ABOUT.items()]
    if as_json:
        found = [{"name": name, "policy": text, "about": about} for name, text, about in rows]
        click.echo(json.dumps({"presets": found}, indent=1))
        return
    for name, text, about in rows:
        click.echo(f"{name:<7}  {text:<21}  {about}")
    click.echo("Any other type's name is a preset too (kvquant formats). What was measured: docs/claims.md.")
