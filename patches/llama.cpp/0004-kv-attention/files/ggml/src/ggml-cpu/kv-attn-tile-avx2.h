#pragma once

// What a code_tile is made of on AVX2: codes as 16 bits, and an instruction that adds 8 sums of two products each.

#include "kv-attn-blocks.h"

#if defined(KV_ATTN_TILE) && defined(KV_ATTN_AVX2)

namespace kv_attn {

using tile_code = int16_t;

constexpr int32_t LARGEST_ROUNDED = 32767;

// The largest magnitude of any lane. A NaN is larger than all else: as integers, magnitudes are in this order.
using magnitudes = __m256i;

inline magnitudes no_magnitudes() { return _mm256_setzero_si256(); }

inline magnitudes larger(magnitudes largest, __m256 x) {
    return _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF)));
}

inline float largest_lane(magnitudes x) {
    __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4E));
    y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(y));
}

// N numbers of 16 bits
template <int N>
struct rounded {
    int16_t x[N];

    // x[i..i + 15] = the integers nearest to 16 floats
    void set(int64_t i, const f32x16 & y) {
        const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(y.v[0]), _mm256_cvtps_epi32(y.v[1]));
        _mm256_storeu_si256((__m256i *) (x + i), _mm256_permute4x64_epi64(both, 0xD8));
    }
};

// 16 sums for each of N rows
template <int N>
struct tile_sums {
    __m256i v[N][2];

    f32x16 of_k(int r) const { return {{ _mm256_cvtepi32_ps(v[r][0]), _mm256_cvtepi32_ps(v[r][1]) }}; }

    // in the order that take_v leaves, see v_place
    f32x16 of_v(int r) const {
        const f32x16 x = of_k(r);
        return {{ _mm256_permute2f128_ps(x.v[0], x.v[1], 0x20), _mm256_permute2f128_ps(x.v[0], x.v[1], 0x31) }};
    }
};

// where register j of the sums of a part of V belongs among the 32 values
inline int64_t v_place(int64_t part, int64_t j) { return 16*j + 8*part; }

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

// Sum i of row r: the n numbers a + r*a_stride bytes, times the codes b[number / 2][i][number % 2].
template <int N, int M>
inline tile_sums<N> multiply(const rounded<M> * a, int64_t a_stride, const tile_code * b, int64_t n) {
    __m256i sum[N][2];
    for (int r = 0; r < N; ++r) {
        sum[r][0] = _mm256_setzero_si256();
        sum[r][1] = _mm256_setzero_si256();
    }
#if defined(__GNUC__)
#pragma GCC unroll 2
#endif
    for (int64_t i = 0; i < n; i += 2) {
        const __m256i b0 = load_once(b + 16*i);
        const __m256i b1 = load_once(b + 16*i + 16);
        for (int r = 0; r < N; ++r) {
            int32_t pair;
            memcpy(&pair, (const char *) a + r*a_stride + i*sizeof(int16_t), sizeof(pair));
            const __m256i both = _mm256_set1_epi32(pair);
            sum[r][0] = add_pairs(sum[r][0], both, b0);
            sum[r][1] = add_pairs(sum[r][1], both, b1);
        }
    }
    tile_sums<N> y;
    for (int r = 0; r < N; ++r) {
        y.v[r][0] = sum[r][0];
        y.v[r][1] = sum[r][1];
    }
    return y;
}

// Up to so many query rows are multiplied with cache rows as they lie: fewer do not repay that codes are turned around.
constexpr int64_t FEW_ROWS = 4;

// sum of the lanes of x[0..3], each in two lanes: of the first half of x and of the second
inline __m256i half_sums(const __m256i (&x)[4]) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
}

// Sum i of row r: the 32 numbers a + r*a_stride bytes, times those of 16 rows of codes; codes(i, h): half h of row i.
template <int N, typename F>
inline tile_sums<N> multiply_rows(const rounded<32> * a, int64_t a_stride, F && codes) {
    tile_sums<N> y;
    for (int j = 0; j < 2; ++j) {
        __m256i sum[N][2];
        for (int half = 0; half < 2; ++half) {
            __m256i b[4][2];
            for (int i = 0; i < 4; ++i) {
                for (int h = 0; h < 2; ++h) {
                    b[i][h] = _mm256_cvtepi8_epi16(codes(8*j + 4*half + i, h));
                }
            }
            for (int r = 0; r < N; ++r) {
                const __m256i * x = (const __m256i *) ((const char *) a + r*a_stride);
                const __m256i x0 = _mm256_loadu_si256(x), x1 = _mm256_loadu_si256(x + 1);
                __m256i products[4];
                for (int i = 0; i < 4; ++i) {
                    products[i] = add_pairs(_mm256_madd_epi16(x0, b[i][0]), x1, b[i][1]);
                }
                sum[r][half] = half_sums(products);
            }
        }
        for (int r = 0; r < N; ++r) {
            y.v[r][j] = _mm256_add_epi32(_mm256_permute2x128_si256(sum[r][0], sum[r][1], 0x20),
                                         _mm256_permute2x128_si256(sum[r][0], sum[r][1], 0x31));
        }
    }
    return y;
}

// Bytes 0 to 7 of each half as 16 bits, then bytes 8 to 15. Instructions that widen without unpacking are slower.
inline void store_widened(tile_code * y, __m256i x) {
    _mm256_storeu_si256((__m256i *) y,        _mm256_srai_epi16(_mm256_unpacklo_epi8(x, x), 8));
    _mm256_storeu_si256((__m256i *) (y + 16), _mm256_srai_epi16(_mm256_unpackhi_epi8(x, x), 8));
}

// y[i / 2][t][i % 2] = code i of row t; codes(t): 16 codes of one of 16 rows
template <typename F>
inline void take_k(tile_code * y, F && codes) {
    // widening takes the first four rows of each half of the registers, then the last four
    __m256i x[8];
    for (int i = 0; i < 8; ++i) {
        const int t = i/4*8 + i%4;
        x[i] = _mm256_set_m128i(codes(t + 4), codes(t));
    }
    for (int round = 0; round < 3; ++round) { // pairs of codes by row become rows by pair
        __m256i z[8];
        for (int i = 0; i < 4; ++i) {
            z[2*i]     = _mm256_unpacklo_epi16(x[i], x[i + 4]);
            z[2*i + 1] = _mm256_unpackhi_epi16(x[i], x[i + 4]);
        }
        std::copy(z, z + 8, x);
    }
    for (int i = 0; i < 8; ++i) {
        store_widened(y + 32*i, x[i]);
    }
}

// For part p of two, y[p][t / 2][i][t % 2] = code i of row t, in an order of i that v_place knows; codes(t, h): 16 of 32
// codes of one of 16 rows
template <typename F>
inline void take_v(tile_code * y0, tile_code * y1, F && codes) {
    for (int t = 0; t < 16; t += 2) {
        const __m256i a = _mm256_set_m128i(codes(t,     1), codes(t,     0));
        const __m256i b = _mm256_set_m128i(codes(t + 1, 1), codes(t + 1, 0));
        store_widened(y0 + 16*t, _mm256_unpacklo_epi8(a, b));
        store_widened(y1 + 16*t, _mm256_unpackhi_epi8(a, b));
    }
}

} // namespace kv_attn

#endif
