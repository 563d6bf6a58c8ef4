#pragma once

// Products with the rows of a K or V cache of one type. The values are converted in registers, straight from the
// cache, and used for several query rows; no float copy of the row goes through memory.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#define GGML_COMMON_IMPL_C
#include "ggml-common.h"

#include "kv-attn-simd.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <type_traits>

namespace kv_attn {

constexpr int64_t BLOCK = 32; // rows of floats are padded to whole blocks of so many values

inline int64_t n_blocks(int64_t width) {
    return (width + BLOCK - 1) / BLOCK;
}

inline GGML_F32_VEC broadcast(ggml_half x) {
    return GGML_F32_VEC_SET1(GGML_CPU_FP16_TO_FP32(x));
}

//
// One block of each cache type, in parts of 16 values: part 0 are values 0..15.
// A quantized value is scale * code, or scale * code + m where the type has an offset m.
//

template <typename T>
struct float_block {
    static constexpr int64_t SIZE = BLOCK; // a multiple of BLOCK

    T x[SIZE];
};

// blocks of upstream's types
template <typename T>
struct ggml_block : T {
    static constexpr int64_t SIZE = BLOCK;

    ggml_half scale(int) const { return T::d; } // of a part
};

// Bytes with 16 codes in the low nibbles and 16 in the high ones
inline i8x16 nibbles(const uint8_t * qs, int h) {
    const i8x16 bytes = load_i8x16(qs);
    return h == 0 ? low_nibbles(bytes) : high_nibbles(bytes);
}

// The same with a fifth bit for each code in qh
inline i8x16 nibbles_and_bit(const uint8_t * qs, const uint8_t * qh, int h) {
    uint16_t bits;
    memcpy(&bits, qh + 2*h, sizeof(bits));
    return plus_fifth_bit(nibbles(qs, h), bits);
}

struct q8_0_block : ggml_block<block_q8_0> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return load_i8x16(qs + 16*h); }
};

struct q4_0_block : ggml_block<block_q4_0> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return minus(nibbles(qs, h), 8); }
};

struct q4_1_block : ggml_block<block_q4_1> {
    static constexpr bool HAS_OFFSET = true;
    i8x16 codes(int h) const { return nibbles(qs, h); }
};

struct q5_0_block : ggml_block<block_q5_0> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return minus(nibbles_and_bit(qs, qh, h), 16); }
};

struct q5_1_block : ggml_block<block_q5_1> {
    static constexpr bool HAS_OFFSET = true;
    i8x16 codes(int h) const { return nibbles_and_bit(qs, qh, h); }
};

struct iq4_nl_block : ggml_block<block_iq4_nl> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return lookup(load_i8x16(kvalues_iq4nl), nibbles(qs, h)); }
};

template <typename Block>
constexpr bool is_quantized = true;
template <typename T>
constexpr bool is_quantized<float_block<T>> = false;

template <typename Block>
constexpr int N_PARTS = Block::SIZE / 16;

template <typename Block>
inline f32x16 part_as_f32(const Block & block, int h) {
    if constexpr (!is_quantized<Block>) {
        return load_16(block.x + 16*h);
    } else if constexpr (Block::HAS_OFFSET) {
        return scaled(widen(block.codes(h)), broadcast(block.scale(h)), broadcast(block.m));
    } else {
        return scaled(widen(block.codes(h)), broadcast(block.scale(h)));
    }
}

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

// Query rows that share one conversion, as many as there are registers for; AVX2 has 16 of them, the others 32.
constexpr int DOT_ROWS  = EPR == 8 ? 2 : 4;
constexpr int SDOT_ROWS = 2;
constexpr int ADD_ROWS  = EPR == 16 ? 8 : EPR == 8 ? 2 : 4;

// Cache rows whose converted values are held at once, so that a query value is loaded once for all of them
constexpr int DOT_HELD = EPR == 16 ? 4 : EPR == 8 ? 1 : 2;

// Value rows between two visits to an output row: few, so that they stay in the first-level cache even when their
// distance is a power of two.
constexpr int64_t ADD_KV = 16;

// Cache rows that are wanted soon. The rows of one head lie too far apart for the processor to foresee them.
struct upcoming_rows {
    const char * first;
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

// Dot products of N query rows with four cache rows, all of them in registers
template <typename Block, int N>
struct float_dots {
    GGML_F32_VEC acc[N][4];

    float_dots() {
        for (int r = 0; r < N; ++r) {
            for (int t = 0; t < 4; ++t) {
                acc[r][t] = GGML_F32_VEC_ZERO;
            }
        }
    }

    // acc[r][t] += q[r] . k[t] over n blocks
    void add(const float * GGML_RESTRICT q, int64_t q_stride, const Block * const k[4], int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            for (int h = 0; h < N_PARTS<Block>; ++h) {
                for (int t0 = 0; t0 < 4; t0 += DOT_HELD) {
                    f32x16 x[DOT_HELD];
                    for (int t = 0; t < DOT_HELD; ++t) {
                        x[t] = part_as_f32(k[t0 + t][i], h);
                    }
                    for (int r = 0; r < N; ++r) {
                        const f32x16 y = load_16(q + r*q_stride + i*Block::SIZE + 16*h);
                        for (int t = 0; t < DOT_HELD; ++t) {
                            for (int j = 0; j < N_VEC; ++j) {
                                acc[r][t0 + t] = GGML_F32_VEC_FMA(acc[r][t0 + t], x[t].v[j], y.v[j]);
                            }
                        }
                    }
                }
            }
        }
    }

    void store(float * s, int64_t s_stride) const {
        for (int r = 0; r < N; ++r) {
            store_sums(s + r*s_stride, acc[r]);
        }
    }
};

#if defined(KV_ATTN_SDOT)

// 32 query values as integers of 16 bits, scale * (256*high + low), in the place of the 32 floats. Two integer dot
// products then stand for one of floats, with an error far below that of a query in 8 bits.
struct query_block {
    int8_t high[BLOCK];
    int8_t low[BLOCK];
    float  scale;
    float  sum; // of the 32 values
};

static_assert(sizeof(query_block) <= BLOCK*sizeof(float), "a query block takes the place of its floats");

// Turns a row of floats, padded to whole blocks, into query blocks.
inline void quantize_query(float * q, int64_t width) {
    constexpr float LARGEST = 127*256;
    for (int64_t i = 0; i < n_blocks(width); ++i) {
        const float * x = q + i*BLOCK;
        float amax = 0.0f;
        query_block block = {};
        for (int64_t j = 0; j < BLOCK; ++j) {
            amax = std::max(amax, std::fabs(x[j]));
            block.sum += x[j];
        }
        block.scale = amax / LARGEST;
        const float inverse = block.scale > FLT_MIN ? 1.0f / block.scale : 0.0f;
        for (int64_t j = 0; j < BLOCK; ++j) {
            const int32_t n = (int32_t) lrintf(x[j] * inverse);
            block.high[j] = (int8_t) ((n + 128) >> 8);
            block.low[j]  = (int8_t) (n - 256*block.high[j]);
        }
        memcpy(q + i*BLOCK, &block, sizeof(block));
    }
}

// The same as float_dots with integer products, for queries from quantize_query
template <typename Block, int N>
struct sdot_dots {
    float32x4_t acc[N][4];
    float32x4_t offset[N]; // of the four cache rows

    sdot_dots() {
        for (int r = 0; r < N; ++r) {
            for (int t = 0; t < 4; ++t) {
                acc[r][t] = vdupq_n_f32(0.0f);
            }
            offset[r] = vdupq_n_f32(0.0f);
        }
    }

    void add(const float * q, int64_t q_stride, const Block * const k[4], int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            for (int h = 0; h < N_PARTS<Block>; h += 2) {
                add_query_block(q + i*Block::SIZE + 16*h, q_stride, k, i, h);
            }
        }
    }

    // parts h and h + 1 of block i
    void add_query_block(const float * q, int64_t q_stride, const Block * const k[4], int64_t i, int h) {
        int8x16_t x[4][2];
        for (int t = 0; t < 4; ++t) {
            x[t][0] = k[t][i].codes(h);
            x[t][1] = k[t][i].codes(h + 1);
        }
        const float32x4_t d = widen_f16(k[0][i].scale(h), k[1][i].scale(h), k[2][i].scale(h), k[3][i].scale(h));
        for (int r = 0; r < N; ++r) {
            const query_block * y = (const query_block *) (q + r*q_stride);
            const int8x16_t high[2] = { vld1q_s8(y->high), vld1q_s8(y->high + 16) };
            const int8x16_t low [2] = { vld1q_s8(y->low),  vld1q_s8(y->low  + 16) };
            float32x4_t sum[4];
            for (int t = 0; t < 4; ++t) {
                int32x4_t n = vdotq_s32(vdotq_s32(vdupq_n_s32(0), x[t][0], high[0]), x[t][1], high[1]);
                n = vdotq_s32(vdotq_s32(vshlq_n_s32(n, 8), x[t][0], low[0]), x[t][1], low[1]);
                sum[t] = vcvtq_f32_s32(n);
            }
            const float32x4_t scale = vmulq_n_f32(d, y->scale);
            acc[r][0] = vfmaq_laneq_f32(acc[r][0], sum[0], scale, 0);
            acc[r][1] = vfmaq_laneq_f32(acc[r][1], sum[1], scale, 1);
            acc[r][2] = vfmaq_laneq_f32(acc[r][2], sum[2], scale, 2);
            acc[r][3] = vfmaq_laneq_f32(acc[r][3], sum[3], scale, 3);
            if constexpr (Block::HAS_OFFSET) {
                const float32x4_t m = widen_f16(k[0][i].m, k[1][i].m, k[2][i].m, k[3][i].m);
                offset[r] = vfmaq_n_f32(offset[r], m, y->sum);
            }
        }
    }

    void store(float * s, int64_t s_stride) const {
        for (int r = 0; r < N; ++r) {
            store_sums(s + r*s_stride, acc[r]);
            if constexpr (Block::HAS_OFFSET) {
                vst1q_f32(s + r*s_stride, vaddq_f32(vld1q_f32(s + r*s_stride), offset[r]));
            }
        }
    }
};

#endif // KV_ATTN_SDOT

template <typename Block>
struct row_kernels {
    // The values of a row past its whole blocks, padded with zeros; only the float types have such rows.
    static Block last_block(const Block * row, int64_t width) {
        Block block = {};
        memcpy(&block, row + width/BLOCK, width%BLOCK * (sizeof(Block)/BLOCK));
        return block;
    }

#if defined(KV_ATTN_SDOT)
    static constexpr bool INTEGER_DOT = is_quantized<Block>;
    template <int N>
    using dots = std::conditional_t<INTEGER_DOT, sdot_dots<Block, N>, float_dots<Block, N>>;
#else
    static constexpr bool INTEGER_DOT = false;
    template <int N>
    using dots = float_dots<Block, N>;
#endif

    // Turns a query row of n_blocks(width) blocks, padded with zeros, into what dot takes.
    static void prepare(float * q, int64_t width) {
#if defined(KV_ATTN_SDOT)
        if constexpr (INTEGER_DOT) {
            quantize_query(q, width);
        }
#endif
        GGML_UNUSED(q);
        GGML_UNUSED(width);
    }

    // s[r*s_stride + t] = q[r] . k[t] for prepared query rows; writes up to three values past n_kv
    static void dot(const float * q, int64_t n_rows, const char * const * k, int64_t n_kv, int64_t width,
                    float * s, int64_t s_stride, const upcoming_rows & next) {
        const int64_t q_stride = n_blocks(width) * BLOCK;
        for (int64_t t0 = 0; t0 < n_kv; t0 += 4) {
            next.prefetch(t0, 4);
            const Block * rows[4];
            for (int64_t t = 0; t < 4; ++t) {
                rows[t] = (const Block *) k[std::min(t0 + t, n_kv - 1)];
            }
            for_row_groups<INTEGER_DOT ? SDOT_ROWS : DOT_ROWS>(0, n_rows, [&](auto n, int64_t row) {
                const float * q_rows = q + row*q_stride;
                dots<n> products;
                products.add(q_rows, q_stride, rows, width/Block::SIZE);
                if (!is_quantized<Block> && width % BLOCK != 0) {
                    Block last[4];
                    const Block * lasts[4];
                    for (int t = 0; t < 4; ++t) {
                        last[t]  = last_block(rows[t], width);
                        lasts[t] = &last[t];
                    }
                    products.add(q_rows + width/BLOCK*BLOCK, q_stride, lasts, 1);
                }
                products.store(s + row*s_stride + t0, s_stride);
            });
        }
    }

    // o[r] += sum over t of p[r][t] * v[t], PARTS parts of block i of each, from part FIRST on
    template <int N, int FIRST, int PARTS>
    static inline void add_parts(const float * GGML_RESTRICT p, int64_t p_stride, const Block * const * v,
                                 int64_t n_kv, int64_t i, float * GGML_RESTRICT o, int64_t o_stride) {
        GGML_F32_VEC acc[N][PARTS*N_VEC];
        for (int r = 0; r < N; ++r) {
            for (int j = 0; j < PARTS*N_VEC; ++j) {
                acc[r][j] = GGML_F32_VEC_LOAD(o + r*o_stride + 16*FIRST + j*EPR);
            }
        }
        for (int64_t t = 0; t < n_kv; ++t) {
            f32x16 x[PARTS];
            for (int h = 0; h < PARTS; ++h) {
                x[h] = part_as_f32(v[t][i], FIRST + h);
            }
            for (int r = 0; r < N; ++r) {
                const GGML_F32_VEC weight = GGML_F32_VEC_SET1(p[r*p_stride + t]);
                for (int j = 0; j < PARTS*N_VEC; ++j) {
                    acc[r][j] = GGML_F32_VEC_FMA(acc[r][j], x[j / N_VEC].v[j % N_VEC], weight);
                }
            }
        }
        for (int r = 0; r < N; ++r) {
            for (int j = 0; j < PARTS*N_VEC; ++j) {
                GGML_F32_VEC_STORE(o + r*o_stride + 16*FIRST + j*EPR, acc[r][j]);
            }
        }
    }

    // the same for a whole block, few enough parts at a time that their sums take half of 32 registers
    template <int N, int FIRST = 0>
    static inline void add_block(const float * p, int64_t p_stride, const Block * const * v, int64_t n_kv,
                                 int64_t i, float * o, int64_t o_stride) {
        constexpr int PARTS = 2*N_VEC*N <= 16 ? 2 : 1;
        add_parts<N, FIRST, PARTS>(p, p_stride, v, n_kv, i, o, o_stride);
        if constexpr (FIRST + PARTS < N_PARTS<Block>) {
            add_block<N, FIRST + PARTS>(p, p_stride, v, n_kv, i, o, o_stride);
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
                for (int64_t i = 0; i < width/Block::SIZE; ++i) {
                    add_block<n>(p + row*p_stride + t0, p_stride, rows, n_t, i, o + row*o_stride + i*Block::SIZE, o_stride);
                }
                if (width % BLOCK != 0) {
                    Block last[ADD_KV];
                    const Block * lasts[ADD_KV];
                    for (int64_t t = 0; t < n_t; ++t) {
                        last[t]  = last_block(rows[t], width);
                        lasts[t] = &last[t];
                    }
                    add_block<n>(p + row*p_stride + t0, p_stride, lasts, n_t, 0,
                                 o + row*o_stride + width/BLOCK*BLOCK, o_stride);
                }
            });
        }
    }

    // y = the row as floats, padded with zeros to whole blocks
    static void to_f32(const char * row, int64_t width, float * y) {
        const Block * x = (const Block *) row;
        for (int64_t i = 0; i < width/Block::SIZE; ++i) {
            block_to_f32(x[i], y + i*Block::SIZE);
        }
        if (width % BLOCK != 0) {
            block_to_f32(last_block(x, width), y + width/BLOCK*BLOCK);
        }
    }

    static void block_to_f32(const Block & x, float * y) {
        for (int h = 0; h < N_PARTS<Block>; ++h) {
            store_16(y + 16*h, part_as_f32(x, h));
        }
    }
};

// The kernels of one cache type, for use through pointers
struct row_ops {
    decltype(&row_kernels<float_block<float>>::prepare) prepare;
    decltype(&row_kernels<float_block<float>>::dot)     dot;
    decltype(&row_kernels<float_block<float>>::add)     add;
    decltype(&row_kernels<float_block<float>>::to_f32)  to_f32;
};

template <typename Block>
const row_ops * ops_of() {
    static constexpr row_ops ops = {
        row_kernels<Block>::prepare, row_kernels<Block>::dot, row_kernels<Block>::add, row_kernels<Block>::to_f32,
    };
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
