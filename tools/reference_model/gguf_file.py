"""The reference model as a GGUF file for llama.cpp (qwen3, float16 matrices, its own tokenizer), and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader, GGUFWriter, Keys, LlamaFileType, TokenType

from kvquant.errors import ModelFileError
from kvquant.reference.tokenizer import CHAT_TEMPLATE, TOKENIZER_MODEL, escape
from kvquant.reference.vocabulary import END_OF_TEXT, TOKEN_IDS, TOKENS, TURN_END
from reference_model.network import ReferenceConfig, ReferenceModel

ARCHITECTURE = "qwen3"


def export_gguf(model: ReferenceModel, path: Path, *, name: str, description: str) -> None:
    """Write ``model`` to ``path``: matrices as float16, norms as float32, as llama.cpp's converter does."""
    unfinished = path.with_name(f".{path.name}.part")
    writer = GGUFWriter(unfinished, ARCHITECTURE)
    _add_sizes(writer, model.config, name, description)
    _add_tokenizer(writer)
    _add_tensor(writer, "token_embd", model.token_embd)
    _add_tensor(writer, "output_norm", model.output_norm)
    for layer in range(model.config.n_layer):
        for weight, stack in model.layers.items():
            _add_tensor(writer, f"blk.{layer}.{weight}", stack[layer])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def load_gguf(path: Path) -> ReferenceModel:
    """Return the model in ``path``, a file `export_gguf` wrote; its weights are exactly the file's.

    Raises ModelFileError when the file is missing, not GGUF, or some other model.
    """
    try:
        reader = GGUFReader(path)
        tensors = {tensor.name: tensor.data for tensor in reader.tensors}
        config = _config(reader)
        model = ReferenceModel(config)
        with torch.no_grad():
            _take(model.token_embd, tensors["token_embd.weight"])
            _take(model.output_norm, tensors["output_norm.weight"])
            for weight, stack in model.layers.items():
                for layer in range(config.n_layer):
                    _take(stack[layer], tensors[f"blk.{layer}.{weight}.weight"])
    except (OSError, IndexError, KeyError, ValueError, RuntimeError) as error:
        raise ModelFileError(
            f"{path} is not a reference model ({error}); name one that was exported"
        ) from error
    return model


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


def _config(reader: GGUFReader) -> ReferenceConfig:
    """Return the sizes `_add_sizes` wrote; a missing one is a KeyError."""

    def number(key: str) -> Any:
        field = reader.fields[key.format(arch=ARCHITECTURE)]
        return field.contents()

    return ReferenceConfig(
        n_vocab=len(reader.fields[Keys.Tokenizer.LIST].data),
        n_layer=number(Keys.LLM.BLOCK_COUNT),
        n_embd=number(Keys.LLM.EMBEDDING_LENGTH),
        n_head=number(Keys.Attention.HEAD_COUNT),
        n_head_kv=number(Keys.Attention.HEAD_COUNT_KV),
        head_dim=number(Keys.Attention.KEY_LENGTH),
        n_ff=number(Keys.LLM.FEED_FORWARD_LENGTH),
        n_ctx_train=number(Keys.LLM.CONTEXT_LENGTH),
        rope_base=number(Keys.Rope.FREQ_BASE),
        norm_eps=number(Keys.Attention.LAYERNORM_RMS_EPS),
    )


def _add_tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model(TOKENIZER_MODEL)
    writer.add_token_list([escape(token.text) for token in TOKENS])
    writer.add_token_types([TokenType.CONTROL if token.control else TokenType.NORMAL for token in TOKENS])
    writer.add_eos_token_id(TOKEN_IDS[TURN_END.encode()])
    writer.add_eot_token_id(TOKEN_IDS[TURN_END.encode()])
    writer.add_pad_token_id(TOKEN_IDS[END_OF_TEXT.encode()])
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensor(writer: GGUFWriter, name: str, values: torch.Tensor) -> None:
    array = values.detach().numpy()
    kept = array.astype(np.float32 if array.ndim == 1 else np.float16)
    writer.add_tensor(f"{name}.weight", np.ascontiguousarray(kept))


def _take(target: torch.Tensor, values: npt.NDArray[Any]) -> None:
    target.copy_(torch.from_numpy(values.astype(np.float32)))
