"""`kvquant formats`: every format with its size and the definition of its bytes."""

from __future__ import annotations

import json
from typing import Any

import click

from kvquant.cli.options import json_option
from kvquant.formats.base import BlockFormat, Format
from kvquant.formats.ggml import PlainFormat
from kvquant.formats.registry import CACHE_TYPES, UPSTREAM_TYPES, format_names, get_format


@click.command()
@click.option("--head-dim", default=128, show_default=True, metavar="N", help="Values of one head vector.")
@json_option
def formats(head_dim: int, as_json: bool) -> None:
    """List the formats: bits per value, values and bytes of a block, and the source that defines them.

    * marks the cache types of llama.cpp, + those that patched builds add; the others are for analysis. The
    tq_ formats pack a whole head vector, so their sizes depend on --head-dim. k5x3 and k4x2 need a transform
    that orders the dimensions of keys.

    \b
    Example:
      kvquant formats
      kvquant formats --head-dim 256 --json
    """
    rows = [describe(get_format(name), head_dim) for name in format_names()]
    if as_json:
        click.echo(json.dumps({"head_dim": head_dim, "formats": rows}, indent=2))
        return
    click.echo(f"  {'name':<13} {'bits per value':>14}  {'block':>18}  source")
    for row in rows:
        mark = "*" if row["name"] in UPSTREAM_TYPES else "+" if row["cache_type"] else " "
        block = f"{row['block_size']} in {row['block_bytes']} bytes"
        click.echo(f"{mark} {row['name']:<13} {row['bits_per_value']:>14g}  {block:>18}  {row['source']}")


def describe(fmt: Format, head_dim: int) -> dict[str, Any]:
    """Return one format's entry. block_size: values that are packed together; block_bytes: what they become.

    Only a format that takes a head as one block depends on ``head_dim``; it raises FormatError for a bad one.
    """
    if isinstance(fmt, BlockFormat):
        block_size, block_bytes = fmt.block_size, fmt.block_bytes
    elif isinstance(fmt, PlainFormat):
        block_size, block_bytes = 1, fmt.value_bytes
    else:
        block_size, block_bytes = head_dim, fmt.n_bytes(head_dim)
    return {
        "name": fmt.name,
        "bits_per_value": fmt.bits_per_value(block_size),
        "block_size": block_size,
        "block_bytes": block_bytes,
        "cache_type": fmt.name in CACHE_TYPES,
        "source": fmt.source,
    }
