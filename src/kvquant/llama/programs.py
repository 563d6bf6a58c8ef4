"""Where the programs of `kvquant llama build` are, without building them."""

from __future__ import annotations

from pathlib import Path

from kvquant.cache import checkout_root
from kvquant.llama.build import BuildRequest, default_folder, read_info
from kvquant.llama.fetch import default_dest
from kvquant.llama.patching.recipe import checkout_patches, load_series
from kvquant.llama.pin import load_pin
from kvquant.llama.workspace import copy_folder


def built_programs() -> Path | None:
    """The folder of the programs that `kvquant llama build` has made, without options, from this clone's
    patches; None when it has not, when the patches have changed since, or without a clone.
    """
    if checkout_root() is None:
        return None
    patches = checkout_patches()
    series = load_series(patches)
    source = copy_folder(default_dest(load_pin(patches).sdist()), series) / "tree"
    folder = default_folder(BuildRequest(source))
    info = read_info(folder)
    if info is None or info.series_digest != series.digest:
        return None
    return folder / "bin"
