#pragma once

#include "ggml.h"

#include <stddef.h>

struct ggml_compute_params;

#ifdef __cplusplus
extern "C" {
#endif

// Flash attention over a K and V cache of any two cache types, each tile of the cache read and converted once
// for all query heads that share its KV head. GGML_KV_ATTN=0 in the environment turns it off.

// true if ggml_kv_attn_forward computes this GGML_OP_FLASH_ATTN_EXT node
bool ggml_kv_attn_supported(const struct ggml_tensor * dst);

// bytes of work buffer that ggml_kv_attn_forward needs
size_t ggml_kv_attn_work_size(const struct ggml_tensor * dst, int n_threads);

void ggml_kv_attn_forward(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
