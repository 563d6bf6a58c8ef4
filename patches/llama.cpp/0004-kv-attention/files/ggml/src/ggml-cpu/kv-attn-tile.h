#pragma once

// Products of query rows with a tile of quantized cache rows in integers: codes have 8 bits, queries and weights 16, sums 32.
// An instruction then makes more products than one of floats, and each code is unpacked once for all query rows. The parts
// that depend on the processor are in kv-attn-tile-avx2.h and kv-attn-tile-neon.h.
//
// A tile is laid out so that 16 sums lie side by side, and so do the codes that one instruction adds to each of them:
//   K: sums of 16 cache rows, of codes of neighbouring values    [t / 16][unit][value / n][t % 16][value % n]
//   V: sums of 16 values, of codes of neighbouring cache rows    [unit][part][t / n][16 values][t % n]
// where a unit is 32 values, which have one scale, and n is what an instruction adds to a sum.

#include "kv-attn-tile-avx2.h"
#include "kv-attn-tile-neon.h"

#if defined(KV_ATTN_TILE)

#include <cfloat>

namespace kv_attn {

constexpr int64_t SUMS = 16;

constexpr int TILE_ROWS = 4; // query rows that are multiplied with the same codes at once

// 32 query values as integers times a scale, in the place of the 32 floats
struct query_block {
    rounded<BLOCK> x;
    float          scale;
    float          sum; // of the 32 values
};

static_assert(sizeof(query_block) <= BLOCK*sizeof(float), "a query block takes the place of its floats");

// y = n floats, a multiple of 16, as integers times the scale that it returns; largest: of their magnitudes. If that is not
// a number, neither is the scale.
template <int N>
inline float round_to(rounded<N> & y, const float * x, int64_t n, float largest) {
    const float        inverse = largest > LARGEST_ROUNDED*FLT_MIN ? LARGEST_ROUNDED/largest : 0.0f;
    const GGML_F32_VEC factor  = GGML_F32_VEC_SET1(inverse);
    for (int64_t i = 0; i < n; i += 16) {
        y.set(i, scaled(load_16(x + i), factor));
    }
    return largest * (1.0f/LARGEST_ROUNDED);
}

// Turns a row of floats, padded to whole blocks, into query blocks.
inline void quantize_query(float * q, int64_t width) {
    for (int64_t i = 0; i < n_blocks(width); ++i) {
        const float * x = q + i*BLOCK;
        magnitudes   largest = no_magnitudes();
        GGML_F32_VEC sum     = GGML_F32_VEC_ZERO;
        for (int64_t j = 0; j < BLOCK; j += EPR) {
            const GGML_F32_VEC y = GGML_F32_VEC_LOAD(x + j);
            largest = larger(largest, y);
            sum     = GGML_F32_VEC_ADD(sum, y);
        }
        query_block block;
        block.scale = round_to(block.x, x, BLOCK, largest_lane(largest));
        block.sum   = sum_of_lanes(sum);
        memcpy(q + i*BLOCK, &block, sizeof(block));
    }
}

// Up to TILE_KV cache rows of one side, in memory of the caller: TILE_KV*width floats are enough.
template <typename Block>
class code_tile {
  public:
    code_tile(float * memory, int64_t width, int64_t n_rows)
        : n_units(width / BLOCK), n_rows(n_rows), n_padded((n_rows + SUMS - 1) / SUMS * SUMS), scales(memory),
          offsets(scales + n_units*TILE_KV), codes((tile_code *) (offsets + n_units*TILE_KV)) {}

    void load_k(const char * const * rows, const upcoming_rows & next) {
        for_sixteens(rows, next, [&](int64_t t0, const Block * const (&row)[SUMS]) {
            for (int64_t u = 0; u < n_units; ++u) {
                for (int64_t h = 0; h < 2; ++h) {
                    take_k(k_codes(t0, u) + h*SUMS*BLOCK/2, [&](int t) { return codes_of(row[t], u, h); });
                }
            }
        });
    }

    void load_v(const char * const * rows, const upcoming_rows & next) {
        for_sixteens(rows, next, [&](int64_t t0, const Block * const (&row)[SUMS]) {
            for (int64_t u = 0; u < n_units; ++u) {
                take_v(v_codes(u, 0) + t0*SUMS, v_codes(u, 1) + t0*SUMS, [&](int t, int h) { return codes_of(row[t], u, h); });
            }
        });
    }

    // s[r*s_stride + t] = q[r] . k[t], for query rows from quantize_query; writes whole sixteens of t
    void dot(const float * q, int64_t q_stride, int64_t n, float * s, int64_t s_stride) const {
        for_row_groups<TILE_ROWS>(0, n, [&](auto n, int64_t r0) {
            for (int64_t t = 0; t < n_padded; t += SUMS) {
                for (int64_t u = 0; u < n_units; ++u) {
                    const float * block = q + r0*q_stride + u*BLOCK;
                    const auto    sums  = multiply<n>(&((const query_block *) block)->x, q_stride*sizeof(float), k_codes(t, u), BLOCK);
                    add_dots<n>(sums, block, q_stride, t, u, s + r0*s_stride + t, s_stride);
                }
            }
        });
    }

#if defined(KV_ATTN_AVX2)
    // the same straight from the cache rows, without load_k
    void dot_rows(const char * const * rows, const upcoming_rows & next, const float * q, int64_t q_stride, int64_t n, float * s,
                  int64_t s_stride) {
        for_sixteens(rows, next, [&](int64_t t0, const Block * const (&row)[SUMS]) {
            for_row_groups<TILE_ROWS>(0, n, [&](auto n, int64_t r0) {
                for (int64_t u = 0; u < n_units; ++u) {
                    const float * block = q + r0*q_stride + u*BLOCK;
                    const auto    sums  = multiply_rows<n>(&((const query_block *) block)->x, q_stride*sizeof(float),
                                                           [&](int t, int h) { return codes_of(row[t], u, h); });
                    add_dots<n>(sums, block, q_stride, t0, u, s + r0*s_stride + t0, s_stride);
                }
            });
        });
    }
#endif

    // o[r] += sum over t of p[r*p_stride + t] * v[t]; p is 0 past the last row
    void add(const float * p, int64_t p_stride, int64_t n, float * o, int64_t o_stride) const {
        for (int64_t u = 0; u < n_units; ++u) {
            for_row_groups<TILE_ROWS>(0, n, [&](auto n, int64_t r0) {
                add_unit<n>(p + r0*p_stride, p_stride, u, o + r0*o_stride + u*BLOCK, o_stride);
            });
            if constexpr (Block::HAS_OFFSET) {
                for (int64_t r = 0; r < n; ++r) {
                    add_offset(p + r*p_stride, u, o + r*o_stride + u*BLOCK);
                }
            }
        }
    }

  private:
    int64_t     n_units;
    int64_t     n_rows;
    int64_t     n_padded; // to whole sixteens
    float     * scales;   // [unit][t]
    float     * offsets;  // the same
    tile_code * codes;

    tile_code * k_codes(int64_t t, int64_t u)    const { return codes + (t/SUMS*n_units + u) * SUMS*BLOCK; }
    tile_code * v_codes(int64_t u, int64_t part) const { return codes + (2*u + part) * SUMS*TILE_KV; }

    // half h of a unit
    static i8x16 codes_of(const Block * row, int64_t u, int64_t h) {
        return row[u*BLOCK / Block::SIZE].codes(u*BLOCK % Block::SIZE / 16 + h);
    }

    // Calls f(t, rows) for each sixteen of rows; the last row stands in the place of those that are lacking.
    template <typename F>
    void for_sixteens(const char * const * rows, const upcoming_rows & next, F && f) {
        for (int64_t t0 = 0; t0 < n_padded; t0 += SUMS) {
            next.prefetch(t0, SUMS);
            const Block * row[SUMS];
            for (int64_t t = 0; t < SUMS; ++t) {
                row[t] = (const Block *) rows[std::min(t0 + t, n_rows - 1)];
            }
            load_scales(row, t0);
            f(t0, row);
        }
    }

    // Scales and offsets of cache rows t .. t + 15, gathered so that one instruction widens several
    void load_scales(const Block * const (&row)[SUMS], int64_t t) {
        ggml_half gathered[SUMS];
        for (int64_t u = 0; u < n_units; ++u) {
            const int64_t i = u*BLOCK / Block::SIZE;
            for (int64_t j = 0; j < SUMS; ++j) {
                gathered[j] = row[j][i].scale(u*BLOCK % Block::SIZE / 16);
            }
            store_16(scales + u*TILE_KV + t, load_16(gathered));
            if constexpr (Block::HAS_OFFSET) {
                for (int64_t j = 0; j < SUMS; ++j) {
                    gathered[j] = row[j][i].m;
                }
                store_16(offsets + u*TILE_KV + t, load_16(gathered));
            }
        }
    }

    // s[r][i] += q[r] . k[t + i] of one unit, from the sums of integers; unit 0 is the first. These sums are not held in
    // registers: those of the integers take half of them.
    template <int N>
    void add_dots(const tile_sums<N> & sums, const float * q, int64_t q_stride, int64_t t, int64_t u, float * s,
                  int64_t s_stride) const {
        for (int r = 0; r < N; ++r) {
            const query_block * block = (const query_block *) (q + r*q_stride);
            const f32x16        x     = sums.of_k(r);
            const GGML_F32_VEC  scale = GGML_F32_VEC_SET1(block->scale);
            const GGML_F32_VEC  total = GGML_F32_VEC_SET1(block->sum);
            for (int64_t j = 0; j < N_VEC; ++j) {
                float        * y   = s + r*s_stride + j*EPR;
                GGML_F32_VEC   sum = u == 0 ? GGML_F32_VEC_ZERO : GGML_F32_VEC_LOAD(y);
                sum = GGML_F32_VEC_FMA(sum, x.v[j], GGML_F32_VEC_MUL(GGML_F32_VEC_LOAD(scales + u*TILE_KV + t + j*EPR), scale));
                if constexpr (Block::HAS_OFFSET) {
                    sum = GGML_F32_VEC_FMA(sum, GGML_F32_VEC_LOAD(offsets + u*TILE_KV + t + j*EPR), total);
                }
                GGML_F32_VEC_STORE(y, sum);
            }
            GGML_UNUSED(total);
        }
    }

    // o[r] += sum over t of p[r][t] * v[t], one unit of each, but for the offsets. The scale of each cache row is part of its
    // weight.
    template <int N>
    void add_unit(const float * p, int64_t p_stride, int64_t u, float * o, int64_t o_stride) const {
        rounded<TILE_KV> weights[N];
        float            scale[N];
        for (int r = 0; r < N; ++r) {
            float      x[TILE_KV];
            magnitudes largest = no_magnitudes();
            for (int64_t t = 0; t < n_padded; t += EPR) {
                const GGML_F32_VEC y =
                    GGML_F32_VEC_MUL(GGML_F32_VEC_LOAD(p + r*p_stride + t), GGML_F32_VEC_LOAD(scales + u*TILE_KV + t));
                GGML_F32_VEC_STORE(x + t, y);
                largest = larger(largest, y);
            }
            scale[r] = round_to(weights[r], x, n_padded, largest_lane(largest));
        }
        for (int64_t part = 0; part < 2; ++part) {
            const auto sums = multiply<N>(weights, sizeof(weights[0]), v_codes(u, part), n_padded);
            for (int r = 0; r < N; ++r) {
                const f32x16 x = sums.of_v(r);
                for (int64_t j = 0; j < N_VEC; ++j) {
                    float * y = o + r*o_stride + v_place(part, j);
                    GGML_F32_VEC_STORE(y, GGML_F32_VEC_FMA(GGML_F32_VEC_LOAD(y), x.v[j], GGML_F32_VEC_SET1(scale[r])));
                }
            }
        }
    }

    // o += sum over t of p[t] * offset[t], the same for all values of a unit
    void add_offset(const float * p, int64_t u, float * o) const {
        GGML_F32_VEC sum = GGML_F32_VEC_ZERO;
        for (int64_t t = 0; t < n_padded; t += EPR) {
            sum = GGML_F32_VEC_FMA(sum, GGML_F32_VEC_LOAD(p + t), GGML_F32_VEC_LOAD(offsets + u*TILE_KV + t));
        }
        const GGML_F32_VEC offset = GGML_F32_VEC_SET1(sum_of_lanes(sum));
        for (int64_t i = 0; i < BLOCK; i += EPR) {
            GGML_F32_VEC_STORE(o + i, GGML_F32_VEC_ADD(GGML_F32_VEC_LOAD(o + i), offset));
        }
    }
};

} // namespace kv_attn

#endif // KV_ATTN_TILE
