"""`kvquant router`: which models a llama-server in router mode has, and loading and unloading them."""

from __future__ import annotations

import os

import click

from kvquant.errors import UsageError
from kvquant.llama.router import Router
from kvquant.tables import Table, terminal_width, text


def _router(url: str, variable: str | None) -> Router:
    key = os.environ.get(variable) if variable else None
    if variable and not key:
        raise UsageError(f"--api-key-env: the variable {variable} is not set")
    return Router(url.removesuffix("/v1"), key)


_URL = click.argument("url", metavar="URL")
_KEY = click.option("--api-key-env", metavar="VARIABLE", help="Environment variable with the router's key.")


@click.group("router")
def router() -> None:
    """Control a llama-server in router mode, here or on a board, through its API.

    \b
    Example:
      kvquant router list http://127.0.0.1:8080
      kvquant router load http://127.0.0.1:8080 smollm2-135m
    """


@router.command("list")
@_URL
@_KEY
def list_models(url: str, api_key_env: str | None) -> None:
    """List the router's models and their states.

    \b
    Example:
      kvquant router list http://127.0.0.1:8080
    """
    rows = tuple(
        (model.name, model.state, _settings(model.args)) for model in _router(url, api_key_env).models()
    )
    click.echo(text(Table(("model", "state", "policy and threads"), rows, words=(1, 2)), terminal_width()))


@router.command("load")
@_URL
@click.argument("model")
@_KEY
@click.option(
    "--timeout", default=600.0, show_default=True, metavar="SECONDS", help="Time limit for loading."
)
def load(url: str, model: str, api_key_env: str | None, timeout: float) -> None:
    """Load a model and wait until it answers.

    \b
    Example:
      kvquant router load http://127.0.0.1:8080 smollm2-135m
    """
    _router(url, api_key_env).load(model, timeout)
    click.echo(f"{model}: loaded")


@router.command("unload")
@_URL
@click.argument("model")
@_KEY
def unload(url: str, model: str, api_key_env: str | None) -> None:
    """Unload a model and wait until its memory is free.

    \b
    Example:
      kvquant router unload http://127.0.0.1:8080 smollm2-135m
    """
    _router(url, api_key_env).unload(model)
    click.echo(f"{model}: unloaded")


def _settings(args: tuple[str, ...]) -> str:
    """What of a server's arguments tells it apart."""
    shown = []
    for name in ("--kv-layers", "--threads", "--ctx-size"):
        if name in args[:-1]:
            shown.append(f"{name.removeprefix('--')} {args[args.index(name) + 1]}")
    return ", ".join(shown)
