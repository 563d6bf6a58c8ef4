"""Options that several commands share, as decorators, and what turns them into values."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kvquant.errors import PolicyError, UsageError
from kvquant.formats.registry import format_names
from kvquant.model.architectures import shape_of
from kvquant.model.gguf_file import GgufModel, open_model
from kvquant.model.hparams import Keys
from kvquant.model.presets import load_shape
from kvquant.model.shape import ModelShape
from kvquant.policy import parse_policy

Command = TypeVar("Command", bound=Callable[..., Any])


def shape_options(command: Command) -> Command:
    """Add --model FILE.gguf and --shape NAME|FILE.json; pass both to `shape_from_options`."""
    command = click.option(
        "--shape",
        metavar="NAME|FILE",
        help="A built-in shape (kvquant shape --list) or a JSON file; beside --model, in its place.",
    )(command)
    return click.option("--model", metavar="FILE", help="Read the shape from the header of this GGUF file.")(
        command
    )


def shape_from_options(model: str | None, shape: str | None, default: str | None = None) -> ModelShape:
    """Return the shape that --shape names, else the model file's, else the preset ``default``.

    A model file is opened in any case: what is no language model is refused whatever shape stands beside it,
    and what keeps llama.cpp from loading it is said.
    """
    if model is not None:
        opened = open_model(model)
        for line in opened.not_loadable():
            click.echo(f"kvquant: warning: {line}", err=True)
        return shape_of(opened) if shape is None else shape_beside(opened, shape)
    name = shape if shape is not None else default
    if name is None:
        raise UsageError("no model given; use --model FILE.gguf or --shape NAME (kvquant shape --list)")
    return load_shape(name)


def shape_beside(model: GgufModel, shape: str) -> ModelShape:
    """Return the shape that --shape names for ``model``, with a warning where their layers differ."""
    given = load_shape(shape)
    n_layer = Keys(model.header).u32("block_count", 0)
    if n_layer and n_layer != given.n_layer:
        click.echo(
            f"kvquant: warning: --shape {shape} has {given.n_layer} layers, {model.shown} {n_layer}; what is "
            "said holds for the shape",
            err=True,
        )
    return given


def default_option(command: Command) -> Command:
    """Add --default TYPE; pass it to `default_types`."""
    return click.option(
        "--default",
        metavar="TYPE",
        default="f16",
        show_default=True,
        help="Type of the layers no rule names: q8_0, or k=q8_0/v=q4_0.",
    )(command)


def policy_options(command: Command) -> Command:
    """Add --layers POLICY and --default TYPE."""
    command = default_option(command)
    return click.option(
        "--layers",
        metavar="POLICY",
        help="Which layers get which type, such as 0-10:q8_0,11-31:q4_0 (kvquant policy --help).",
    )(command)


def default_types(text: str) -> tuple[str, str]:
    """Return the (K, V) types that --default names; a side it leaves out is f16.

    Raises PolicyError, code "type", when it names none.
    """
    try:
        (rule,) = parse_policy(f"*:{text}").rules
    except PolicyError:
        raise PolicyError(
            f"--default {text!r} is neither a type nor k=TYPE/v=TYPE; known: {', '.join(format_names())}",
            code="type",
        ) from None
    return rule.k_type or "f16", rule.v_type or "f16"


def llama_bin_option(command: Command) -> Command:
    """Add --llama-bin DIR; pass it to `programs_folder`."""
    return click.option(
        "--llama-bin",
        envvar="KVQUANT_LLAMA_BIN",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The folder of llama-server, stock or patched.  [default: $KVQUANT_LLAMA_BIN, else what "
        "kvquant llama build has made, else the PATH]",
    )(command)


def programs_folder(llama_bin: Path | None) -> Path:
    """Return the folder of llama.cpp's programs: as named, as built by kvquant, or on the PATH.

    Raises UsageError when there is none.
    """
    from kvquant.llama.programs import built_programs  # only here: most commands need none of it

    folder = llama_bin or built_programs()
    if folder is not None:
        return folder
    found = shutil.which("llama-server")
    if found is None:
        raise UsageError("no llama-server: run kvquant llama build, or name a folder with --llama-bin")
    return Path(found).parent


def out_option(command: Command) -> Command:
    """Add --out DIR, the folder of a run's records."""
    return click.option(
        "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the records go."
    )(command)


def seed_option(command: Command) -> Command:
    """Add --seed S, which of a suite's variants are asked."""
    return click.option(
        "--seed", default=0, show_default=True, metavar="S", help="Which variants are asked."
    )(command)


def timeout_option(command: Command) -> Command:
    """Add --timeout SECONDS, above 0, for one answer."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="For one answer.",
    )(command)


def json_option(command: Command) -> Command:
    """Add --json: one document on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
