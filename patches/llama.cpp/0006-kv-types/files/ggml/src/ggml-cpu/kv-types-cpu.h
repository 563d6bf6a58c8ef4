#pragma once

// Products of the cache types of kv-types.h with queries in blocks of q8_0.

#include "ggml.h"
#include "ggml-cpu.h"

#ifdef __cplusplus
extern "C" {
#endif

// n: a multiple of 64; the signature of ggml_vec_dot_t, one row at a time
void ggml_vec_dot_tq3_q8_0 (int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);
void ggml_vec_dot_tq2_q8_0 (int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);
void ggml_vec_dot_k5x3_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);
void ggml_vec_dot_k4x2_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);

const struct ggml_type_traits_cpu * ggml_kv_type_traits_cpu(enum ggml_type type);

#ifdef __cplusplus
}
#endif
