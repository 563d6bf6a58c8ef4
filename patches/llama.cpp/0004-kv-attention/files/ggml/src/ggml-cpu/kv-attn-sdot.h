#pragma once

// Dot products of few query rows with quantized cache rows in integers of 8 bits, for ARM with the dot product instructions.

#include "kv-attn-blocks.h"

#if defined(KV_ATTN_SDOT)

#include <cfloat>
#include <cmath>

namespace kv_attn {

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

} // namespace kv_attn

#endif // KV_ATTN_SDOT
