"""Multi-head latent attention: one K row per token that holds the latent, of which V is a part."""

from __future__ import annotations

from dataclasses import replace

from kvquant.model.hparams import Hparams, Keys, Rule


def deepseek2(keys: Keys, hparams: Hparams) -> Hparams:
    """MLA when the file gives both MLA head dims (llama_hparams::is_mla); older files store full K and V."""
    lengths = (keys.u32("attention.key_length_mla", 0), keys.u32("attention.value_length_mla", 0))
    return replace(hparams, mla=all(lengths))


RULES: dict[str, Rule] = {"deepseek2": deepseek2}
