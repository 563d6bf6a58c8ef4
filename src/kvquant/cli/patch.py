"""``kvquant patch``: fit the patch series to a llama.cpp tree, apply it, take it back, write it as diffs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvquant.documents import write_json
from kvquant.errors import CheckFailed, UsageError
from kvquant.files import write_atomic
from kvquant.llama.fetch import fetch_tree
from kvquant.llama.patching.diff import export_patch
from kvquant.llama.patching.explain import Explainer
from kvquant.llama.patching.merge import merge_plan, merged_diff
from kvquant.llama.patching.plan import Plan
from kvquant.llama.patching.recipe import Patch, Series, load_series
from kvquant.llama.patching.surroundings import FILE as SURROUNDINGS
from kvquant.llama.patching.surroundings import load_surroundings, surroundings_of
from kvquant.llama.patching.transaction import (
    apply_series,
    changed_files,
    exclusive,
    load_state,
    plan_tree,
    read_pristine,
    restored_files,
    revert_series,
)
from kvquant.llama.pin import load_pin
from kvquant.llama.tree import open_tree, read_file
from kvquant.llama.workspace import tree_commit, tree_tag
from kvquant.shipped import VERSION, patches_folder

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
    help="The folder with the series.  [default: kvquant's own]",
)
only_option = click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Take this patch alone; repeat it for more.  [default: the whole series]",
)


@click.group()
def patch() -> None:
    """Fit the patch series to a llama.cpp source tree, apply it, or revert it.

    \b
    Example:
      kvquant patch check --source ~/llama.cpp
    """


@patch.command()
@source_option
@patches_option
@only_option
def check(source: Path, patches: Path | None, only: tuple[str, ...]) -> None:
    """Show where every edit goes, or which one does not fit and why.

    Changes nothing. Exits with 3 if an edit does not fit, and shows its purpose and what changed around
    its place since the last tree that fits. A patched tree is checked in its original state.

    \b
    Example:
      kvquant patch check --source ~/llama.cpp
    """
    root, plan, explainer = _examine(source, patches, only)
    for outcome in plan.outcomes:
        click.echo("\n".join(explainer.outcome_lines(plan.series, outcome)))
    if plan.failures:
        where = explainer.range_line()
        raise CheckFailed(
            f"{len(plan.failures)} of {len(plan.outcomes)} edits do not fit {root}"
            + (f"; {where}" if where else "")
            + f"; next: kvquant patch merge --source {root}, kvquant patch issue --source {root}"
        )
    click.echo(f"{len(plan.outcomes)} edits of {len(plan.patches)} patches fit {root}", err=True)


@patch.command()
@source_option
@patches_option
@only_option
def apply(source: Path, patches: Path | None, only: tuple[str, ...]) -> None:
    """Patch the tree, all or nothing. Does nothing if this version of the series is already applied.

    A patch that --only leaves out can be added after kvquant patch revert.

    \b
    Example:
      kvquant patch apply --source ~/llama.cpp
    """
    root, series = open_tree(source), _series(patches, only)
    written = apply_series(series, root)
    for path in written:
        click.echo(path)
    done = f"{len(written)} files written" if written else "nothing to do, the series is applied already"
    click.echo(f"{done} (series digest {series.digest[:12]})", err=True)


@patch.command()
@source_option
@click.option("--keep-changed", is_flag=True, help="Leave files alone that changed since.")
def revert(source: Path, keep_changed: bool) -> None:
    """Restore every original byte and mode, and remove the added files.

    Refuses, and touches nothing, if a patched file was changed since; --keep-changed leaves such files
    alone.

    \b
    Example:
      kvquant patch revert --source ~/llama.cpp
    """
    restored = revert_series(open_tree(source), keep_changed=keep_changed)
    for path in restored:
        click.echo(path)
    click.echo(
        f"{len(restored)} files restored" if restored else "nothing to do, no patch is applied", err=True
    )


@patch.command()
@source_option
@patches_option
def status(source: Path, patches: Path | None) -> None:
    """Show which patches are applied, in which version, and which patched files changed since.

    \b
    Example:
      kvquant patch status --source ~/llama.cpp
    """
    root, series = open_tree(source), _series(patches)
    with exclusive(root) as recovered:
        _say_recovered(recovered)
        state = load_state(root)
        changed = changed_files(root, state) if state else ()
        restored = restored_files(root, state) if state else ()
        by_hand = {item.name for item in series.patches if state is None and _is_there(item, root)}
    applied = {item.name: item.digest for item in state.patches} if state else {}
    for item in series.patches:
        if item.name in by_hand:
            word = "applied by other means (git apply?): its files are there, byte for byte"
        elif item.name not in applied:
            word = "not applied"
        else:
            word = "applied" if applied[item.name] == item.digest else "applied in another version"
        click.echo(f"{item.name}: {word}")
    for name in sorted(set(applied) - {item.name for item in series.patches}):
        click.echo(f"{name}: applied, no longer in the series")
    for path in changed:
        click.echo(f"changed since: {path}")
    for path in restored:
        click.echo(f"restored since: {path}")
    if by_hand:
        click.echo(
            "kvquant has no originals of what it did not apply; undo it the way it was applied, "
            "for example with git apply --reverse",
            err=True,
        )


@patch.command()
@source_option
@patches_option
@only_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write one NAME.patch per patch into this folder.  [default: all to standard output]",
)
@click.option(
    "--surroundings",
    is_flag=True,
    help=f"Also write {SURROUNDINGS}, which lets `patch check` show what later trees changed.",
)
def export(
    source: Path, patches: Path | None, only: tuple[str, ...], out: Path | None, surroundings: bool
) -> None:
    """Write the patches as unified diffs for this tree, to be applied in order with git apply.

    With --only the diffs fit the tree without the rest of the series.

    \b
    Example:
      kvquant patch export --source ~/llama.cpp --out diffs/
      kvquant patch export --source ~/llama.cpp --only 0001-kv-layers > kv-layers.patch
    """
    if surroundings and out is None:
        raise UsageError("--surroundings writes into the folder of --out; give one")
    if surroundings and only:
        raise UsageError("--surroundings describes the whole series; leave --only out")
    root, plan, explainer = _examine(source, patches, only)
    if plan.failures:
        raise CheckFailed(
            f"{len(plan.failures)} edits do not fit {root}; see: kvquant patch check --source {root}"
        )
    if surroundings and out is not None:
        known = surroundings_of(plan, explainer.read, explainer.tree or "an unnamed tree")
        write_json(out / SURROUNDINGS, known)
        click.echo(str(out / SURROUNDINGS))
    for item in plan.patches:
        diff = export_patch(item)
        if out is None:
            sys.stdout.buffer.write(diff)
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / f"{item.patch.name}.patch", diff)
            click.echo(str(out / f"{item.patch.name}.patch"))


@patch.command()
@source_option
@patches_option
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="An unpatched tree that the series fits.  [default: the pinned tree, fetched]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Write the diff for this tree here.",
)
def merge(source: Path, patches: Path | None, base: Path | None, out: Path) -> None:
    """For a tree that does not fit: merge with git, and write the whole series as one diff.

    A three-way merge with the tree that fits as its base. Applies nothing: review the diff, then run git
    apply. Exits with 3, and writes no diff, if git finds a conflict.

    \b
    Example:
      kvquant patch merge --source ~/llama.cpp --out merged.patch
    """
    root, plan, explainer = _examine(source, patches)
    if not plan.failures:
        click.echo(f"the series fits {root} as it is; use kvquant patch apply", err=True)
        return
    fitting = open_tree(base) if base else fetch_tree(load_pin(_folder(patches)), say=_say)
    files = merge_plan(plan, explainer.read, plan_tree(plan.series, fitting))
    for file in files:
        click.echo(f"{file.path}: {file.verdict}")
    unknown = [file.path for file in files if file.change is None]
    if unknown:
        raise CheckFailed(
            f"git cannot place the changes of {', '.join(unknown)} with certainty; no diff was written"
        )
    write_atomic(out, merged_diff(files))
    click.echo(f"{out} is for review, not yet applied: git -C {root} apply {out.absolute()}", err=True)


@patch.command()
@source_option
@patches_option
def issue(source: Path, patches: Path | None) -> None:
    """Print an issue about the edits that do not fit, with everything needed to fix them.

    \b
    Example:
      kvquant patch issue --source ~/llama.cpp > issue.md
    """
    root, plan, explainer = _examine(source, patches)
    if not plan.failures:
        click.echo(f"nothing to report: the series fits {root}", err=True)
        return
    click.echo(explainer.issue(plan, VERSION), nl=False)


def _is_there(patch: Patch, root: Path) -> bool:
    """Whether the patch's new files are in a tree that kvquant did not patch."""
    return bool(patch.new_files) and all(read_file(root, new.path) == new.content for new in patch.new_files)


def _folder(patches: Path | None) -> Path:
    return patches_folder() if patches is None else patches


def _series(patches: Path | None, only: tuple[str, ...] = ()) -> Series:
    series = load_series(_folder(patches))
    return series.only(only) if only else series


def _examine(source: Path, patches: Path | None, only: tuple[str, ...] = ()) -> tuple[Path, Plan, Explainer]:
    """The tree, the series against it, and what is known to explain the outcome."""
    root, folder = open_tree(source), _folder(patches)
    series = _series(patches, only)
    with exclusive(root) as recovered:
        _say_recovered(recovered)
        plan = plan_tree(series, root)
    pin = load_pin(folder) if (folder / "PIN").is_file() else None
    tree = tree_tag(root) or tree_commit(root)
    known = load_surroundings(folder)
    return root, plan, Explainer(lambda path: read_pristine(root, path), tree, pin, known)


def _say(line: str) -> None:
    click.echo(line, err=True)


def _say_recovered(recovered: bool) -> None:
    if recovered:
        click.echo("undid an interrupted patch command first", err=True)
