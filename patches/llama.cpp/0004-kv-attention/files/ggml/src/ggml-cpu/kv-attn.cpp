#include "kv-attn.h"

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#define GGML_COMMON_IMPL_C
#include "ggml-common.h"

#include "ggml-cpu.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "simd-gemm.h"
#include "simd-mappings.h"
#include "vec.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#if defined(GGML_SIMD) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)

namespace {

// KV rows per tile: enough to amortise the softmax, few enough that the float tile stays near.
constexpr int64_t TILE_KV = 64;

// With few query rows a tile is converted and used in parts that stay in the first-level cache.
constexpr int64_t SUBTILE_KV = 8;

// From this many query rows on, transposing the K tile for the matrix product pays off.
constexpr int64_t GEMM_ROWS = 12;

// KV rows of one chunk when there are too few query rows to keep the threads busy. All KV heads of a chunk are
// visited one after the other, so its cache lines, which hold every head of a token, are fetched from memory once.
constexpr int64_t CHUNK_KV = 256;

// Bounds the partial results: (query rows) x (chunks) stays below it, unless one chunk alone exceeds it.
constexpr int64_t MAX_PARTIALS = 4096;

constexpr int64_t ALIGN_F32 = 16;

int64_t padded(int64_t n) {
    return (n + ALIGN_F32 - 1) / ALIGN_F32 * ALIGN_F32;
}

//
// cache rows -> float
//

using row_to_f32_t = void (*)(const void * src, float * dst, int64_t n);

void row_f32(const void * src, float * dst, int64_t n) {
    memcpy(dst, src, n * sizeof(float));
}

void row_f16(const void * src, float * dst, int64_t n) {
    ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) src, dst, n);
}

void row_bf16(const void * src, float * dst, int64_t n) {
    const ggml_bf16_t * x = (const ggml_bf16_t *) src;
    uint32_t          * y = (uint32_t *) dst;
    for (int64_t i = 0; i < n; ++i) {
        y[i] = (uint32_t) x[i].bits << 16;
    }
}

void row_q8_0(const void * src, float * dst, int64_t n) {
    const block_q8_0 * GGML_RESTRICT x = (const block_q8_0 *) src;
    float            * GGML_RESTRICT y = dst;
    for (int64_t i = 0; i < n / QK8_0; ++i) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        for (int j = 0; j < QK8_0; ++j) {
            y[i*QK8_0 + j] = d * x[i].qs[j];
        }
    }
}

void row_q4_0(const void * src, float * dst, int64_t n) {
    const block_q4_0 * GGML_RESTRICT x = (const block_q4_0 *) src;
    float            * GGML_RESTRICT y = dst;
    for (int64_t i = 0; i < n / QK4_0; ++i) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        for (int j = 0; j < QK4_0/2; ++j) {
            y[i*QK4_0 + j]           = d * ((x[i].qs[j] & 0xF) - 8);
            y[i*QK4_0 + j + QK4_0/2] = d * ((x[i].qs[j] >>  4) - 8);
        }
    }
}

void row_q4_1(const void * src, float * dst, int64_t n) {
    const block_q4_1 * GGML_RESTRICT x = (const block_q4_1 *) src;
    float            * GGML_RESTRICT y = dst;
    for (int64_t i = 0; i < n / QK4_1; ++i) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        const float m = GGML_CPU_FP16_TO_FP32(x[i].m);
        for (int j = 0; j < QK4_1/2; ++j) {
            y[i*QK4_1 + j]           = d * (x[i].qs[j] & 0xF) + m;
            y[i*QK4_1 + j + QK4_1/2] = d * (x[i].qs[j] >>  4) + m;
        }
    }
}

void row_q5_0(const void * src, float * dst, int64_t n) {
    const block_q5_0 * GGML_RESTRICT x = (const block_q5_0 *) src;
    float            * GGML_RESTRICT y = dst;
    for (int64_t i = 0; i < n / QK5_0; ++i) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        uint32_t qh;
        memcpy(&qh, x[i].qh, sizeof(qh));
        for (int j = 0; j < QK5_0/2; ++j) {
            const int32_t h0 = (qh >>  j      ) & 1;
            const int32_t h1 = (qh >> (j + 16)) & 1;
            y[i*QK5_0 + j]           = d * (((x[i].qs[j] & 0xF) | (h0 << 4)) - 16);
            y[i*QK5_0 + j + QK5_0/2] = d * (((x[i].qs[j] >>  4) | (h1 << 4)) - 16);
        }
    }
}

void row_q5_1(const void * src, float * dst, int64_t n) {
    const block_q5_1 * GGML_RESTRICT x = (const block_q5_1 *) src;
    float            * GGML_RESTRICT y = dst;
    for (int64_t i = 0; i < n / QK5_1; ++i) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        const float m = GGML_CPU_FP16_TO_FP32(x[i].m);
        uint32_t qh;
        memcpy(&qh, x[i].qh, sizeof(qh));
        for (int j = 0; j < QK5_1/2; ++j) {
            const int32_t h0 = (qh >>  j      ) & 1;
            const int32_t h1 = (qh >> (j + 16)) & 1;
            y[i*QK5_1 + j]           = d * ((x[i].qs[j] & 0xF) | (h0 << 4)) + m;
            y[i*QK5_1 + j + QK5_1/2] = d * ((x[i].qs[j] >>  4) | (h1 << 4)) + m;
        }
    }
}

void row_iq4_nl(const void * src, float * dst, int64_t n) {
    const block_iq4_nl * GGML_RESTRICT x = (const block_iq4_nl *) src;
    float              * GGML_RESTRICT y = dst;
    for (int64_t i = 0; i < n / QK4_NL; ++i) {
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        int8_t q[QK4_NL];
#if defined(__SSSE3__)
        const __m128i table  = _mm_loadu_si128((const __m128i *) kvalues_iq4nl);
        const __m128i nibble = _mm_set1_epi8(0xF);
        const __m128i bytes  = _mm_loadu_si128((const __m128i *) x[i].qs);
        _mm_storeu_si128((__m128i *) q,       _mm_shuffle_epi8(table, _mm_and_si128(bytes, nibble)));
        _mm_storeu_si128((__m128i *) (q + 16), _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble)));
#elif defined(__ARM_NEON) && defined(__aarch64__)
        const int8x16_t  table = vld1q_s8(kvalues_iq4nl);
        const uint8x16_t bytes = vld1q_u8(x[i].qs);
        vst1q_s8(q,      vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(0xF))));
        vst1q_s8(q + 16, vqtbl1q_s8(table, vshrq_n_u8(bytes, 4)));
#else
        for (int j = 0; j < QK4_NL/2; ++j) {
            q[j]            = kvalues_iq4nl[x[i].qs[j] & 0xF];
            q[j + QK4_NL/2] = kvalues_iq4nl[x[i].qs[j] >>  4];
        }
#endif
        for (int j = 0; j < QK4_NL; ++j) {
            y[i*QK4_NL + j] = d * q[j];
        }
    }
}

row_to_f32_t row_to_f32(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:    return row_f32;
        case GGML_TYPE_F16:    return row_f16;
        case GGML_TYPE_BF16:   return row_bf16;
        case GGML_TYPE_Q8_0:   return row_q8_0;
        case GGML_TYPE_Q4_0:   return row_q4_0;
        case GGML_TYPE_Q4_1:   return row_q4_1;
        case GGML_TYPE_Q5_0:   return row_q5_0;
        case GGML_TYPE_Q5_1:   return row_q5_1;
        case GGML_TYPE_IQ4_NL: return row_iq4_nl;
        default:               return nullptr;
    }
}

//
// float kernels
//

constexpr int64_t EPR = GGML_F32_EPR;

float sum_lanes(GGML_F32_VEC x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(x);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return vaddvq_f32(x);
#else
    float lanes[EPR];
    GGML_F32_VEC_STORE(lanes, x);
    float sum = 0.0f;
    for (int64_t l = 0; l < EPR; ++l) {
        sum += lanes[l];
    }
    return sum;
#endif
}

// s[r][t] = q[r] . k[t] for N_Q query rows and N_K key rows, each of width n; s has stride TILE_KV
template <int N_Q, int N_K>
void dot_rows(const float * GGML_RESTRICT q, const float * GGML_RESTRICT k, int64_t n, float * GGML_RESTRICT s) {
    GGML_F32_VEC acc[N_Q][N_K];
    for (int r = 0; r < N_Q; ++r) {
        for (int t = 0; t < N_K; ++t) {
            acc[r][t] = GGML_F32_VEC_ZERO;
        }
    }
    int64_t i = 0;
    for (; i + EPR <= n; i += EPR) {
        GGML_F32_VEC kv[N_K];
        for (int t = 0; t < N_K; ++t) {
            kv[t] = GGML_F32_VEC_LOAD(k + t*n + i);
        }
        for (int r = 0; r < N_Q; ++r) {
            const GGML_F32_VEC qv = GGML_F32_VEC_LOAD(q + r*n + i);
            for (int t = 0; t < N_K; ++t) {
                acc[r][t] = GGML_F32_VEC_FMA(acc[r][t], kv[t], qv);
            }
        }
    }
    for (int r = 0; r < N_Q; ++r) {
        for (int t = 0; t < N_K; ++t) {
            float sum = sum_lanes(acc[r][t]);
            for (int64_t j = i; j < n; ++j) {
                sum += q[r*n + j] * k[t*n + j];
            }
            s[r*TILE_KV + t] = sum;
        }
    }
}

// o[r] += sum over t of p[r][t] * v[t] for N_Q query rows and N_V value rows, each of width n; p has stride TILE_KV
template <int N_Q, int N_V>
void add_rows(const float * GGML_RESTRICT p, const float * GGML_RESTRICT v, int64_t n, float * GGML_RESTRICT o) {
    GGML_F32_VEC pv[N_Q][N_V];
    for (int r = 0; r < N_Q; ++r) {
        for (int t = 0; t < N_V; ++t) {
            pv[r][t] = GGML_F32_VEC_SET1(p[r*TILE_KV + t]);
        }
    }
    int64_t i = 0;
    for (; i + EPR <= n; i += EPR) {
        GGML_F32_VEC vv[N_V];
        for (int t = 0; t < N_V; ++t) {
            vv[t] = GGML_F32_VEC_LOAD(v + t*n + i);
        }
        for (int r = 0; r < N_Q; ++r) {
            GGML_F32_VEC ov = GGML_F32_VEC_LOAD(o + r*n + i);
            for (int t = 0; t < N_V; ++t) {
                ov = GGML_F32_VEC_FMA(ov, vv[t], pv[r][t]);
            }
            GGML_F32_VEC_STORE(o + r*n + i, ov);
        }
    }
    for (; i < n; ++i) {
        for (int r = 0; r < N_Q; ++r) {
            for (int t = 0; t < N_V; ++t) {
                o[r*n + i] += p[r*TILE_KV + t] * v[t*n + i];
            }
        }
    }
}

// Calls kernel<N_Q, N_T>(row, t) over all rows and cache rows, in blocks of 2 x 4 and then what is left over.
template <template <int, int> class Kernel, typename... Args>
void for_blocks(int64_t n_rows, int64_t n_t, Args... args) {
    int64_t t = 0;
    for (; t + 4 <= n_t; t += 4) {
        int64_t r = 0;
        for (; r + 2 <= n_rows; r += 2) {
            Kernel<2, 4>::run(r, t, args...);
        }
        for (; r < n_rows; ++r) {
            Kernel<1, 4>::run(r, t, args...);
        }
    }
    for (; t < n_t; ++t) {
        for (int64_t r = 0; r < n_rows; ++r) {
            Kernel<1, 1>::run(r, t, args...);
        }
    }
}

template <int N_Q, int N_K>
struct dot_block {
    static void run(int64_t r, int64_t t, const float * q, const float * k, int64_t n, float * s) {
        dot_rows<N_Q, N_K>(q + r*n, k + t*n, n, s + r*TILE_KV + t);
    }
};

template <int N_Q, int N_V>
struct add_block {
    static void run(int64_t r, int64_t t, const float * p, const float * v, int64_t n, float * o) {
        add_rows<N_Q, N_V>(p + r*TILE_KV + t, v + t*n, n, o + r*n);
    }
};

//
// the plan: how one node is cut into work items. It depends on the shapes alone, so that the result does not depend
// on the number of threads.
//

struct attn_plan {
    int64_t dk, dv;         // widths of a K and a V head
    int64_t n_q, n_kv;      // query tokens, cache rows
    int64_t n_head_kv;
    int64_t n_group;        // query heads per KV head
    int64_t n_stream;
    int64_t n_rows;         // query rows per KV head: n_q * n_group, row = token * n_group + head in group
    int64_t tile_rows;      // query rows of one item, at most
    int64_t n_row_tiles;
    int64_t chunk_kv;
    int64_t n_chunks;

    int64_t n_items() const { return n_stream * n_chunks * n_row_tiles * n_head_kv; }

    int64_t partial_size() const { return padded(2 + dv); } // M, S, O

    int64_t n_partials() const { return n_chunks > 1 ? n_stream * n_head_kv * n_rows * n_chunks : 0; }

    // per thread: Q, O, scores, mask, K tile, V tile, K tile transposed, M and S
    int64_t scratch_size() const {
        return padded(tile_rows * dk) + padded(tile_rows * dv) + tile_rows * TILE_KV + TILE_KV +
               TILE_KV * dk + TILE_KV * dv + TILE_KV * dk + padded(2 * tile_rows);
    }
};

attn_plan make_plan(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];

    attn_plan p;
    p.dk        = k->ne[0];
    p.dv        = v->ne[0];
    p.n_q       = q->ne[1];
    p.n_kv      = k->ne[1];
    p.n_head_kv = k->ne[2];
    p.n_group   = q->ne[2] / k->ne[2];
    p.n_stream  = q->ne[3];
    p.n_rows    = p.n_q * p.n_group;

    // Q and O of one item take half of a 512 KiB second-level cache
    const int64_t fitting = std::max<int64_t>(64, 65536 / (p.dk + p.dv) / 64 * 64);
    p.tile_rows   = std::min(p.n_rows, fitting);
    p.n_row_tiles = (p.n_rows + p.tile_rows - 1) / p.tile_rows;

    const int64_t n_rows_all = p.n_rows * p.n_head_kv * p.n_stream;
    const int64_t max_chunks = std::max<int64_t>(1, MAX_PARTIALS / n_rows_all);
    const int64_t per_chunk  = (p.n_kv + max_chunks - 1) / max_chunks;
    p.chunk_kv = std::max(CHUNK_KV, (per_chunk + TILE_KV - 1) / TILE_KV * TILE_KV);
    p.n_chunks = (p.n_kv + p.chunk_kv - 1) / p.chunk_kv;
    return p;
}

struct attn_inputs {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    row_to_f32_t k_to_f32;
    row_to_f32_t v_to_f32;
    float scale;
    float max_bias;
    float softcap;

    explicit attn_inputs(const ggml_tensor * dst)
        : q(dst->src[0]), k(dst->src[1]), v(dst->src[2]), mask(dst->src[3]), sinks(dst->src[4]),
          k_to_f32(row_to_f32(k->type)), v_to_f32(row_to_f32(v->type)) {
        const float * params = (const float *) dst->op_params;
        scale    = params[0];
        max_bias = params[1];
        softcap  = params[2];
        if (softcap != 0.0f) {
            scale /= softcap;
        }
    }

    // ALiBi slope of a query head
    float slope(int64_t head) const {
        if (max_bias <= 0.0f) {
            return 1.0f;
        }
        const int64_t n_log2 = 1ll << (int64_t) floor(log2((double) q->ne[2]));
        return head < n_log2 ? powf(powf(2.0f, -max_bias / n_log2), head + 1)
                             : powf(powf(2.0f, -max_bias / 2.0f / n_log2), 2*(head - n_log2) + 1);
    }

    const ggml_fp16_t * mask_row(int64_t token, int64_t head, int64_t stream) const {
        return (const ggml_fp16_t *) ((const char *) mask->data + token*mask->nb[1] + (head % mask->ne[2])*mask->nb[2] +
                                      (stream % mask->ne[3])*mask->nb[3]);
    }
};

constexpr ggml_fp16_t F16_NEG_INF = 0xFC00;

bool all_masked(const ggml_fp16_t * mask, int64_t n) {
    int any = 0;
    for (int64_t i = 0; i < n; ++i) {
        any |= mask[i] ^ F16_NEG_INF;
    }
    return any == 0;
}

// Running softmax of one item's query rows: O unnormalised, M the largest score so far, S the sum of exp(score - M).
struct attn_state {
    float * o;
    float * m;
    float * s;
};

// Attention of query rows [row0, row0 + n_rows) of one KV head over cache rows [kv0, kv1).
attn_state attend(const attn_inputs & in, const attn_plan & plan, int64_t stream, int64_t head_kv,
                  int64_t row0, int64_t n_rows, int64_t kv0, int64_t kv1, float * scratch) {
    const int64_t dk = plan.dk;
    const int64_t dv = plan.dv;

    float * q_rows  = scratch;
    float * o_rows  = q_rows  + padded(plan.tile_rows * dk);
    float * scores  = o_rows  + padded(plan.tile_rows * dv);
    float * mask    = scores  + plan.tile_rows * TILE_KV;
    float * k_tile  = mask    + TILE_KV;
    float * v_tile  = k_tile  + TILE_KV * dk;
    float * k_cols  = v_tile  + TILE_KV * dv;
    float * m       = k_cols  + TILE_KV * dk;
    float * s       = m       + plan.tile_rows;

    const bool use_gemm = n_rows >= GEMM_ROWS;

    for (int64_t r = 0; r < n_rows; ++r) {
        const int64_t token = (row0 + r) / plan.n_group;
        const int64_t head  = head_kv * plan.n_group + (row0 + r) % plan.n_group;
        const float * x = (const float *) ((const char *) in.q->data + token*in.q->nb[1] + head*in.q->nb[2] + stream*in.q->nb[3]);
        for (int64_t i = 0; i < dk; ++i) {
            q_rows[r*dk + i] = x[i] * in.scale;
        }
        m[r] = -INFINITY;
        s[r] = 0.0f;
    }
    memset(o_rows, 0, n_rows * dv * sizeof(float));

    const int64_t k_stream = stream / (plan.n_stream / in.k->ne[3]);
    const int64_t v_stream = stream / (plan.n_stream / in.v->ne[3]);
    const char * k_head = (const char *) in.k->data + head_kv*in.k->nb[2] + k_stream*in.k->nb[3];
    const char * v_head = (const char *) in.v->data + head_kv*in.v->nb[2] + v_stream*in.v->nb[3];

    for (int64_t kv = kv0; kv < kv1; kv += TILE_KV) {
        const int64_t n_kv = std::min(TILE_KV, kv1 - kv);

        if (in.mask) {
            bool skip = true;
            const int64_t token1 = (row0 + n_rows - 1) / plan.n_group;
            const int64_t n_mask = std::min(plan.n_group, in.mask->ne[2]);
            for (int64_t token = row0 / plan.n_group; skip && token <= token1; ++token) {
                for (int64_t h = 0; skip && h < n_mask; ++h) {
                    skip = all_masked(in.mask_row(token, head_kv * plan.n_group + h, stream) + kv, n_kv);
                }
            }
            if (skip) {
                continue;
            }
        }

        if (use_gemm) {
            for (int64_t t = 0; t < n_kv; ++t) {
                in.k_to_f32(k_head + (kv + t)*in.k->nb[1], k_tile + t*dk, dk);
            }
            for (int64_t t = 0; t < n_kv; ++t) {
                for (int64_t i = 0; i < dk; ++i) {
                    k_cols[i*TILE_KV + t] = k_tile[t*dk + i];
                }
            }
            for (int64_t t = n_kv; t < TILE_KV; ++t) {
                for (int64_t i = 0; i < dk; ++i) {
                    k_cols[i*TILE_KV + t] = 0.0f;
                }
            }
            memset(scores, 0, n_rows * TILE_KV * sizeof(float));
            simd_gemm(scores, q_rows, k_cols, n_rows, dk, TILE_KV);
        } else {
            for (int64_t t0 = 0; t0 < n_kv; t0 += SUBTILE_KV) {
                const int64_t n = std::min(SUBTILE_KV, n_kv - t0);
                for (int64_t t = 0; t < n; ++t) {
                    in.k_to_f32(k_head + (kv + t0 + t)*in.k->nb[1], k_tile + t*dk, dk);
                }
                for_blocks<dot_block>(n_rows, n, q_rows, k_tile, dk, scores + t0);
            }
        }

        for (int64_t r = 0; r < n_rows; ++r) {
            float * x = scores + r*TILE_KV;
            const int64_t token = (row0 + r) / plan.n_group;
            const int64_t head  = head_kv * plan.n_group + (row0 + r) % plan.n_group;

            if (in.softcap != 0.0f) {
                for (int64_t t = 0; t < n_kv; ++t) {
                    x[t] = in.softcap * tanhf(x[t]);
                }
            }
            if (in.mask) {
                const float slope = in.slope(head);
                ggml_cpu_fp16_to_fp32(in.mask_row(token, head, stream) + kv, mask, n_kv);
                for (int64_t t = 0; t < n_kv; ++t) {
                    x[t] += slope * mask[t];
                }
            }

            float tile_max = -INFINITY;
            ggml_vec_max_f32(n_kv, &tile_max, x);
            if (tile_max == -INFINITY) {
                memset(x, 0, TILE_KV * sizeof(float));
                continue;
            }
            if (tile_max > m[r]) {
                const float shrink = expf(m[r] - tile_max);
                ggml_vec_scale_f32(dv, o_rows + r*dv, shrink);
                s[r] *= shrink;
                m[r]  = tile_max;
            }
            s[r] += ggml_vec_soft_max_f32(n_kv, x, x, m[r]);
        }

        if (use_gemm) {
            for (int64_t t = 0; t < n_kv; ++t) {
                in.v_to_f32(v_head + (kv + t)*in.v->nb[1], v_tile + t*dv, dv);
            }
            // the columns past n_kv hold no weight
            if (n_kv < TILE_KV) {
                memset(v_tile + n_kv*dv, 0, (TILE_KV - n_kv) * dv * sizeof(float));
                for (int64_t r = 0; r < n_rows; ++r) {
                    memset(scores + r*TILE_KV + n_kv, 0, (TILE_KV - n_kv) * sizeof(float));
                }
            }
            simd_gemm(o_rows, scores, v_tile, n_rows, TILE_KV, dv);
        } else {
            for (int64_t t0 = 0; t0 < n_kv; t0 += SUBTILE_KV) {
                const int64_t n = std::min(SUBTILE_KV, n_kv - t0);
                for (int64_t t = 0; t < n; ++t) {
                    in.v_to_f32(v_head + (kv + t0 + t)*in.v->nb[1], v_tile + t*dv, dv);
                }
                for_blocks<add_block>(n_rows, n, scores + t0, v_tile, dv, o_rows);
            }
        }
    }

    return { o_rows, m, s };
}

// Adds the attention sink of a head, normalises one row and writes it where the op's output has it.
void finish_row(const attn_inputs & in, const attn_plan & plan, ggml_tensor * dst, int64_t stream, int64_t head,
                int64_t token, float * o, float m, float s) {
    if (in.sinks) {
        const float sink = ((const float *) in.sinks->data)[head];
        if (sink > m) {
            const float shrink = expf(m - sink);
            ggml_vec_scale_f32(plan.dv, o, shrink);
            s = s*shrink + 1.0f;
        } else {
            s += expf(sink - m);
        }
    }
    ggml_vec_scale_f32(plan.dv, o, s == 0.0f ? 0.0f : 1.0f/s);
    memcpy((char *) dst->data + head*dst->nb[1] + token*dst->nb[2] + stream*dst->nb[3], o, plan.dv * sizeof(float));
}

} // namespace

bool ggml_kv_attn_supported(const ggml_tensor * dst) {
    static const bool enabled = [] {
        const char * value = getenv("GGML_KV_ATTN");
        return value == nullptr || strcmp(value, "0") != 0;
    }();
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    return enabled && q->type == GGML_TYPE_F32 && row_to_f32(k->type) && row_to_f32(v->type) &&
           k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 &&
           q->ne[3] % k->ne[3] == 0 && q->ne[3] % v->ne[3] == 0 && k->ne[1] > 0;
}

size_t ggml_kv_attn_work_size(const ggml_tensor * dst, int n_threads) {
    const attn_plan plan = make_plan(dst);
    return sizeof(float) * (plan.scratch_size() * n_threads + plan.n_partials() * plan.partial_size() + ALIGN_F32);
}

void ggml_kv_attn_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    const attn_inputs in(dst);
    const attn_plan   plan = make_plan(dst);

    float * work     = (float *) params->wdata;
    float * scratch  = work + params->ith * plan.scratch_size();
    float * partials = work + params->nth * plan.scratch_size();

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const int64_t n_items = plan.n_items();
    for (int64_t item = params->ith; item < n_items; item = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        // KV heads innermost: see CHUNK_KV
        const int64_t head_kv  = item % plan.n_head_kv;
        const int64_t row_tile = item / plan.n_head_kv % plan.n_row_tiles;
        const int64_t chunk    = item / plan.n_head_kv / plan.n_row_tiles % plan.n_chunks;
        const int64_t stream   = item / plan.n_head_kv / plan.n_row_tiles / plan.n_chunks;

        const int64_t row0   = row_tile * plan.tile_rows;
        const int64_t n_rows = std::min(plan.tile_rows, plan.n_rows - row0);
        const int64_t kv0    = chunk * plan.chunk_kv;
        const int64_t kv1    = std::min(plan.n_kv, kv0 + plan.chunk_kv);

        const attn_state state = attend(in, plan, stream, head_kv, row0, n_rows, kv0, kv1, scratch);

        for (int64_t r = 0; r < n_rows; ++r) {
            const int64_t row = row0 + r;
            if (plan.n_chunks == 1) {
                finish_row(in, plan, dst, stream, head_kv * plan.n_group + row % plan.n_group, row / plan.n_group,
                           state.o + r*plan.dv, state.m[r], state.s[r]);
            } else {
                float * partial = partials + (((stream * plan.n_head_kv + head_kv) * plan.n_rows + row) * plan.n_chunks + chunk) * plan.partial_size();
                partial[0] = state.m[r];
                partial[1] = state.s[r];
                memcpy(partial + 2, state.o + r*plan.dv, plan.dv * sizeof(float));
            }
        }
    }

    if (plan.n_chunks == 1) {
        return;
    }

    ggml_barrier(params->threadpool);

    const int64_t n_rows_all = plan.n_stream * plan.n_head_kv * plan.n_rows;
    for (int64_t i = params->ith; i < n_rows_all; i += params->nth) {
        const float * partial = partials + i * plan.n_chunks * plan.partial_size();
        float m = -INFINITY;
        for (int64_t c = 0; c < plan.n_chunks; ++c) {
            m = std::max(m, partial[c * plan.partial_size()]);
        }
        float   s = 0.0f;
        float * o = scratch;
        memset(o, 0, plan.dv * sizeof(float));
        for (int64_t c = 0; c < plan.n_chunks; ++c) {
            const float * x = partial + c * plan.partial_size();
            if (x[1] == 0.0f) {
                continue;
            }
            const float shrink = expf(x[0] - m);
            s += shrink * x[1];
            ggml_vec_mad_f32(plan.dv, o, x + 2, shrink);
        }
        const int64_t row     = i % plan.n_rows;
        const int64_t head_kv = i / plan.n_rows % plan.n_head_kv;
        const int64_t stream  = i / plan.n_rows / plan.n_head_kv;
        finish_row(in, plan, dst, stream, head_kv * plan.n_group + row % plan.n_group, row / plan.n_group, o, m, s);
    }
}

#else

bool ggml_kv_attn_supported(const ggml_tensor *) {
    return false;
}

size_t ggml_kv_attn_work_size(const ggml_tensor *, int) {
    return 0;
}

void ggml_kv_attn_forward(const ggml_compute_params *, ggml_tensor *) {
    GGML_ABORT("kv-attn: not built for this processor");
}

#endif
