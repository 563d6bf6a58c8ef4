"""`kvquant completion`: the script that lets a shell complete commands, options and known names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_KVQUANT_COMPLETE"
"""The environment variable by which click's script asks the program for completions."""


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete kvquant's commands, options and known names.

    Load it at the start of every shell: the first two lines belong in ~/.bashrc or ~/.zshrc, the third in
    ~/.config/fish/config.fish.

    \b
    Example:
      eval "$(kvquant completion bash)"
      eval "$(kvquant completion zsh)"
      kvquant completion fish | source
    """
    made = get_completion_class(shell)
    assert made is not None, shell
    click.echo(made(ctx.find_root().command, {}, "kvquant", VARIABLE).source())
