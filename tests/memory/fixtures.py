"""One small random model per architecture, sized so that its sharing, windows and recurrent layers occur.

The window is such that four sequences in one buffer, with a batch of 512, need a sliding-window cache that is
shorter than a context of 12,000 and yet long enough for llama.cpp's rounded sizes to determine every byte.
"""

from __future__ import annotations

from write_random_gguf import RandomModel

_PLAIN = {"n_layer": 3, "n_head": 4, "n_head_kv": 2, "head_dim": 64, "n_ff": 128}
_WINDOWED = {**_PLAIN, "n_layer": 7, "window": 2560}

RANDOM_MODELS: dict[str, RandomModel] = {
    **{
        arch: RandomModel(arch=arch, **_PLAIN)
        for arch in (
            *("arcee", "command-r", "ernie4_5", "exaone", "gemma", "glm4", "granite", "granitemoe"),
            *(
                "internlm2",
                "llama",
                "minicpm",
                "mistral3",
                "mpt",
                "phi3",
                "qwen2",
                "qwen2moe",
                "qwen2vl",
                "qwen3",
                "qwen3moe",
            ),
            *("qwen3vl", "qwen3vlmoe", "seed_oss", "smollm3", "starcoder2"),
        )
    },
    **{
        arch: RandomModel(arch=arch, **_WINDOWED)
        for arch in ("cohere2", "gemma2", "gemma3", "gpt-oss", "llama4", "olmo2")
    },
    "exaone4": RandomModel(
        arch="exaone4", n_layer=64, n_head=2, n_head_kv=1, head_dim=32, n_ff=32, window=2560
    ),
    "gemma3n": RandomModel(arch="gemma3n", n_layer=22, n_head=1, n_head_kv=1, n_ff=64, window=2560),
    "gemma4": RandomModel(
        arch="gemma4", n_layer=8, n_shared_kv=4, window=2560, kv_heads=(2, 2, 2, 1, 2, 2, 2, 1)
    ),
    "glm4moe": RandomModel(arch="glm4moe", n_layer=4, n_nextn=1),
    "lfm2": RandomModel(arch="lfm2", n_layer=9, window=2560),
    "deci": RandomModel(arch="deci", kv_heads=(2, 0, 1, 2)),
    "deepseek2": RandomModel(arch="deepseek2", n_layer=3),
    "qwen35": RandomModel(arch="qwen35", n_layer=9, n_nextn=1),
    "qwen35moe": RandomModel(arch="qwen35moe", n_layer=5, full_every=2),
    "qwen3next": RandomModel(arch="qwen3next", n_layer=5),
    **{
        arch: RandomModel(arch=arch, n_layer=5)
        for arch in ("falcon-h1", "granitehybrid", "jamba", "lfm2moe", "nemotron_h", "nemotron_h_moe")
    },
}
"""Architecture to the model the tests use for it."""
