"""`kvquant policy`: check a policy, print its one canonical spelling, and what it means for a model."""

from __future__ import annotations

import json
from typing import Any

import click

from kvquant.cli.options import default_option, default_types, json_option, shape_from_options, shape_options
from kvquant.policy import Policy, ResolvedPolicy, policy_from_text


@click.command()
@click.argument("text", metavar="POLICY")
@shape_options
@default_option
@json_option
def policy(text: str, model: str | None, shape: str | None, default: str, as_json: bool) -> None:
    """Print POLICY in canonical form; with a model, also the types each layer gets.

    POLICY is rules such as 0-10:q8_0,11-31:q4_0 (layers count from 0, both ends named), 7:f16, 20-:q4_0,
    *:q8_0, 0-3:k=q8_0/v=q4_0, kv0-kv1:q8_0 (positions among the layers that keep a cache), or a preset:
    hybrid, k8v4, or any type's name. docs/policy-language.md has the grammar.

    \b
    Example:
      kvquant policy 11-31:q4_0,0-10:q8_0
      kvquant policy kv0-kv1:q8_0 --shape qwen3.5-2b --default q4_0
    """
    parsed = policy_from_text(text)
    if model is None and shape is None:
        click.echo(json.dumps({"policy": str(parsed)}) if as_json else str(parsed))
        return
    k_default, v_default = default_types(default)
    resolved = parsed.resolve(shape_from_options(model, shape), k_default, v_default)
    for warning in resolved.warnings:
        click.echo(f"kvquant: warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(_document(parsed, resolved), indent=1))
        return
    click.echo(str(parsed))
    click.echo(f"{'layer':>6}{'kv':>5}  {'K':<10} V")
    for layer in resolved.layers:
        click.echo(f"{layer.layer:>6}{layer.kv_index:>5}  {layer.k_type:<10} {layer.v_type}")


def _document(parsed: Policy, resolved: ResolvedPolicy) -> dict[str, Any]:
    layers = [
        {"layer": s.layer, "kv_index": s.kv_index, "k": {"type": s.k_type}, "v": {"type": s.v_type}}
        for s in resolved.layers
    ]
    warnings = [{"code": warning.code, "message": warning.message} for warning in resolved.warnings]
    return {"policy": str(parsed), "layers": layers, "warnings": warnings}
