#pragma once

// 16 signed bytes and their bit fiddling, for AVX2 and later, for NEON, and in plain C++: the codes of cache types.

#include "ggml-cpu-impl.h"

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) && defined(__F16C__) && defined(__FMA__) && (!defined(__AVX512F__) || defined(__AVX512DQ__))
#define KV_ATTN_AVX2
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define KV_ATTN_NEON
#endif

// Products of quantized types in integers, see kv-attn-tile.h; floats are as fast with the vectors of AVX-512.
#if (defined(KV_ATTN_AVX2) && !defined(__AVX512F__)) || (defined(KV_ATTN_NEON) && defined(__ARM_FEATURE_DOTPROD))
#define KV_ATTN_TILE
#endif

namespace kv_attn {

#if defined(KV_ATTN_AVX2)

using i8x16 = __m128i;

inline i8x16 load_i8x16(const void * x)      { return _mm_loadu_si128((const __m128i *) x); }
inline i8x16 low_nibbles(i8x16 x)            { return _mm_and_si128(x, _mm_set1_epi8(0xF)); }
inline i8x16 high_nibbles(i8x16 x)           { return low_nibbles(_mm_srli_epi16(x, 4)); }
inline i8x16 minus(i8x16 x, int8_t y)        { return _mm_sub_epi8(x, _mm_set1_epi8(y)); }
inline i8x16 lookup(i8x16 table, i8x16 x)    { return _mm_shuffle_epi8(table, x); }

// adds 16 to lane i where bit i is set
inline i8x16 plus_fifth_bit(i8x16 x, uint16_t bits) {
    const __m128i which   = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m128i spread  = _mm_shuffle_epi8(_mm_set1_epi16(bits), which);
    const __m128i bit     = _mm_set1_epi64x((int64_t) 0x8040201008040201);
    const __m128i missing = _mm_cmpeq_epi8(_mm_and_si128(spread, bit), _mm_setzero_si128());
    return _mm_or_si128(x, _mm_andnot_si128(missing, _mm_set1_epi8(16)));
}

#elif defined(KV_ATTN_NEON)

using i8x16 = int8x16_t;

inline i8x16 load_i8x16(const void * x)      { return vld1q_s8((const int8_t *) x); }
inline i8x16 low_nibbles(i8x16 x)            { return vandq_s8(x, vdupq_n_s8(0xF)); }
inline i8x16 high_nibbles(i8x16 x)           { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(x), 4)); }
inline i8x16 minus(i8x16 x, int8_t y)        { return vsubq_s8(x, vdupq_n_s8(y)); }
inline i8x16 lookup(i8x16 table, i8x16 x)    { return vqtbl1q_s8(table, vreinterpretq_u8_s8(x)); }

inline i8x16 plus_fifth_bit(i8x16 x, uint16_t bits) {
    static const uint8_t bit[16] = { 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128 };
    const uint8x16_t spread = vcombine_u8(vdup_n_u8((uint8_t) bits), vdup_n_u8((uint8_t) (bits >> 8)));
    const uint8x16_t set    = vandq_u8(vtstq_u8(spread, vld1q_u8(bit)), vdupq_n_u8(16));
    return vorrq_s8(x, vreinterpretq_s8_u8(set));
}

#else

struct i8x16 {
    int8_t x[16];
};

inline i8x16 load_i8x16(const void * x) {
    i8x16 y;
    memcpy(&y, x, sizeof(y));
    return y;
}

template <typename F> i8x16 each_i8(F && f) {
    i8x16 y;
    for (int i = 0; i < 16; ++i) {
        y.x[i] = (int8_t) f(i);
    }
    return y;
}

inline i8x16 low_nibbles(i8x16 x)            { return each_i8([&](int i) { return x.x[i] & 0xF; }); }
inline i8x16 high_nibbles(i8x16 x)           { return each_i8([&](int i) { return (x.x[i] >> 4) & 0xF; }); }
inline i8x16 minus(i8x16 x, int8_t y)        { return each_i8([&](int i) { return x.x[i] - y; }); }
inline i8x16 lookup(i8x16 table, i8x16 x)    { return each_i8([&](int i) { return table.x[x.x[i]]; }); }

inline i8x16 plus_fifth_bit(i8x16 x, uint16_t bits) {
    return each_i8([&](int i) { return x.x[i] + (bits >> i & 1) * 16; });
}

#endif

// Half h of 32 codes: 16 in the low nibbles of bytes, 16 in the high ones
inline i8x16 nibbles(const uint8_t * qs, int h) {
    const i8x16 bytes = load_i8x16(qs);
    return h == 0 ? low_nibbles(bytes) : high_nibbles(bytes);
}

} // namespace kv_attn
