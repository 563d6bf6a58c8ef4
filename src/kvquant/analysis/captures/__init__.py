"""Captures that ship with the package, to analyse real K, V and Q without a model at hand."""

from __future__ import annotations

from importlib import resources

from kvquant.model.capture import KVCapture, load_capture

REFERENCE_CAPTURE = "reference"
"""A recall prompt of the reference model (docs/reference-model.md), float16, written by
tools/export_reference_model.py."""


def capture_names() -> tuple[str, ...]:
    """Return the names of all shipped captures, sorted."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".npz") for file in files if file.name.endswith(".npz")))


def load_shipped_capture(name: str) -> KVCapture:
    """Return the capture called ``name``, one of `capture_names`."""
    with resources.as_file(resources.files(__name__).joinpath(f"{name}.npz")) as path:
        return load_capture(path)
