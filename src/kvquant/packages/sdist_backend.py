"""A stand-in for a source distribution's build backend, so that pip can download it without running its code.

``pip download`` asks the build backend of an sdist for its metadata, which would install and run that
backend.  pip is given this module under the backend's name instead (see ``download``); it answers with the
sdist's own PKG-INFO. It runs inside pip's process, in the unpacked sdist, and imports nothing of kvquant.
"""

from __future__ import annotations

from email.parser import HeaderParser
from pathlib import Path


def get_requires_for_build_wheel(_config_settings: object = None) -> list[str]:
    """Nothing is needed, since nothing is built."""
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, _config_settings: object = None) -> str:
    """Copy PKG-INFO as the metadata; the name of the folder made for it.

    pip before 24 takes the distribution's name and version from the folder, later ones from the file.
    """
    text = Path("PKG-INFO").read_text(encoding="utf-8")
    fields = HeaderParser().parsestr(text)
    name = f"{fields['Name'].replace('-', '_')}-{fields['Version']}.dist-info"
    folder = Path(metadata_directory, name)
    folder.mkdir()
    (folder / "METADATA").write_text(text, encoding="utf-8")
    return name
