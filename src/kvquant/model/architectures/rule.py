"""What an architecture rule is."""

from __future__ import annotations

from collections.abc import Callable

from kvquant.model.hparams import Hparams, Keys

Rule = Callable[[Keys, Hparams], Hparams]
"""From the common hparams to the architecture's own, reading further keys: llama.cpp's load_arch_hparams."""
