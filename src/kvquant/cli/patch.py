"""``kvquant patch``: fit the patch series to a llama.cpp tree, apply it, take it back, write it as diffs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvquant.errors import CheckFailed
from kvquant.files import write_atomic
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.plan import Outcome
from kvquant.llama.patching.recipe import Series, load_series
from kvquant.llama.patching.transaction import (
    apply_series,
    changed_files,
    exclusive,
    load_state,
    plan_tree,
    revert_series,
)
from kvquant.llama.tree import open_tree
from kvquant.shipped import patches_folder

source_option = click.option(
    "--source",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The llama.cpp source tree.",
)
patches_option = click.option(
    "--patches",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder with the series.  [default: the one that comes with kvquant]",
)


@click.group()
def patch() -> None:
    """Fit the patch series to a llama.cpp source tree, apply it and take it back.

    \b
    Example:
      kvquant patch check --source ~/llama.cpp
    """


@patch.command()
@source_option
@patches_option
def check(source: Path, patches: Path | None) -> None:
    """Say where every edit goes, or which one does not fit and why.

    Changes nothing; exit code 3 when an edit does not fit. A patched tree is checked as it was before.

    \b
    Example:
      kvquant patch check --source ~/llama.cpp
    """
    root, series = open_tree(source), _series(patches)
    with exclusive(root) as recovered:
        _say_recovered(recovered)
        plan = plan_tree(series, root)
    for outcome in plan.outcomes:
        click.echo("\n".join(_outcome_lines(outcome)))
    if plan.failures:
        raise CheckFailed(
            f"{len(plan.failures)} of {len(plan.outcomes)} edits do not fit {root}; see the lines with fails"
        )
    click.echo(f"{len(plan.outcomes)} edits of {len(plan.patches)} patches fit {root}", err=True)


@patch.command()
@source_option
@patches_option
def apply(source: Path, patches: Path | None) -> None:
    """Patch the tree, all or nothing. Does nothing when this very series is applied already.

    \b
    Example:
      kvquant patch apply --source ~/llama.cpp
    """
    root, series = open_tree(source), _series(patches)
    written = apply_series(series, root)
    for path in written:
        click.echo(path)
    done = f"{len(written)} files written" if written else "nothing to do, the series is applied already"
    click.echo(f"{done} (series digest {series.digest[:12]})", err=True)


@patch.command()
@source_option
def revert(source: Path) -> None:
    """Put every original byte and mode back and remove the added files.

    Refused, with nothing touched, when a patched file was changed since.

    \b
    Example:
      kvquant patch revert --source ~/llama.cpp
    """
    restored = revert_series(open_tree(source))
    for path in restored:
        click.echo(path)
    click.echo(
        f"{len(restored)} files put back" if restored else "nothing to do, no patch is applied", err=True
    )


@patch.command()
@source_option
@patches_option
def status(source: Path, patches: Path | None) -> None:
    """Say which patches are applied, in which version, and whether patched files were changed since.

    \b
    Example:
      kvquant patch status --source ~/llama.cpp
    """
    root, series = open_tree(source), _series(patches)
    with exclusive(root) as recovered:
        _say_recovered(recovered)
        state = load_state(root)
        changed = changed_files(root, state) if state else ()
    applied = {item.name: item.digest for item in state.patches} if state else {}
    for item in series.patches:
        if item.name not in applied:
            word = "not applied"
        else:
            word = "applied" if applied[item.name] == item.digest else "applied in another version"
        click.echo(f"{item.name}: {word}")
    for name in sorted(set(applied) - {item.name for item in series.patches}):
        click.echo(f"{name}: applied, no longer in the series")
    for path in changed:
        click.echo(f"changed since: {path}")


@patch.command()
@source_option
@patches_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write one NAME.patch per patch into this folder.  [default: all to standard output]",
)
def export(source: Path, patches: Path | None, out: Path | None) -> None:
    """Write the patches as unified diffs for this tree; git apply takes them, in order.

    \b
    Example:
      kvquant patch export --source ~/llama.cpp --out diffs/
    """
    root, series = open_tree(source), _series(patches)
    with exclusive(root) as recovered:
        _say_recovered(recovered)
        plan = plan_tree(series, root)
    if plan.failures:
        raise CheckFailed(
            f"{len(plan.failures)} edits do not fit {root}; see: kvquant patch check --source {root}"
        )
    for item in plan.patches:
        diff = export_patch(item)
        if out is None:
            sys.stdout.buffer.write(diff)
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / f"{item.patch.name}.patch", diff)
            click.echo(str(out / f"{item.patch.name}.patch"))


def _series(patches: Path | None) -> Series:
    return load_series(patches_folder() if patches is None else patches)


def _say_recovered(recovered: bool) -> None:
    if recovered:
        click.echo("an interrupted patch command was undone first", err=True)


def _outcome_lines(outcome: Outcome) -> list[str]:
    """Patch, edit, file:line and verdict; under it, the nearest stretches for a missing anchor."""
    places = ", ".join(f"{outcome.file}:{line}" for line in outcome.lines) or outcome.file
    verdict = f"{outcome.status} ({outcome.reason})" if outcome.reason else outcome.status
    lines = [f"{outcome.patch} {outcome.id}  {places}  {verdict}"]
    for candidate in outcome.candidates:
        first, *rest = candidate.text.split("\n")
        more = f"  (+{len(rest)} lines)" if rest else ""
        lines.append(
            f"    nearest, {candidate.ratio:.0%} alike: {outcome.file}:{candidate.line}: {first}{more}"
        )
    return lines
