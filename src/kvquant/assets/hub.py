"""Files of Hugging Face repositories, through huggingface_hub as it is configured here (extra ``hf``)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from kvquant.assets.registry import HubFile
from kvquant.errors import AssetError, UsageError

PREFIX = "hf:"
_REFERENCE = re.compile(
    r"hf:(?P<repository>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^/\s]+))?/(?P<file>\S+\.gguf)"
)


def parse_reference(text: str) -> HubFile:
    """Return the file that ``hf:OWNER/REPO[@REVISION]/FILE.gguf`` names. Raises UsageError."""
    match = _REFERENCE.fullmatch(text)
    if match is None or ".." in match["file"].split("/"):
        raise UsageError(f"{text!r} does not name a file of a repository; write hf:OWNER/REPO/FILE.gguf")
    return HubFile(match["repository"], match["revision"] or "main", match["file"])


def download_from_hub(wanted: HubFile, folder: Path | None = None) -> Path:
    """Return the path of a repository's file, downloaded into ``folder``, or into the hub client's own cache.

    The client takes token, endpoint and cache from its own settings (HF_TOKEN, HF_ENDPOINT, HF_HOME), tries
    again when a connection breaks, and begins anew after a kill. Raises AssetError, one line, when it is not
    installed or cannot give the file.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise AssetError(
            "files on Hugging Face need huggingface_hub; run: pip install 'kvquant-llama[hf]'"
        ) from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        path = hf_hub_download(wanted.repository, wanted.file, revision=wanted.revision, local_dir=folder)
    # Its own errors, those of its HTTP client and of the disk have no common class below Exception.
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise AssetError(
            f"cannot get {wanted.file} of {wanted.repository} at {wanted.revision}: {first_line}"
        ) from error
    return Path(path)
