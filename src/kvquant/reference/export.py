"""The reference model as a GGUF file for llama.cpp: qwen3, float16 matrices, tokenizer included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType

from kvquant.reference.model import ReferenceConfig, ReferenceModel
from kvquant.reference.tokenizer import CHAT_TEMPLATE, TOKENIZER_MODEL, escape
from kvquant.reference.vocabulary import END_OF_TEXT, TOKEN_IDS, TOKENS, TURN_END

ARCHITECTURE = "qwen3"


def export_gguf(model: ReferenceModel, path: Path, *, name: str, description: str) -> None:
    """Write ``model`` to ``path``: matrices as float16, norms as float32, as llama.cpp's converter does."""
    writer = GGUFWriter(path, ARCHITECTURE)
    _add_sizes(writer, model.config, name, description)
    _add_tokenizer(writer)
    _add_tensor(writer, "token_embd", model.token_embd.detach().numpy())
    _add_tensor(writer, "output_norm", model.output_norm.detach().numpy())
    for layer in range(model.config.n_layer):
        for weight, stack in model.layers.items():
            _add_tensor(writer, f"blk.{layer}.{weight}", stack[layer].detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: GGUFWriter, config: ReferenceConfig, name: str, description: str) -> None:
    writer.add_name(name)
    writer.add_description(description)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_ctx_train)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_ff)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head_kv)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)


def _add_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model(TOKENIZER_MODEL)
    writer.add_token_list([escape(token.text) for token in TOKENS])
    writer.add_token_types([TokenType.CONTROL if token.control else TokenType.NORMAL for token in TOKENS])
    writer.add_eos_token_id(TOKEN_IDS[TURN_END.encode()])
    writer.add_eot_token_id(TOKEN_IDS[TURN_END.encode()])
    writer.add_pad_token_id(TOKEN_IDS[END_OF_TEXT.encode()])
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensor(writer: GGUFWriter, name: str, values: np.ndarray) -> None:
    kept = values.astype(np.float32 if values.ndim == 1 else np.float16)
    writer.add_tensor(f"{name}.weight", np.ascontiguousarray(kept))
