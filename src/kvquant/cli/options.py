"""Options that several commands share: one reading of each, upstream's spellings included."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from kvquant.cli.names import fetched_model, fetched_text
from kvquant.errors import PolicyError, UsageError
from kvquant.units import parse_budget, parse_n_bytes, parse_n_tokens

# kvquant llama builds on boards that have no more than the standard library and click: what needs numpy is
# imported where it is used.
if TYPE_CHECKING:
    from kvquant.model.gguf_file import GgufModel
    from kvquant.model.shape import ModelShape
    from kvquant.policy import Policy, ResolvedPolicy

Command = TypeVar("Command", bound=Callable[..., Any])

PLAIN_TYPE = "f16"
"""What a cache holds where nothing was chosen."""

_MAX_POLICY_FILE = 1 << 20
"""Bytes; a rule for each of 65536 layers takes less."""


class _Words(click.ParamType[Any]):
    """A parameter type whose values are read by a function that raises UsageError."""

    def __init__(
        self, name: str, read: Callable[[str], Any], known: Callable[[], Iterable[str]] | None = None
    ) -> None:
        """known: names a shell completes, files where none begins so; None for nothing to complete."""
        self.name = name
        self._read = read
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        if not isinstance(value, str):
            return value  # a default, or what was read already
        try:
            return self._read(value)
        except UsageError as error:
            option = next((f"{name}: " for name in param.opts if name.startswith("--")), "") if param else ""
            raise UsageError(f"{option}{error}") from None

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        if self._known is None:
            return []
        names = [CompletionItem(name) for name in self._known() if name.startswith(incomplete)]
        return names or [CompletionItem(incomplete, type="file")]


# ---- the model ----


def model_path(value: str) -> Path:
    """Return the file that a value of --model names: a path, or what is fetched for a known name."""
    return fetched_model(value)


def _models() -> Iterable[str]:
    from kvquant.assets.registry import models

    return models()


def _texts() -> Iterable[str]:
    from kvquant.assets.registry import texts

    return texts()


def _shapes() -> Iterable[str]:
    from kvquant.model.presets import preset_names

    return preset_names()


def _policies() -> Iterable[str]:
    from kvquant.formats.registry import format_names
    from kvquant.policy import NAMED

    return (*NAMED, *format_names())


MODEL = _Words("model", model_path, _models)
TEXT = _Words("text", fetched_text, _texts)
SHAPE = _Words("shape", str, _shapes)


def model_option(*, required: bool = False, help: str = "The GGUF model.") -> Callable[[Command], Command]:
    """Add -m, --model NAME|FILE as ``model``, a path."""
    return click.option("-m", "--model", type=MODEL, required=required, metavar="NAME|FILE", help=help)


def shape_options(command: Command) -> Command:
    """Add --model NAME|FILE.gguf and --shape NAME|FILE.json; pass both to `shape_from_options`."""
    command = click.option(
        "--shape",
        type=SHAPE,
        metavar="NAME|FILE",
        help="A built-in shape (kvquant shape --list) or a JSON file; overrides the one of --model.",
    )(command)
    return model_option(help="Read the shape from this GGUF file's header.")(command)


def shape_from_options(model: Path | None, shape: str | None, default: str | None = None) -> ModelShape:
    """Return the shape that --shape names, else the model file's, else the preset ``default``.

    A model file is opened in any case: what is no language model is refused whatever shape stands beside it,
    and what keeps llama.cpp from loading it is said.
    """
    from kvquant.model.architectures import shape_of
    from kvquant.model.gguf_file import open_model
    from kvquant.model.presets import load_shape

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
    from kvquant.model.hparams import Keys
    from kvquant.model.presets import load_shape

    given = load_shape(shape)
    n_layer = Keys(model.header).u32("block_count", 0)
    if n_layer and n_layer != given.n_layer:
        click.echo(
            f"kvquant: warning: --shape {shape} has {given.n_layer} layers, {model.shown} {n_layer}; using "
            "the shape",
            err=True,
        )
    return given


def runnable_shape(model: GgufModel, shape: str | None) -> ModelShape | None:
    """The shape for a command that lets llama.cpp do the work, None, and said so, where it is not known.

    Raises ModelFileError for a model that llama.cpp does not load.
    """
    from kvquant.model.architectures import NoRulesError, shape_of

    model.require_loadable()
    if shape is not None:
        return shape_beside(model, shape)
    try:
        return shape_of(model)
    except NoRulesError as error:
        click.echo(
            f"kvquant: warning: memory is not predicted, and llama-server checks the policy: {error}",
            err=True,
        )
        return None


def shape_beside_option(command: Command) -> Command:
    """Add --shape NAME|FILE for a command that runs a model; pass it to `runnable_shape`."""
    return click.option(
        "--shape",
        type=SHAPE,
        metavar="NAME|FILE",
        help="The shape of a model whose architecture has no memory rules (docs/memory.md).",
    )(command)


# ---- the policy ----


@dataclass(frozen=True)
class PolicyChoice:
    """What the options of a policy say: the policy's text, None where none was given, and both defaults."""

    text: str | None
    k_default: str = PLAIN_TYPE
    v_default: str = PLAIN_TYPE

    @property
    def is_plain(self) -> bool:
        """Nothing was chosen: every layer in f16."""
        return self.text is None and not self.llama_defaults

    @property
    def llama_defaults(self) -> list[str]:
        """Both defaults as arguments of llama.cpp, nothing for what it does anyway."""
        if (self.k_default, self.v_default) == (PLAIN_TYPE, PLAIN_TYPE):
            return []
        return ["--cache-type-k", self.k_default, "--cache-type-v", self.v_default]

    @property
    def policy_text(self) -> str:
        """The policy's text, or the defaults as one."""
        return f"*:k={self.k_default}/v={self.v_default}" if self.text is None else self.text

    @property
    def policy(self) -> Policy:
        """The policy. Raises PolicyError."""
        from kvquant.policy import parse_policy

        return parse_policy(self.policy_text)

    def on(self, shape: ModelShape) -> ResolvedPolicy:
        """Resolve on a model and say on stderr what its author may not expect there.

        Raises PolicyError, and FormatError for types that cannot run on this model.
        """
        from kvquant.memory import check_types

        resolved = say_warnings(self.policy.resolve(shape, self.k_default, self.v_default), shape)
        check_types(shape, resolved)
        return resolved


def say_warnings(resolved: ResolvedPolicy, shape: ModelShape) -> ResolvedPolicy:
    """Say on stderr what a policy does that its author may not expect, and return it."""
    lines = [str(warning) for warning in resolved.warnings]
    for line in [*lines, *rotation_line(shape, resolved)]:
        click.echo(f"kvquant: warning: {line}", err=True)
    return resolved


def rotation_line(shape: ModelShape, resolved: ResolvedPolicy) -> list[str]:
    """The line on layers that are quantized without rotation, none where that cannot be."""
    from kvquant.errors import FormatError
    from kvquant.memory import check_types, not_rotated

    try:
        check_types(shape, resolved)
    except FormatError:
        return []  # what cannot run is not stored either
    disabled = os.environ.get("LLAMA_ATTN_ROT_DISABLE", "0") not in ("", "0")
    line = not_rotated(shape, resolved, disabled=disabled)
    return [line] if line else []


def policy_text(value: str) -> str:
    """Return the text of a policy, or what is in the file that @FILE names.

    Raises PolicyError where it cannot be read as a policy, UsageError where the file cannot be read.
    """
    from kvquant.policy import parse_policy

    if not value.startswith("@"):
        parse_policy(value)
        return value
    path = Path(value[1:])
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_POLICY_FILE + 1)
    except OSError as error:
        raise UsageError(f"{value}: the file cannot be read: {error.strerror}") from error
    if len(data) > _MAX_POLICY_FILE:
        raise UsageError(f"{value}: the file is too large for a policy; give a text file of rules")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{value}: byte {error.start} is not UTF-8; give a text file of rules") from error
    parse_policy(text, where=str(path))
    return text


def varied_policy_text(value: str) -> str:
    """Return the same with the variations that stand behind a policy, such as @no-transform."""
    from kvquant.evals.variations import split_variations

    varied = split_variations(value)
    return str(replace(varied, policy=policy_text(varied.policy)))


POLICY = _Words("policy", policy_text, _policies)
VARIED_POLICY = _Words("policy", varied_policy_text, _policies)


def policy_option(help: str, **settings: Any) -> Callable[[Command], Command]:
    """Add --policy POLICY|@FILE, also known as --layers and --kv-layers; settings go to click."""
    settings = {"name": "policy", "type": POLICY, **settings}
    names = ("--policy", "--layers", "--kv-layers", settings.pop("name"))
    return click.option(*names, metavar="POLICY|@FILE", help=help, **settings)


def policy_options(command: Command) -> Command:
    """Add --policy, --default and llama.cpp's -ctk and -ctv; the command gets a PolicyChoice, ``policy``."""

    @functools.wraps(command)
    def with_choice(
        *args: Any,
        policy: str | None,
        default: str | None,
        k_type: str | None,
        v_type: str | None,
        **rest: Any,
    ) -> Any:
        choice = PolicyChoice(policy, *default_types(default, k_type, v_type))
        return command(*args, policy=choice, **rest)

    add_policy = policy_option("The type of each layer, such as 0-10:q8_0,rest:q4_0 (kvquant policy --help).")
    return add_policy(default_options(with_choice))  # type: ignore[return-value]


def default_options(command: Command) -> Command:
    """Add --default, -ctk and -ctv as ``default``, ``k_type``, ``v_type``; pass them to `default_types`."""
    for names, side in (
        (("-ctv", "--cache-type-v", "v_type"), "V"),
        (("-ctk", "--cache-type-k", "k_type"), "K"),
    ):
        command = click.option(*names, metavar="TYPE", help=f"The same for {side} alone, as in llama.cpp.")(
            command
        )
    return click.option(
        "--default",
        metavar="TYPE",
        help=f"Type of all other layers: q8_0, or k=q8_0/v=q4_0.  [default: {PLAIN_TYPE}]",
    )(command)


def default_types(default: str | None, k_type: str | None, v_type: str | None) -> tuple[str, str]:
    """Return the (K, V) types of what no rule names; a side that nothing names is f16.

    Raises PolicyError, code "type", when an option names none, and UsageError when two name the same side.
    """
    types: dict[str, str] = {}
    given = (("--default", default, ""), ("-ctk", k_type, "k="), ("-ctv", v_type, "v="))
    for option, text, side in given:
        if text is None:
            continue
        for name, found in zip("kv", _types_of(option, side, text), strict=True):
            if found is not None and name in types:
                raise UsageError(
                    f"{option} {text} and --default {default} both give a type of {name.upper()}"
                )
            if found is not None:
                types[name] = found
    return types.get("k", PLAIN_TYPE), types.get("v", PLAIN_TYPE)


def _types_of(option: str, side: str, text: str) -> tuple[str | None, str | None]:
    from kvquant.formats.registry import format_names
    from kvquant.policy import parse_policy

    try:
        (rule,) = parse_policy(f"*:{side}{text}").rules
    except (PolicyError, ValueError):
        wanted = "no type" if side else "neither a type nor k=TYPE/v=TYPE"
        raise PolicyError(
            f"{option} {text!r} is {wanted}; known: {', '.join(format_names())}", code="type"
        ) from None
    return rule.types


# ---- numbers ----

BUDGET = _Words("budget", parse_budget)
N_BYTES = _Words("size", parse_n_bytes)


def _tokens(least: int, text: str) -> int:
    n_tokens = parse_n_tokens(text)
    if n_tokens < least:
        raise UsageError(f"{text!r} is too few tokens; give at least {least}")
    return n_tokens


def ctx_option(help: str, *, least: int = 1, **settings: Any) -> Callable[[Command], Command]:
    """Add -c, --ctx N, also --ctx-size, as ``ctx``: tokens, such as 4096 or 32k; settings go to click."""
    read = _Words("tokens", functools.partial(_tokens, least))
    return click.option("-c", "--ctx", "--ctx-size", "ctx", type=read, metavar="N", help=help, **settings)


def budget_option(help: str, **settings: Any) -> Callable[[Command], Command]:
    """Add --budget SIZE|SHARE as ``budget``: bytes, an int, or a share of f16, a float."""
    return click.option("--budget", type=BUDGET, metavar="SIZE|SHARE", help=help, **settings)


def sequence_options(command: Command) -> Command:
    """Add -np, --parallel P and -kvu, --kv-unified; pass them to `kvquant.memory.server_options`."""
    command = click.option(
        "-kvu", "--kv-unified", "kv_unified", is_flag=True, help="One buffer for all sequences."
    )(command)
    return click.option(
        "-np",
        "--parallel",
        "parallel",
        type=int,
        metavar="P",
        help="Sequences.  [default: 4 in one buffer, as llama-server]",
    )(command)


def threads_option(help: str) -> Callable[[Command], Command]:
    """Add -t, --threads N as ``threads``, None where it was left out."""
    return click.option("-t", "--threads", type=click.IntRange(min=1), metavar="N", help=help)


def jobs_option(command: Command) -> Command:
    """Add --jobs N as ``jobs``: policies that llama-kv-divergence measures at the same time."""
    return click.option(
        "--jobs",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Policies to measure at once; they share the threads.",
    )(command)


# ---- programs, records, output ----


def llama_bin_option(command: Command) -> Command:
    """Add --llama-bin DIR; pass it to `programs_folder`."""
    return click.option(
        "--llama-bin",
        envvar="KVQUANT_LLAMA_BIN",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of llama-server, stock or patched.  [default: $KVQUANT_LLAMA_BIN, else the build of "
        "kvquant llama build, else the PATH]",
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
        raise UsageError("no llama-server: run kvquant llama build, or give its folder with --llama-bin")
    return Path(found).parent


def out_option(command: Command) -> Command:
    """Add --out DIR, the folder of a run's records."""
    return click.option(
        "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder for the records."
    )(command)


def seed_option(command: Command) -> Command:
    """Add --seed S, which of a suite's variants are asked."""
    return click.option("--seed", default=0, show_default=True, metavar="S", help="Seed of the questions.")(
        command
    )


def timeout_option(command: Command) -> Command:
    """Add --timeout SECONDS, above 0, for one answer."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Time limit for one answer.",
    )(command)


def json_option(command: Command) -> Command:
    """Add --json: one document on stdout instead of text."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)
