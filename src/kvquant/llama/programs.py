"""Where the programs of `kvquant llama build` are, without building them."""

from __future__ import annotations

from pathlib import Path

from kvquant.llama.build import BuildRequest, default_folder, read_info
from kvquant.llama.fetch import default_dest
from kvquant.llama.patching.recipe import load_series
from kvquant.llama.pin import load_pin
from kvquant.llama.workspace import copy_folder
from kvquant.shipped import patches_folder


def built_programs() -> Path | None:
    """The folder of the programs that `kvquant llama build` has made, without options, from the shipped
    patches; None when it has not, or when the patches have changed since.
    """
    patches = patches_folder()
    series = load_series(patches)
    source = copy_folder(default_dest(load_pin(patches).sdist()), series) / "tree"
    folder = default_folder(BuildRequest(source))
    info = read_info(folder)
    if info is None or info.series_digest != series.digest:
        return None
    return folder / "bin"
