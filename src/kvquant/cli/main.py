"""The `kvquant` command: a lazy group, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click

from kvquant.errors import KVQuantError
from kvquant.shipped import VERSION, patches_folder

# name -> module:attribute. A command's module is imported only when it runs or when its help is asked for,
# so that `kvquant policy` does not pay for matplotlib or scipy.
COMMANDS = {
    "analyze": "kvquant.cli.analyze:analyze",
    "calibrate": "kvquant.cli.calibrate:calibrate",
    "capture": "kvquant.cli.capture:capture",
    "completion": "kvquant.cli.completion:completion",
    "compare": "kvquant.cli.compare:compare_runs",
    "divergence": "kvquant.cli.divergence:divergence",
    "doctor": "kvquant.cli.doctor:doctor",
    "eval": "kvquant.cli.eval:evaluate",
    "formats": "kvquant.cli.formats:formats",
    "llama": "kvquant.cli.llama:llama",
    "memory": "kvquant.cli.memory:memory",
    "models": "kvquant.cli.models:models",
    "patch": "kvquant.cli.patch:patch",
    "policy": "kvquant.cli.policy:policy",
    "published": "kvquant.cli.published:published",
    "rank": "kvquant.cli.rank:rank_runs",
    "report": "kvquant.cli.report:report",
    "router": "kvquant.cli.router:router",
    "schema": "kvquant.cli.schema:schema",
    "search": "kvquant.cli.search:search",
    "shape": "kvquant.cli.shape:shape",
    "sweep": "kvquant.cli.sweep:sweep_boards",
    "texts": "kvquant.cli.texts:texts",
    "validate": "kvquant.cli.validate:validate_policies",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is first needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


WIDTH = 100
"""Columns of help where the terminal has them; COLUMNS names another number of the terminal's."""


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print what a report of a fault must name: the package, the patches and the llama.cpp they are for."""
    if not wanted or ctx.resilient_parsing:
        return
    from kvquant.llama.patching.recipe import load_series
    from kvquant.llama.pin import load_pin

    series, pin = load_series(patches_folder()), load_pin(patches_folder())
    click.echo(
        f"kvquant {VERSION}\n"
        f"patch series {series.digest[:12]}, {len(series.patches)} patches\n"
        f"llama.cpp {pin.tag}; the series fits {pin.range.oldest} to {pin.range.newest}"
    )
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the versions of kvquant, its patch series and the pinned llama.cpp.",
)
def kvquant() -> None:
    """Choose a KV-cache type per layer for llama.cpp, and know what it costs.

    \b
    Example:
      kvquant analyze --policy 0-10:q8_0,11-31:q4_0
    """


def main() -> None:
    """Run the command line and end with its exit code.

    0 done, 1 failed, 2 usage, 3 the check says no, 130 interrupted.
    """
    try:
        code = kvquant.main(prog_name="kvquant", standalone_mode=False)
        sys.stdout.flush()
    except KVQuantError as error:
        click.echo(f"kvquant: error: {error}", err=True)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        click.echo(f"kvquant: error: {_one_line(error)}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("kvquant: interrupted", err=True)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader went away (`| head`). With stdout elsewhere the interpreter's own flush stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: click.ClickException) -> str:
    """What click found wrong, and where the options are listed."""
    message = " ".join(error.format_message().split())
    context = error.ctx if isinstance(error, click.UsageError) else None
    return message if context is None else f"{message.rstrip('.')}; see {context.command_path} --help"
