#pragma once

// Products with the rows of a K or V cache of one type, in the fastest way that this processor has for it. Unless a file
// of its own has that way, the values are converted to floats in registers, straight from the cache, and used for several
// query rows; no float copy of the row goes through memory.

#include "kv-attn-blocks.h"
#include "kv-attn-tile.h"

namespace kv_attn {

// Query rows that share one conversion, as many as there are registers for; AVX2 has 16 of them, the others 32.
constexpr int DOT_ROWS  = EPR == 8 ? 2 : 4;
constexpr int ADD_ROWS  = EPR == 16 ? 8 : EPR == 8 ? 2 : 4;

// Cache rows whose converted values are held at once, so that a query value is loaded once for all of them
constexpr int DOT_HELD = EPR == 16 ? 4 : EPR == 8 ? 1 : 2;

// From this many query rows on, a tile is converted to floats once and multiplied as a matrix; fewer do not repay
// the transposition of the K tile.
constexpr int64_t GEMM_ROWS = 96;

// Value rows between two visits to an output row: few, so that they stay in the first-level cache even when their
// distance is a power of two.
constexpr int64_t ADD_KV = 16;

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

template <typename Block>
struct row_kernels {
    // The values of a row past its whole blocks, padded with zeros; only the float types have such rows.
    static Block last_block(const Block * row, int64_t width) {
        Block block = {};
        memcpy(&block, row + width/BLOCK, width%BLOCK * (sizeof(Block)/BLOCK));
        return block;
    }

    static constexpr int64_t BEST_ROWS = GEMM_ROWS;

    // Turns a query row of n_blocks(width) blocks, padded with zeros, into what dot takes.
    static void prepare(float * q, int64_t width) {
        GGML_UNUSED(q);
        GGML_UNUSED(width);
    }

    // s[r*s_stride + t] = q[r] . k[t] for prepared query rows; writes up to three values past n_kv
    static void dot(const float * q, int64_t n_rows, const char * const * k, int64_t n_kv, int64_t width,
                    float * s, int64_t s_stride, float * /* memory */, const upcoming_rows & next) {
        const int64_t q_stride = n_blocks(width) * BLOCK;
        for (int64_t t0 = 0; t0 < n_kv; t0 += 4) {
            next.prefetch(t0, 4);
            const Block * rows[4];
            for (int64_t t = 0; t < 4; ++t) {
                rows[t] = (const Block *) k[std::min(t0 + t, n_kv - 1)];
            }
            for_row_groups<DOT_ROWS>(0, n_rows, [&](auto n, int64_t row) {
                const float * q_rows = q + row*q_stride;
                float_dots<Block, n> products;
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
                    int64_t width, float * o, float * /* memory */, const upcoming_rows & next) {
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

#if defined(KV_ATTN_TILE)

// The same for quantized types by way of a code_tile
template <typename Block>
struct tile_kernels {
    static constexpr int64_t BEST_ROWS = INT64_MAX;

    static void prepare(float * q, int64_t width) {
        quantize_query(q, width);
    }

    static void dot(const float * q, int64_t n_rows, const char * const * k, int64_t n_kv, int64_t width,
                    float * s, int64_t s_stride, float * memory, const upcoming_rows & next) {
        code_tile<Block> tile(memory, width, n_kv);
#if defined(KV_ATTN_AVX2)
        if (n_rows <= FEW_ROWS) {
            tile.dot_rows(k, next, q, width, n_rows, s, s_stride);
            return;
        }
#endif
        tile.load_k(k, next);
        tile.dot(q, width, n_rows, s, s_stride);
    }

    static void add(const float * p, int64_t p_stride, int64_t n_rows, const char * const * v, int64_t n_kv,
                    int64_t width, float * o, float * memory, const upcoming_rows & next) {
        code_tile<Block> tile(memory, width, n_kv);
        tile.load_v(v, next);
        tile.add(p, p_stride, n_rows, o, width);
    }

    static constexpr decltype(&row_kernels<Block>::to_f32) to_f32 = nullptr; // never that many rows
};

template <typename Block>
using kernels_of = std::conditional_t<is_quantized<Block>, tile_kernels<Block>, row_kernels<Block>>;

#else

template <typename Block>
using kernels_of = row_kernels<Block>;

#endif

// The kernels of one cache type, for use through pointers
struct row_ops {
    int64_t best_rows; // dot and add are fastest for fewer query rows, to_f32 and a product of matrices from these on
    decltype(&row_kernels<float_block<float>>::prepare) prepare;
    decltype(&row_kernels<float_block<float>>::dot)     dot;
    decltype(&row_kernels<float_block<float>>::add)     add;
    decltype(&row_kernels<float_block<float>>::to_f32)  to_f32;
};

template <typename Block>
const row_ops * ops_of() {
    using kernels = kernels_of<Block>;
    static constexpr row_ops ops = { kernels::BEST_ROWS, kernels::prepare, kernels::dot, kernels::add, kernels::to_f32 };
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
