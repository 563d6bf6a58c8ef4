"""A command that hands on to another program every argument it does not know itself, as it was written."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import click

from kvquant.errors import UsageError


class PassingOn(click.Command):
    """A command whose last argument takes what the others leave.

    An option is the command's own only when it is spelled out (``--model``, ``-m``, ``--model=x``). click by
    itself would read ``-hf`` as ``-h`` and ``-f``, and so print help where a model's name was given. Behind
    ``--`` everything is handed on, and the command's own options are refused.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own: list[str] = []
        others: list[str] = []
        takes_value = self._own_options(ctx)
        left = iter(args)
        for word in left:
            name, has_value, _ = word.partition("=")
            if word == "--":
                others.extend(_foreign(list(left), takes_value))
            elif name not in takes_value or (has_value and not name.startswith("--")):
                others.append(word)
            else:
                own.append(word)
                own.extend(_value(left) if takes_value[name] and not has_value else ())
        return super().parse_args(ctx, [*own, "--", *others])

    def _own_options(self, ctx: click.Context) -> dict[str, bool]:
        """Every spelling of the command's own options, and whether a value follows it."""
        return {
            spelling: not parameter.is_flag
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            for spelling in (*parameter.opts, *parameter.secondary_opts)
        }


def _foreign(words: list[str], own: Collection[str]) -> list[str]:
    """What stands behind ``--``, where an option of the command's own would undo what the command says."""
    for word in words:
        if word in own:
            raise UsageError(f"{word} comes after --, where kvquant does not read it; move it before --")
    return words


def _value(left: Iterator[str]) -> Iterator[str]:
    value = next(left, None)
    if value is not None:
        yield value
