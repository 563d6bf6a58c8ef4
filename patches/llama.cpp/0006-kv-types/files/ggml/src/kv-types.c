#include "kv-types.h"

#include "kv-types-blocks.h"

static_assert(sizeof(block_tq3)  == 2 + 16 + 8,                 "wrong tq3 block size");
static_assert(sizeof(block_tq2)  == 2 + 16,                     "wrong tq2 block size");
static_assert(sizeof(block_k5x3) == (2 + 16 + 4) + (2 + 8 + 4), "wrong k5x3 block size");
static_assert(sizeof(block_k4x2) == (2 + 16) + (2 + 8),         "wrong k4x2 block size");

static void quantize_row_tq3_ref (const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_TQ3,  x, y, k); }
static void quantize_row_tq2_ref (const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_TQ2,  x, y, k); }
static void quantize_row_k5x3_ref(const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_K5X3, x, y, k); }
static void quantize_row_k4x2_ref(const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_K4X2, x, y, k); }

static void dequantize_row_tq3 (const void * x, float * y, int64_t k) { kv_types_dequantize_row(&KV_TYPES_TQ3,  x, y, k); }
static void dequantize_row_tq2 (const void * x, float * y, int64_t k) { kv_types_dequantize_row(&KV_TYPES_TQ2,  x, y, k); }
static void dequantize_row_k5x3(const void * x, float * y, int64_t k) { kv_types_dequantize_row(&KV_TYPES_K5X3, x, y, k); }
static void dequantize_row_k4x2(const void * x, float * y, int64_t k) { kv_types_dequantize_row(&KV_TYPES_K4X2, x, y, k); }

// in the order of their numbers
static const struct ggml_type_traits TRAITS[] = {
    { "tq3",  KV_TYPES_BLOCK, 0, sizeof(block_tq3),  true, dequantize_row_tq3,  quantize_row_tq3_ref  },
    { "tq2",  KV_TYPES_BLOCK, 0, sizeof(block_tq2),  true, dequantize_row_tq2,  quantize_row_tq2_ref  },
    { "k5x3", KV_TYPES_BLOCK, 0, sizeof(block_k5x3), true, dequantize_row_k5x3, quantize_row_k5x3_ref },
    { "k4x2", KV_TYPES_BLOCK, 0, sizeof(block_k4x2), true, dequantize_row_k4x2, quantize_row_k4x2_ref },
};

const struct ggml_type_traits * ggml_kv_type_traits(enum ggml_type type) {
    return &TRAITS[type - GGML_TYPE_KV_FIRST];
}

size_t ggml_kv_type_quantize(enum ggml_type type, const float * x, void * y, int64_t n_rows, int64_t n_per_row) {
    const struct ggml_type_traits * traits = ggml_kv_type_traits(type);
    traits->from_float_ref(x, y, n_rows*n_per_row);
    return n_rows*n_per_row/traits->blck_size*traits->type_size;
}
