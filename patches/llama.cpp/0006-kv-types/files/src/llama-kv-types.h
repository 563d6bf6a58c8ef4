#pragma once

#include "llama.h"

#include <cstdint>

// What the cache types of kv-types.h need of a cache: tq3 and tq2 values that the cache's rotation has mixed, k5x3 and
// k4x2 keys whose dimensions a transform has put in order, each half of a block rotated by itself. Both run on the CPU.

struct llama_kv_layer_transform;

// the cache's rotation goes over what is stored in this type
bool llama_kv_type_is_rotated(ggml_type type);

// Holds one layer of a cache to that.
//   k, v:         the layer's tensors, v may be null
//   rot_k, rot_v: the cache rotates K, and V
//   ordered:      the layer has a transform that orders the dimensions of keys
// throws std::runtime_error that says what is missing
void llama_kv_types_check(uint32_t il, const ggml_tensor * k, const ggml_tensor * v, bool rot_k, bool rot_v, bool ordered);

// Lets a transform that orders rotate keys by halves of blocks, and queries alike, where the layer's type wants it.
//   transform: may be null
void llama_kv_types_rotate_halves(llama_kv_layer_transform * transform, ggml_type type_k);
