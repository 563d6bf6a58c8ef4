#pragma once

// The blocks of kv-types.h as sixteen codes at a time, in registers: planes of bits come out in order by shifts and masks,
// a table lookup gives the magnitudes.

#include "kv-attn-bytes.h"
#include "kv-types.h"

#include <cstdint>

namespace kv_attn {

#if defined(KV_ATTN_AVX2)

// n bytes, over and over
inline i8x16 repeated_8(const uint8_t * x) {
    int64_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    return _mm_set1_epi64x(bytes);
}

inline i8x16 repeated_4(const uint8_t * x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    return _mm_set1_epi32(bytes);
}

// the lowest two bits of each byte shifted right by n
inline i8x16 two_bits(i8x16 x, int n) { return _mm_and_si128(_mm_srli_epi16(x, n), _mm_set1_epi8(3)); }

// the same with the upper eight bytes shifted right by two more
inline i8x16 two_bits_by_half(i8x16 x, int n) { return two_bits(_mm_blend_epi32(x, _mm_srli_epi16(x, 2), 0xC), n); }

// the numbers of bits, each below 8 - n, as bytes with bit number + n set
inline i8x16 bits_at(i8x16 first, int n) { return _mm_slli_epi16(first, n); }

// x negated where which has a bit in common with bits
inline i8x16 negated(i8x16 x, i8x16 bits, i8x16 which) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return _mm_mask_sub_epi8(x, _mm_test_epi8_mask(bits, which), _mm_setzero_si128(), x);
#else
    const __m128i mask = _mm_cmpeq_epi8(_mm_and_si128(bits, which), which);
    return _mm_sub_epi8(_mm_xor_si128(x, mask), mask);
#endif
}

#elif defined(KV_ATTN_NEON)

inline i8x16 repeated_8(const uint8_t * x) {
    const int8x8_t bytes = vld1_s8((const int8_t *) x);
    return vcombine_s8(bytes, bytes);
}

inline i8x16 repeated_4(const uint8_t * x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
}

// the bytes shifted right, each by its own number
inline i8x16 two_bits_by(i8x16 x, int8x16_t by) {
    return vandq_s8(vreinterpretq_s8_u8(vshlq_u8(vreinterpretq_u8_s8(x), vnegq_s8(by))), vdupq_n_s8(3));
}

inline i8x16 two_bits(i8x16 x, int n)         { return two_bits_by(x, vdupq_n_s8((int8_t) n)); }
inline i8x16 two_bits_by_half(i8x16 x, int n) {
    return two_bits_by(x, vcombine_s8(vdup_n_s8((int8_t) n), vdup_n_s8((int8_t) (n + 2))));
}

inline i8x16 bits_at(i8x16 first, int n) { return vshlq_s8(first, vdupq_n_s8((int8_t) n)); }

inline i8x16 negated(i8x16 x, i8x16 bits, i8x16 which) {
    const int8x16_t mask = vreinterpretq_s8_u8(vtstq_s8(bits, which));
    return vsubq_s8(veorq_s8(x, mask), mask);
}

#else

inline i8x16 repeated_8(const uint8_t * x)    { return each_i8([&](int i) { return x[i % 8]; }); }
inline i8x16 repeated_4(const uint8_t * x)    { return each_i8([&](int i) { return x[i % 4]; }); }
inline i8x16 two_bits(i8x16 x, int n)         { return each_i8([&](int i) { return (uint8_t) x.x[i] >> n & 3; }); }
inline i8x16 two_bits_by_half(i8x16 x, int n) { return each_i8([&](int i) { return (uint8_t) x.x[i] >> (n + i/8*2) & 3; }); }
inline i8x16 bits_at(i8x16 first, int n)      { return each_i8([&](int i) { return first.x[i] << n; }); }

inline i8x16 negated(i8x16 x, i8x16 bits, i8x16 which) {
    return each_i8([&](int i) { return bits.x[i] & which.x[i] ? -x.x[i] : x.x[i]; });
}

#endif

// what codes stand for; x past their number is 0
struct code_table {
    int8_t x[16];
};

// n magnitudes and then their negatives, as codes that have their sign in the highest bit
template <typename... T>
constexpr code_table with_negatives(T... x) {
    return {{ (int8_t) x..., (int8_t) -x... }};
}

constexpr code_table LEVELS_2     = with_negatives(KV_TYPES_MAGNITUDES_2);
constexpr code_table MAGNITUDES_3 = {{ KV_TYPES_MAGNITUDES_3 }};
constexpr code_table LEVELS_4     = with_negatives(KV_TYPES_MAGNITUDES_4);
constexpr code_table MAGNITUDES_5 = {{ KV_TYPES_MAGNITUDES_5 }};

// which bit is the sign of each of sixteen codes: of signs in eight bytes, in four
static const uint8_t SIGNS_IN_8[16] = { 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2 };
static const uint8_t SIGNS_IN_4[16] = { 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8 };

inline i8x16 levels(const code_table & table, i8x16 places) {
    return lookup(load_i8x16(table.x), places);
}

// 64 values in four parts of 16
struct coded_block {
    static constexpr int64_t SIZE       = 64;
    static constexpr bool    HAS_OFFSET = false;
};

struct tq3_block : block_tq3, coded_block {
    i8x16 codes(int h) const {
        return negated(levels(MAGNITUDES_3, two_bits(load_i8x16(qs), 2*h)), repeated_8(qh), bits_at(load_i8x16(SIGNS_IN_8), 2*h));
    }
    ggml_fp16_t scale(int) const { return d; }
};

struct tq2_block : block_tq2, coded_block {
    i8x16 codes(int h) const { return levels(LEVELS_2, two_bits(load_i8x16(qs), 2*h)); }
    ggml_fp16_t scale(int) const { return d; }
};

struct k5x3_block : block_k5x3, coded_block {
    i8x16 codes(int h) const {
        return h < 2 ? negated(levels(MAGNITUDES_5, nibbles(qs5, h)),                          repeated_4(qh5), signs(h))
                     : negated(levels(MAGNITUDES_3, two_bits_by_half(repeated_8(qs3), 4*h - 8)), repeated_4(qh3), signs(h - 2));
    }
    ggml_fp16_t scale(int h) const { return h < 2 ? d5 : d3; }

  private:
    static i8x16 signs(int h) { return bits_at(load_i8x16(SIGNS_IN_4), 4*h); }
};

struct k4x2_block : block_k4x2, coded_block {
    i8x16 codes(int h) const {
        return h < 2 ? levels(LEVELS_4, nibbles(qs4, h)) : levels(LEVELS_2, two_bits_by_half(repeated_8(qs2), 4*h - 8));
    }
    ggml_fp16_t scale(int h) const { return h < 2 ? d4 : d2; }
};

} // namespace kv_attn
