#pragma once

// Types for a KV cache that upstream does not have: blocks of 64 values, rotated before they get here.
// kvquant's docs/formats.md defines the bytes, and its Python reference holds these functions to them.

#include "ggml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// 3.25 bits a value, 64 values behind one scale
typedef struct {
    ggml_fp16_t d;
    uint8_t     qs[16]; // magnitudes, 2 bits each
    uint8_t     qh[8];  // signs
} block_tq3;

// 2.25 bits a value
typedef struct {
    ggml_fp16_t d;
    uint8_t     qs[16]; // sign and magnitude, 2 bits each
} block_tq2;

// 4.5 bits a value: 32 values of 5 bits, 32 of 3
typedef struct {
    ggml_fp16_t d5;
    uint8_t     qs5[16]; // magnitudes, 4 bits each
    uint8_t     qh5[4];  // signs
    ggml_fp16_t d3;
    uint8_t     qs3[8];  // magnitudes, 2 bits each
    uint8_t     qh3[4];  // signs
} block_k5x3;

// 3.5 bits a value: 32 values of 4 bits, 32 of 2
typedef struct {
    ggml_fp16_t d4;
    uint8_t     qs4[16]; // sign and magnitude, 4 bits each
    ggml_fp16_t d2;
    uint8_t     qs2[8];  // sign and magnitude, 2 bits each
} block_k4x2;

// the magnitudes that codes of 2, 3, 4 and 5 bits stand for, each with either sign
#define KV_TYPES_MAGNITUDES_2 3, 10
#define KV_TYPES_MAGNITUDES_3 7, 22, 40, 66
#define KV_TYPES_MAGNITUDES_4 4, 12, 20, 29, 38, 49, 62, 80
#define KV_TYPES_MAGNITUDES_5 3, 9, 14, 20, 26, 32, 38, 44, 51, 58, 66, 75, 84, 96, 108, 127

// whether type is one of these
static inline bool ggml_kv_type_is(enum ggml_type type) {
    return type >= GGML_TYPE_KV_FIRST && type < GGML_TYPE_KV_END;
}

// what ggml has to know of a type
GGML_API const struct ggml_type_traits * ggml_kv_type_traits(enum ggml_type type);

// x: n_rows rows of n_per_row floats, a multiple of 64; returns the bytes written to y
GGML_API size_t ggml_kv_type_quantize(enum ggml_type type, const float * x, void * y, int64_t n_rows, int64_t n_per_row);

#ifdef __cplusplus
}
#endif
