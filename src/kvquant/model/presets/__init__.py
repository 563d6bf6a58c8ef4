"""Shapes that ship with the package, one JSON file each, with the source of its numbers inside."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from kvquant.errors import ShapeError
from kvquant.model.shape import ModelShape
from kvquant.model.shape_json import shape_from_json

MAX_FILE_BYTES = 2**20


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def load_preset(name: str) -> ModelShape:
    """Return the preset called ``name``. Raises ShapeError naming the known ones."""
    if name not in preset_names():
        raise ShapeError(f"unknown shape {name!r}; known: {', '.join(preset_names())}, or a .json file")
    return shape_from_json(resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8"), name)


def load_shape(name_or_path: str) -> ModelShape:
    """Return a preset by its name, or the shape in a JSON file. Raises ShapeError."""
    if name_or_path in preset_names():
        return load_preset(name_or_path)
    path = Path(name_or_path)
    try:
        if not path.is_file():
            return load_preset(name_or_path)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ShapeError(f"{path} is larger than {MAX_FILE_BYTES} bytes; a shape is a small JSON file")
        return shape_from_json(path.read_text("utf-8"), path.name)
    except (OSError, ValueError) as error:
        raise ShapeError(f"{path} cannot be read as a shape: {error}") from None
