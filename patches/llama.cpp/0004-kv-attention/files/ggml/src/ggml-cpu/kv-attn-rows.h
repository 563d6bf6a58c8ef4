#pragma once

// Products with the rows of a K or V cache of one type. The values are converted in registers, straight from the
// cache, and used for several query rows; no float copy of the row goes through memory.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#define GGML_COMMON_IMPL_C
#include "ggml-common.h"

#include "kv-attn-simd.h"

#include <algorithm>
#include <type_traits>

namespace kv_attn {

constexpr int64_t BLOCK = 32; // values of one block, for every type

inline int64_t n_blocks(int64_t width) {
    return (width + BLOCK - 1) / BLOCK;
}

inline GGML_F32_VEC broadcast(ggml_half x) {
    return GGML_F32_VEC_SET1(GGML_CPU_FP16_TO_FP32(x));
}

//
// One block of each cache type: its layout, and its values 0..15 (half 0) and 16..31 (half 1) as floats.
//

template <typename T>
struct float_block {
    T x[BLOCK];

    f32x16 half(int h) const { return load_16(x + 16*h); }
};

// Bytes with 16 values in the low nibbles and 16 in the high ones
inline i8x16 nibbles(const uint8_t * qs, int h) {
    const i8x16 bytes = load_i8x16(qs);
    return h == 0 ? low_nibbles(bytes) : high_nibbles(bytes);
}

// The same with a fifth bit per value in qh
inline i8x16 nibbles_and_bit(const uint8_t * qs, const uint8_t * qh, int h) {
    uint16_t bits;
    memcpy(&bits, qh + 2*h, sizeof(bits));
    return plus_fifth_bit(nibbles(qs, h), bits);
}

struct q8_0_block : block_q8_0 {
    f32x16 half(int h) const { return scaled(widen(load_i8x16(qs + 16*h)), broadcast(d)); }
};

struct q4_0_block : block_q4_0 {
    f32x16 half(int h) const { return scaled(widen(minus(nibbles(qs, h), 8)), broadcast(d)); }
};

struct q4_1_block : block_q4_1 {
    f32x16 half(int h) const { return scaled(widen(nibbles(qs, h)), broadcast(d), broadcast(m)); }
};

struct q5_0_block : block_q5_0 {
    f32x16 half(int h) const { return scaled(widen(minus(nibbles_and_bit(qs, qh, h), 16)), broadcast(d)); }
};

struct q5_1_block : block_q5_1 {
    f32x16 half(int h) const { return scaled(widen(nibbles_and_bit(qs, qh, h)), broadcast(d), broadcast(m)); }
};

struct iq4_nl_block : block_iq4_nl {
    f32x16 half(int h) const { return scaled(widen(lookup(load_i8x16(kvalues_iq4nl), nibbles(qs, h))), broadcast(d)); }
};

// Calls f(std::integral_constant<int, n>, first row) for groups of at most N rows, N a power of two.
template <int N, typename F>
void for_row_groups(int64_t row, int64_t n_rows, F && f) {
    for (; row + N <= n_rows; row += N) {
        f(std::integral_constant<int, N>(), row);
    }
    if constexpr (N > 1) {
        for_row_groups<N/2>(row, n_rows, f);
    }
}

// Query rows that share one conversion, as the registers allow
constexpr int DOT_ROWS = EPR == 8 ? 2 : 4;
constexpr int ADD_ROWS = EPR == 16 ? 8 : EPR == 8 ? 2 : 4;

// With four-lane registers, half a block at a time leaves registers for more query rows.
constexpr int ADD_HALVES = N_VEC > 2 ? 1 : 2;

// Value rows between two visits to an output row: few, so that they stay in the first-level cache
// even when their distance is a power of two.
constexpr int64_t ADD_KV = 8;

// Cache rows that are wanted soon. Rows of one head are too far from each other for the processor to foresee.
struct upcoming_rows {
    const char * first;   // nullptr: none
    size_t       stride;  // bytes from row to row
    size_t       n_bytes; // of one row
    int64_t      n_rows;

    // asks for rows t .. t + n - 1
    KV_ATTN_INLINE void prefetch(int64_t t, int64_t n) const {
        for (const int64_t end = std::min(t + n, n_rows); t < end; ++t) {
            for (size_t i = 0; i < n_bytes; i += CACHE_LINE) {
                prefetch_far(first + t*stride + i);
            }
            prefetch_far(first + t*stride + n_bytes - 1);
        }
    }

    static constexpr size_t CACHE_LINE = 64;
};

template <typename Block>
struct row_kernels {
    // acc[r][t] += q[r] . k[t] over n blocks
    template <int N>
    static inline void dot_blocks(GGML_F32_VEC (&acc)[N][4], const float * GGML_RESTRICT q, int64_t q_stride,
                                  const Block * const k[4], int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            for (int t = 0; t < 4; ++t) {
                for (int h = 0; h < 2; ++h) {
                    const f32x16 x = k[t][i].half(h);
                    for (int r = 0; r < N; ++r) {
                        const f32x16 y = load_16(q + r*q_stride + i*BLOCK + 16*h);
                        for (int j = 0; j < N_VEC; ++j) {
                            acc[r][t] = GGML_F32_VEC_FMA(acc[r][t], x.v[j], y.v[j]);
                        }
                    }
                }
            }
        }
    }

    // The values of a row past its whole blocks, padded with zeros; only the float types have such rows.
    static Block last_block(const Block * row, int64_t width) {
        Block block = {};
        memcpy(&block, row + width/BLOCK, width%BLOCK * (sizeof(Block)/BLOCK));
        return block;
    }

    // s[r*s_stride + t] = q[r] . k[t]; q has n_blocks(width) blocks a row, padded with zeros; writes up to three
    // values past n_kv
    static void dot(const float * q, int64_t n_rows, const char * const * k, int64_t n_kv, int64_t width,
                    float * s, int64_t s_stride, const upcoming_rows & next) {
        const int64_t q_stride = n_blocks(width) * BLOCK;
        for (int64_t t0 = 0; t0 < n_kv; t0 += 4) {
            next.prefetch(t0, 4);
            const Block * rows[4];
            for (int64_t t = 0; t < 4; ++t) {
                rows[t] = (const Block *) k[std::min(t0 + t, n_kv - 1)];
            }
            for_row_groups<DOT_ROWS>(0, n_rows, [&](auto n, int64_t row) {
                GGML_F32_VEC acc[n][4];
                for (int r = 0; r < n; ++r) {
                    for (int t = 0; t < 4; ++t) {
                        acc[r][t] = GGML_F32_VEC_ZERO;
                    }
                }
                dot_blocks<n>(acc, q + row*q_stride, q_stride, rows, width/BLOCK);
                if (width % BLOCK != 0) {
                    Block last[4];
                    const Block * lasts[4];
                    for (int t = 0; t < 4; ++t) {
                        last[t]  = last_block(rows[t], width);
                        lasts[t] = &last[t];
                    }
                    dot_blocks<n>(acc, q + row*q_stride + width/BLOCK*BLOCK, q_stride, lasts, 1);
                }
                for (int r = 0; r < n; ++r) {
                    store_sums(s + (row + r)*s_stride + t0, acc[r]);
                }
            });
        }
    }

    // o[r] += sum over t of p[r][t] * v[t], block i of each
    template <int N>
    static inline void add_block(const float * GGML_RESTRICT p, int64_t p_stride, const Block * const * v, int64_t n_kv,
                                 int64_t i, float * GGML_RESTRICT o, int64_t o_stride) {
        for (int h0 = 0; h0 < 2; h0 += ADD_HALVES) {
            f32x16 acc[N][ADD_HALVES];
            for (int r = 0; r < N; ++r) {
                for (int h = 0; h < ADD_HALVES; ++h) {
                    acc[r][h] = load_16(o + r*o_stride + 16*(h0 + h));
                }
            }
            for (int64_t t = 0; t < n_kv; ++t) {
                f32x16 x[ADD_HALVES];
                for (int h = 0; h < ADD_HALVES; ++h) {
                    x[h] = v[t][i].half(h0 + h);
                }
                for (int r = 0; r < N; ++r) {
                    const GGML_F32_VEC weight = GGML_F32_VEC_SET1(p[r*p_stride + t]);
                    for (int h = 0; h < ADD_HALVES; ++h) {
                        for (int j = 0; j < N_VEC; ++j) {
                            acc[r][h].v[j] = GGML_F32_VEC_FMA(acc[r][h].v[j], x[h].v[j], weight);
                        }
                    }
                }
            }
            for (int r = 0; r < N; ++r) {
                for (int h = 0; h < ADD_HALVES; ++h) {
                    store_16(o + r*o_stride + 16*(h0 + h), acc[r][h]);
                }
            }
        }
    }

    // o[r] += sum over t of p[r*p_stride + t] * v[t]; o has n_blocks(width) blocks a row
    static void add(const float * p, int64_t p_stride, int64_t n_rows, const char * const * v, int64_t n_kv,
                    int64_t width, float * o, const upcoming_rows & next) {
        const int64_t o_stride = n_blocks(width) * BLOCK;
        for (int64_t t0 = 0; t0 < n_kv; t0 += ADD_KV) {
            const int64_t n_t = std::min(ADD_KV, n_kv - t0);
            next.prefetch(t0, n_t);
            const Block * const * rows = (const Block * const *) (v + t0);
            for_row_groups<ADD_ROWS>(0, n_rows, [&](auto n, int64_t row) {
                for (int64_t i = 0; i < width/BLOCK; ++i) {
                    add_block<n>(p + row*p_stride + t0, p_stride, rows, n_t, i, o + row*o_stride + i*BLOCK, o_stride);
                }
                if (width % BLOCK != 0) {
                    Block last[ADD_KV];
                    const Block * lasts[ADD_KV];
                    for (int64_t t = 0; t < n_t; ++t) {
                        last[t]  = last_block(rows[t], width);
                        lasts[t] = &last[t];
                    }
                    add_block<n>(p + row*p_stride + t0, p_stride, lasts, n_t, 0, o + row*o_stride + width/BLOCK*BLOCK, o_stride);
                }
            });
        }
    }

    // y = the row as floats, padded with zeros to whole blocks
    static void to_f32(const char * row, int64_t width, float * y) {
        const Block * x = (const Block *) row;
        for (int64_t i = 0; i < n_blocks(width); ++i) {
            const Block b = i < width/BLOCK ? x[i] : last_block(x, width);
            for (int h = 0; h < 2; ++h) {
                store_16(y + i*BLOCK + 16*h, b.half(h));
            }
        }
    }
};

// The kernels of one cache type, for use through pointers
struct row_ops {
    decltype(&row_kernels<float_block<float>>::dot)    dot;
    decltype(&row_kernels<float_block<float>>::add)    add;
    decltype(&row_kernels<float_block<float>>::to_f32) to_f32;
};

template <typename Block>
const row_ops * ops_of() {
    static constexpr row_ops ops = { row_kernels<Block>::dot, row_kernels<Block>::add, row_kernels<Block>::to_f32 };
    return &ops;
}

// nullptr for a type that is no cache type
inline const row_ops * find_row_ops(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:    return ops_of<float_block<float>>();
        case GGML_TYPE_F16:    return ops_of<float_block<ggml_fp16_t>>();
        case GGML_TYPE_BF16:   return ops_of<float_block<ggml_bf16_t>>();
        case GGML_TYPE_Q8_0:   return ops_of<q8_0_block>();
        case GGML_TYPE_Q4_0:   return ops_of<q4_0_block>();
        case GGML_TYPE_Q4_1:   return ops_of<q4_1_block>();
        case GGML_TYPE_Q5_0:   return ops_of<q5_0_block>();
        case GGML_TYPE_Q5_1:   return ops_of<q5_1_block>();
        case GGML_TYPE_IQ4_NL: return ops_of<iq4_nl_block>();
        default:               return nullptr;
    }
}

} // namespace kv_attn
