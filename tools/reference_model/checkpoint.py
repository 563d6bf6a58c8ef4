"""Training state in one NPZ file without pickles: named arrays, and one JSON text for everything else."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from kvquant.errors import ModelFileError
from kvquant.files import write_atomic

_META = "meta"


def save_checkpoint(path: Path, arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``arrays`` and ``meta`` (JSON values); a kill leaves the old or the new file."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        allow_pickle=False,
        **{name: array.detach().numpy() for name, array in arrays.items()},
        **{_META: np.frombuffer(json.dumps(dict(meta)).encode(), dtype=np.uint8)},
    )
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the arrays and the meta data of ``path``. Raises ModelFileError when it is not such a file."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            meta = json.loads(file[_META].tobytes())
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != _META}
    except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise ModelFileError(f"{path} is not a training checkpoint ({error}); name another") from error
    return arrays, meta
