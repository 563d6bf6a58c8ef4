#pragma once

// Products of query rows with a tile of quantized cache rows in integers, for AVX2: codes have 8 bits, queries and weights
// 16, sums 32. An instruction then makes 16 products, twice as many as of floats, and each code is converted once for all
// query rows.
//
// A tile is laid out so that 16 sums lie side by side, and so do the pairs of codes that an instruction adds to each:
//   K: sums of 16 cache rows, pairs of neighbouring values    [t / 16][unit][pair of values][t % 16][2]
//   V: sums of 16 values, pairs of neighbouring cache rows    [unit][i / 8 % 2][pair of rows][i % 8 / 4][i / 16][i % 4][2]
// where a unit is 32 values, which have one scale, and i one of its values, in the order that two unpackings leave.

#include "kv-attn-blocks.h"

#if defined(KV_ATTN_INT16)

#include <cfloat>

namespace kv_attn {

constexpr int64_t SUMS = 16;

constexpr int INT16_ROWS = 4; // query rows that are multiplied with the same codes at once

// 32 query values as integers times a scale, in the place of the 32 floats
struct query_block {
    int16_t x[BLOCK];
    float   scale;
    float   sum; // of the 32 values
};

static_assert(sizeof(query_block) <= BLOCK*sizeof(float), "a query block takes the place of its floats");

// The largest magnitude of any lane. A NaN is larger than all else: as integers, magnitudes are in this order.
inline __m256i larger(__m256i largest, __m256 x) {
    return _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF)));
}

inline float largest_lane(__m256i x) {
    __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(y));
}

inline float sum_of_lanes(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

// y = the integers nearest to n floats, n a multiple of 16, over the scale that it returns; largest: of their magnitudes. If
// that is a NaN, so is the scale.
inline float round_to_int16(const float * x, int64_t n, float largest, int16_t * y) {
    const __m256 inverse = _mm256_set1_ps(largest > 32767*FLT_MIN ? 32767.0f / largest : 0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        const __m256i low  = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i),     inverse));
        const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), inverse));
        const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
        _mm256_storeu_si256((__m256i *) (y + i), both);
    }
    return largest * (1.0f/32767.0f);
}

// Turns a row of floats, padded to whole blocks, into query blocks.
inline void quantize_query(float * q, int64_t width) {
    for (int64_t i = 0; i < n_blocks(width); ++i) {
        const float * x = q + i*BLOCK;
        __m256i largest = _mm256_setzero_si256();
        __m256  sum     = _mm256_setzero_ps();
        for (int64_t j = 0; j < BLOCK; j += 8) {
            largest = larger(largest, _mm256_loadu_ps(x + j));
            sum     = _mm256_add_ps(sum, _mm256_loadu_ps(x + j));
        }
        query_block block;
        block.scale = round_to_int16(x, BLOCK, largest_lane(largest), block.x);
        block.sum   = sum_of_lanes(sum);
        memcpy(q + i*BLOCK, &block, sizeof(block));
    }
}

// sum[lane] + a[0]*b[2*lane] + a[1]*b[2*lane + 1]
inline __m256i add_pairs(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVXVNNI__)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

// Loads a register's worth that several instructions use. Left alone, GCC makes a memory operand of each use, and the loop
// waits for its loads.
inline __m256i load_once(const int16_t * x) {
    __m256i y = _mm256_loadu_si256((const __m256i *) x);
#if defined(__GNUC__)
    __asm__("" : "+x"(y));
#endif
    return y;
}

// 16 sums for each of N query rows
template <int N>
struct int32_sums {
    __m256i v[N][2];
};

// sum[r][lane] = the products of n pairs of factors, a[r*a_stride][pair][2] and b[pair][lane][2]
template <int N>
inline int32_sums<N> multiply_pairs(const int16_t * a, int64_t a_stride, const int16_t * b, int64_t n) {
    __m256i sum[N][2];
    for (int r = 0; r < N; ++r) {
        sum[r][0] = _mm256_setzero_si256();
        sum[r][1] = _mm256_setzero_si256();
    }
#if defined(__GNUC__)
#pragma GCC unroll 2
#endif
    for (int64_t i = 0; i < n; ++i) {
        const __m256i b0 = load_once(b + i*2*SUMS);
        const __m256i b1 = load_once(b + i*2*SUMS + SUMS);
        for (int r = 0; r < N; ++r) {
            int32_t pair;
            memcpy(&pair, a + r*a_stride + 2*i, sizeof(pair));
            const __m256i both = _mm256_set1_epi32(pair);
            sum[r][0] = add_pairs(sum[r][0], both, b0);
            sum[r][1] = add_pairs(sum[r][1], both, b1);
        }
    }
    int32_sums<N> y;
    for (int r = 0; r < N; ++r) {
        y.v[r][0] = sum[r][0];
        y.v[r][1] = sum[r][1];
    }
    return y;
}

// Bytes 0 to 7 of each half as integers of 16 bits, then bytes 8 to 15. Instructions that widen without unpacking are slower.
inline void store_widened(int16_t * low, int16_t * high, __m256i x) {
    _mm256_storeu_si256((__m256i *) low,  _mm256_srai_epi16(_mm256_unpacklo_epi8(x, x), 8));
    _mm256_storeu_si256((__m256i *) high, _mm256_srai_epi16(_mm256_unpackhi_epi8(x, x), 8));
}

// x[row][pair][2] becomes x[pair][row][2] in each half, of eight rows with eight pairs of bytes
inline void transpose_pairs(__m256i (&x)[8]) {
    for (int round = 0; round < 3; ++round) {
        __m256i y[8];
        for (int i = 0; i < 4; ++i) {
            y[2*i]     = _mm256_unpacklo_epi16(x[i], x[i + 4]);
            y[2*i + 1] = _mm256_unpackhi_epi16(x[i], x[i + 4]);
        }
        std::copy(y, y + 8, x);
    }
}

// Up to TILE_KV cache rows of one side, in memory of the caller
template <typename Block>
class int16_tile {
  public:
    int16_tile(float * memory, int64_t width, int64_t n_rows)
        : n_units(width / BLOCK), n_rows(n_rows), n_padded((n_rows + SUMS - 1) / SUMS * SUMS), scales(memory),
          offsets(scales + n_units*TILE_KV), codes((int16_t *) (offsets + n_units*TILE_KV)) {}

    void load_k(const char * const * rows, const upcoming_rows & next) {
        for_sixteens(rows, next, [&](int64_t t0, const Block * const (&row)[SUMS]) {
            for (int64_t u = 0; u < n_units; ++u) {
                for (int64_t half = 0; half < 2; ++half) {
                    // widening takes the first four rows of each half of the registers, then the last four
                    __m256i x[8];
                    for (int64_t i = 0; i < 8; ++i) {
                        const int64_t t = i/4*8 + i%4;
                        x[i] = _mm256_set_m128i(codes_of(row[t + 4], u, half), codes_of(row[t], u, half));
                    }
                    transpose_pairs(x);
                    int16_t * pairs = k_pairs(t0, u) + half*SUMS*BLOCK/2;
                    for (int64_t i = 0; i < 8; ++i) {
                        store_widened(pairs + i*2*SUMS, pairs + i*2*SUMS + SUMS, x[i]);
                    }
                }
            }
        });
    }

    void load_v(const char * const * rows, const upcoming_rows & next) {
        for_sixteens(rows, next, [&](int64_t t0, const Block * const (&row)[SUMS]) {
            for (int64_t u = 0; u < n_units; ++u) {
                for (int64_t t = 0; t < SUMS; t += 2) {
                    const __m256i x = _mm256_set_m128i(codes_of(row[t],     u, 1), codes_of(row[t],     u, 0));
                    const __m256i y = _mm256_set_m128i(codes_of(row[t + 1], u, 1), codes_of(row[t + 1], u, 0));
                    int16_t * first  = v_pairs(u, 0) + (t0 + t)*SUMS;
                    int16_t * second = v_pairs(u, 1) + (t0 + t)*SUMS;
                    store_widened(first,  first  + SUMS, _mm256_unpacklo_epi8(x, y));
                    store_widened(second, second + SUMS, _mm256_unpackhi_epi8(x, y));
                }
            }
        });
    }

    // s[r*s_stride + t] = q[r] . k[t], for query rows from quantize_query; writes whole sixteens of t
    void dot(const float * q, int64_t q_stride, int64_t n, float * s, int64_t s_stride) const {
        for_row_groups<INT16_ROWS>(0, n, [&](auto n, int64_t r0) {
            for (int64_t t = 0; t < n_padded; t += SUMS) {
                for (int64_t u = 0; u < n_units; ++u) {
                    add_unit<n>(q + r0*q_stride + u*BLOCK, q_stride, t, u, s + r0*s_stride + t, s_stride);
                }
            }
        });
    }

    // o[r] += sum over t of p[r*p_stride + t] * v[t]; p is 0 past the last row
    void add(const float * p, int64_t p_stride, int64_t n, float * o, int64_t o_stride) const {
        for (int64_t u = 0; u < n_units; ++u) {
            for_row_groups<INT16_ROWS>(0, n, [&](auto n, int64_t r0) {
                add_rows<n>(p + r0*p_stride, p_stride, u, o + r0*o_stride + u*BLOCK, o_stride);
            });
            if constexpr (Block::HAS_OFFSET) {
                for (int64_t r = 0; r < n; ++r) {
                    add_offsets(p + r*p_stride, u, o + r*o_stride + u*BLOCK);
                }
            }
        }
    }

  private:
    int64_t   n_units;
    int64_t   n_rows;
    int64_t   n_padded; // to whole sixteens
    float   * scales;   // [unit][t]
    float   * offsets;  // the same
    int16_t * codes;

    // half of a unit
    static i8x16 codes_of(const Block * row, int64_t u, int64_t half) {
        return row[u*BLOCK / Block::SIZE].codes(u*BLOCK % Block::SIZE / 16 + half);
    }

    // Scales and offsets of cache rows t .. t + 15, gathered so that one instruction widens eight of them
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

    int16_t * k_pairs(int64_t t, int64_t u)    const { return codes + (t/SUMS*n_units + u) * SUMS*BLOCK; }
    int16_t * v_pairs(int64_t u, int64_t part) const { return codes + (2*u + part) * SUMS*TILE_KV; }

    // s[r][i] += q[r] . k[t + i] of one unit; unit 0 is the first. The sums are not held in registers: those of the integers
    // take half of them.
    template <int N>
    void add_unit(const float * q, int64_t q_stride, int64_t t, int64_t u, float * s, int64_t s_stride) const {
        const query_block * block[N];
        for (int r = 0; r < N; ++r) {
            block[r] = (const query_block *) (q + r*q_stride);
        }
        const auto products = multiply_pairs<N>(block[0]->x, 2*q_stride, k_pairs(t, u), BLOCK/2);
        for (int j = 0; j < 2; ++j) {
            const __m256 scale = _mm256_loadu_ps(scales + u*TILE_KV + t + 8*j);
            for (int r = 0; r < N; ++r) {
                float      * y    = s + r*s_stride + 8*j;
                const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(block[r]->scale));
                __m256 sum = u == 0 ? _mm256_setzero_ps() : _mm256_loadu_ps(y);
                sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products.v[r][j]), both, sum);
                if constexpr (Block::HAS_OFFSET) {
                    const __m256 offset = _mm256_loadu_ps(offsets + u*TILE_KV + t + 8*j);
                    sum = _mm256_fmadd_ps(offset, _mm256_set1_ps(block[r]->sum), sum);
                }
                _mm256_storeu_ps(y, sum);
            }
        }
    }

    // o[r] += sum over t of p[r][t] * v[t], one unit of each, but for the offsets
    template <int N>
    void add_rows(const float * p, int64_t p_stride, int64_t u, float * o, int64_t o_stride) const {
        int16_t weights[N][TILE_KV];
        __m256  scale[N];
        for (int r = 0; r < N; ++r) {
            float   scaled[TILE_KV];
            __m256i largest = _mm256_setzero_si256();
            for (int64_t t = 0; t < n_padded; t += 8) {
                const __m256 weight = _mm256_loadu_ps(p + r*p_stride + t);
                const __m256 x      = _mm256_mul_ps(weight, _mm256_loadu_ps(scales + u*TILE_KV + t));
                _mm256_storeu_ps(scaled + t, x);
                largest = larger(largest, x);
            }
            scale[r] = _mm256_set1_ps(round_to_int16(scaled, n_padded, largest_lane(largest), weights[r]));
        }
        for (int64_t part = 0; part < 2; ++part) {
            const auto products = multiply_pairs<N>(weights[0], TILE_KV, v_pairs(u, part), n_padded/2);
            for (int r = 0; r < N; ++r) {
                const __m256 low  = _mm256_cvtepi32_ps(products.v[r][0]);
                const __m256 high = _mm256_cvtepi32_ps(products.v[r][1]);
                add_to(o + r*o_stride + 8*part,      _mm256_permute2f128_ps(low, high, 0x20), scale[r]);
                add_to(o + r*o_stride + 8*part + 16, _mm256_permute2f128_ps(low, high, 0x31), scale[r]);
            }
        }
    }

    static void add_to(float * y, __m256 x, __m256 scale) {
        _mm256_storeu_ps(y, _mm256_fmadd_ps(x, scale, _mm256_loadu_ps(y)));
    }

    // o += sum over t of p[t] * offset[t], the same for all values of a unit
    void add_offsets(const float * p, int64_t u, float * o) const {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t t = 0; t < n_padded; t += 8) {
            sum = _mm256_fmadd_ps(_mm256_loadu_ps(p + t), _mm256_loadu_ps(offsets + u*TILE_KV + t), sum);
        }
        const __m256 offset = _mm256_set1_ps(sum_of_lanes(sum));
        for (int64_t i = 0; i < BLOCK; i += 8) {
            _mm256_storeu_ps(o + i, _mm256_add_ps(_mm256_loadu_ps(o + i), offset));
        }
    }
};

} // namespace kv_attn

#endif // KV_ATTN_INT16
