#pragma once

// What a code_tile is made of on ARM with the dot product instructions: codes stay bytes, an instruction adds 4 sums of four
// products each, and a number of 16 bits is two of 8.

#include "kv-attn-blocks.h"

#if defined(KV_ATTN_TILE) && defined(KV_ATTN_NEON)

namespace kv_attn {

using tile_code = int8_t;

constexpr int32_t LARGEST_ROUNDED = 127*256; // the upper half has 8 bits too

// The largest magnitude of any lane. A NaN is larger than all else: as integers, magnitudes are in this order.
using magnitudes = uint32x4_t;

inline magnitudes no_magnitudes() { return vdupq_n_u32(0); }

inline magnitudes larger(magnitudes largest, float32x4_t x) {
    return vmaxq_u32(largest, vbicq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x80000000)));
}

inline float largest_lane(magnitudes x) {
    return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(x))), 0);
}

// N numbers of 16 bits, 256*high + low
template <int N>
struct rounded {
    int8_t high[N];
    int8_t low[N];

    // the integers nearest to 16 floats, as numbers i .. i + 15
    void set(int64_t i, const f32x16 & y) {
        const auto narrowed = [](float32x4_t a, float32x4_t b) {
            return vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a)), vqmovn_s32(vcvtnq_s32_f32(b)));
        };
        const int16x8_t a = narrowed(y.v[0], y.v[1]);
        const int16x8_t b = narrowed(y.v[2], y.v[3]);
        vst1q_s8(high + i, vcombine_s8(vrshrn_n_s16(a, 8), vrshrn_n_s16(b, 8)));
        vst1q_s8(low  + i, vcombine_s8(vmovn_s16(a),       vmovn_s16(b)));
    }
};

// 16 sums for each of N rows
template <int N>
struct tile_sums {
    int32x4_t v[N][4];

    f32x16 of_k(int r) const {
        return {{ vcvtq_f32_s32(v[r][0]), vcvtq_f32_s32(v[r][1]), vcvtq_f32_s32(v[r][2]), vcvtq_f32_s32(v[r][3]) }};
    }

    f32x16 of_v(int r) const { return of_k(r); }
};

// where register j of the sums of a part of V belongs among the 32 values
inline int64_t v_place(int64_t part, int64_t j) { return 16*part + 4*j; }

// adds four numbers of each row, lane LANE of a, times b[16][4]
template <int LANE, int N>
inline void add_fours(int32x4_t (&sum)[N][4], const int8x16_t (&a)[N], const tile_code * b) {
    for (int j = 0; j < 4; ++j) {
        const int8x16_t codes = vld1q_s8(b + 16*j);
        for (int r = 0; r < N; ++r) {
            sum[r][j] = vdotq_laneq_s32(sum[r][j], codes, a[r], LANE);
        }
    }
}

// Sum i of row r: the n numbers a + r*a_stride bytes, times the codes b[number / 4][i][number % 4].
template <int N, int M>
inline tile_sums<N> multiply(const rounded<M> * a, int64_t a_stride, const tile_code * b, int64_t n) {
    int32x4_t sum[N][4];
    for (int r = 0; r < N; ++r) {
        for (int j = 0; j < 4; ++j) {
            sum[r][j] = vdupq_n_s32(0);
        }
    }
#if defined(__GNUC__)
    __asm__("" : "+r"(n)); // were n known, GCC would unroll all loops, load all codes at once and run out of registers
#endif
    for (const int8_t * half : { a->high, a->low }) {
        for (int r = 0; r < N; ++r) {
            for (int j = 0; j < 4; ++j) {
                sum[r][j] = vshlq_n_s32(sum[r][j], 8); // of the upper halves, or nothing yet
            }
        }
        for (int64_t i = 0; i < n; i += 16) {
            int8x16_t x[N];
            for (int r = 0; r < N; ++r) {
                x[r] = vld1q_s8(half + r*a_stride + i);
            }
            add_fours<0>(sum, x, b + 16*i);
            add_fours<1>(sum, x, b + 16*i + 64);
            add_fours<2>(sum, x, b + 16*i + 128);
            add_fours<3>(sum, x, b + 16*i + 192);
        }
    }
    tile_sums<N> y;
    for (int r = 0; r < N; ++r) {
        for (int j = 0; j < 4; ++j) {
            y.v[r][j] = sum[r][j];
        }
    }
    return y;
}

// y[i / 4][t][i % 4] = code i of row t; codes(t): 16 codes of one of 16 rows
template <typename F>
inline void take_k(tile_code * y, F && codes) {
    for (int t = 0; t < 16; t += 4) {
        const auto fours = [&](int t) { return vreinterpretq_s32_s8(codes(t)); };
        const int32x4_t a = vzip1q_s32(fours(t), fours(t + 2)), b = vzip2q_s32(fours(t), fours(t + 2));
        const int32x4_t c = vzip1q_s32(fours(t + 1), fours(t + 3)), d = vzip2q_s32(fours(t + 1), fours(t + 3));
        vst1q_s8(y + 4*t,       vreinterpretq_s8_s32(vzip1q_s32(a, c)));
        vst1q_s8(y + 4*t + 64,  vreinterpretq_s8_s32(vzip2q_s32(a, c)));
        vst1q_s8(y + 4*t + 128, vreinterpretq_s8_s32(vzip1q_s32(b, d)));
        vst1q_s8(y + 4*t + 192, vreinterpretq_s8_s32(vzip2q_s32(b, d)));
    }
}

// For part p of two, y[p][t / 4][i][t % 4] = code i of row t; codes(t, p): 16 of 32 codes of one of 16 rows
template <typename F>
inline void take_v(tile_code * y0, tile_code * y1, F && codes) {
    for (int t = 0; t < 16; t += 4) {
        for (int part = 0; part < 2; ++part) {
            tile_code * y = (part == 0 ? y0 : y1) + 16*t;
            const int8x16_t x0 = codes(t, part), x1 = codes(t + 1, part), x2 = codes(t + 2, part), x3 = codes(t + 3, part);
            const int8x16_t a = vzip1q_s8(x0, x2), b = vzip2q_s8(x0, x2);
            const int8x16_t c = vzip1q_s8(x1, x3), d = vzip2q_s8(x1, x3);
            vst1q_s8(y,      vzip1q_s8(a, c));
            vst1q_s8(y + 16, vzip2q_s8(a, c));
            vst1q_s8(y + 32, vzip1q_s8(b, d));
            vst1q_s8(y + 48, vzip2q_s8(b, d));
        }
    }
}

} // namespace kv_attn

#endif
