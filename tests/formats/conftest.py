"""One Torch thread per worker: the tests already run on all cores, and waiting at barriers costs more."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
