#include "kv-types-cpu.h"
#include "kv-types.h"

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "ggml-cpu-impl.h"
#include "ggml-impl.h"
#include "simd-mappings.h"

#include <assert.h>
#include <string.h>

// 32 values as the integers their codes stand for, in registers, and their product with 32 bytes of a query. The planes
// of a block come out in order by shifts and masks; a table lookup gives the magnitudes. Levels are never 0.

static const uint8_t MAGNITUDES_5[16] = { 3, 9, 14, 20, 26, 32, 38, 44, 51, 58, 66, 75, 84, 96, 108, 127 };
static const uint8_t MAGNITUDES_3[16] = { 7, 22, 40, 66 };
static const int8_t  LEVELS_4[16]     = { 4, 12, 20, 29, 38, 49, 62, 80, -4, -12, -20, -29, -38, -49, -62, -80 };
static const int8_t  LEVELS_2[16]     = { 3, 10, -3, -10 };

#if defined(__AVX2__)

typedef __m256i i8x32;

static inline i8x32 lookup(const void * table, i8x32 places) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) table)), places);
}

// magnitudes with the sign that 0 or 1 in each byte says
static inline i8x32 with_signs(i8x32 magnitudes, i8x32 signs) {
    return _mm256_sign_epi8(magnitudes, _mm256_or_si256(_mm256_sub_epi8(_mm256_setzero_si256(), signs), _mm256_set1_epi8(1)));
}

// 4 bits of 32 values, from 16 bytes
static inline i8x32 plane_4x32(const uint8_t * x) {
    const __m128i low = _mm_loadu_si128((const __m128i *) x);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(low, 4), low), _mm256_set1_epi8(15));
}

// 2 bits of values 32h .. 32h + 31 of 64, from 16 bytes
static inline i8x32 plane_2x64(const uint8_t * x, int h) {
    const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) x));
    const __m256i by    = _mm256_setr_epi64x(4*h, 4*h, 4*h + 2, 4*h + 2);
    return _mm256_and_si256(_mm256_srlv_epi64(bytes, by), _mm256_set1_epi8(3));
}

// 2 bits of 32 values, from 8 bytes
static inline i8x32 plane_2x32(const uint8_t * x) {
    int64_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(bytes), _mm256_setr_epi64x(0, 2, 4, 6)), _mm256_set1_epi8(3));
}

// 1 bit of values 32h .. 32h + 31 of 64, from 8 bytes
static inline i8x32 plane_1x64(const uint8_t * x, int h) {
    int64_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    const __m256i by = _mm256_setr_epi64x(4*h, 4*h + 1, 4*h + 2, 4*h + 3);
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(bytes), by), _mm256_set1_epi8(1));
}

// 1 bit of 32 values, from 4 bytes
static inline i8x32 plane_1x32(const uint8_t * x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof(bytes));
    const __m256i by = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(bytes), by), _mm256_set1_epi8(1));
}

static inline int32_t product(i8x32 levels, const int8_t * y) {
    const __m256i query = _mm256_loadu_si256((const __m256i *) y);
    // |levels| times the query with their signs, which q8_0 keeps within -127 .. 127: pairs stay within 16 bits
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(query, levels));
    const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    const __m128i half  = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
    const __m128i two   = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

typedef int8x16x2_t i8x32;

static inline i8x32 lookup(const void * table, i8x32 places) {
    const int8x16_t entries = vld1q_s8((const int8_t *) table);
    i8x32 y;
    for (int i = 0; i < 2; ++i) {
        y.val[i] = vqtbl1q_s8(entries, vreinterpretq_u8_s8(places.val[i]));
    }
    return y;
}

static inline i8x32 with_signs(i8x32 magnitudes, i8x32 signs) {
    i8x32 y;
    for (int i = 0; i < 2; ++i) {
        const int8x16_t mask = vnegq_s8(signs.val[i]);
        y.val[i] = vsubq_s8(veorq_s8(magnitudes.val[i], mask), mask);
    }
    return y;
}

// the bytes shifted right by 0 .. 7 and masked
static inline int8x16_t shifted(uint8x16_t bytes, int8x16_t by, uint8_t mask) {
    return vreinterpretq_s8_u8(vandq_u8(vshlq_u8(bytes, vnegq_s8(by)), vdupq_n_u8(mask)));
}

static inline i8x32 plane_4x32(const uint8_t * x) {
    const uint8x16_t bytes = vld1q_u8(x);
    return (i8x32) {{ vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)) }};
}

static inline i8x32 plane_2x64(const uint8_t * x, int h) {
    const uint8x16_t bytes = vld1q_u8(x);
    return (i8x32) {{ shifted(bytes, vdupq_n_s8(4*h), 3), shifted(bytes, vdupq_n_s8(4*h + 2), 3) }};
}

static inline uint8x16_t twice_8(const uint8_t * x) {
    const uint8x8_t bytes = vld1_u8(x);
    return vcombine_u8(bytes, bytes);
}

static inline i8x32 plane_2x32(const uint8_t * x) {
    const uint8x16_t bytes = twice_8(x);
    return (i8x32) {{ shifted(bytes, vcombine_s8(vdup_n_s8(0), vdup_n_s8(2)), 3),
                      shifted(bytes, vcombine_s8(vdup_n_s8(4), vdup_n_s8(6)), 3) }};
}

static inline i8x32 plane_1x64(const uint8_t * x, int h) {
    const uint8x16_t bytes = twice_8(x);
    return (i8x32) {{ shifted(bytes, vcombine_s8(vdup_n_s8(4*h),     vdup_n_s8(4*h + 1)), 1),
                      shifted(bytes, vcombine_s8(vdup_n_s8(4*h + 2), vdup_n_s8(4*h + 3)), 1) }};
}

static inline i8x32 plane_1x32(const uint8_t * x) {
    static const int8_t BY[32] = { 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7 };
    uint32_t word;
    memcpy(&word, x, sizeof(word));
    const uint8x16_t bytes = vreinterpretq_u8_u32(vdupq_n_u32(word));
    return (i8x32) {{ shifted(bytes, vld1q_s8(BY), 1), shifted(bytes, vld1q_s8(BY + 16), 1) }};
}

static inline int32_t product(i8x32 levels, const int8_t * y) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int i = 0; i < 2; ++i) {
        sum = ggml_vdotq_s32(sum, levels.val[i], vld1q_s8(y + 16*i));
    }
    return vaddvq_s32(sum);
}

#else

typedef struct { int8_t x[32]; } i8x32;

static inline i8x32 lookup(const void * table, i8x32 places) {
    for (int i = 0; i < 32; ++i) {
        places.x[i] = ((const int8_t *) table)[places.x[i]];
    }
    return places;
}

static inline i8x32 with_signs(i8x32 magnitudes, i8x32 signs) {
    for (int i = 0; i < 32; ++i) {
        magnitudes.x[i] = signs.x[i] ? -magnitudes.x[i] : magnitudes.x[i];
    }
    return magnitudes;
}

// `bits` bits of values first .. first + 31, from m bytes
static inline i8x32 plane(const uint8_t * x, int m, int bits, int first) {
    i8x32 y;
    for (int i = 0; i < 32; ++i) {
        y.x[i] = (x[(first + i) % m] >> (bits * ((first + i) / m))) & ((1 << bits) - 1);
    }
    return y;
}

static inline i8x32 plane_4x32(const uint8_t * x)        { return plane(x, 16, 4, 0);    }
static inline i8x32 plane_2x64(const uint8_t * x, int h) { return plane(x, 16, 2, 32*h); }
static inline i8x32 plane_2x32(const uint8_t * x)        { return plane(x,  8, 2, 0);    }
static inline i8x32 plane_1x64(const uint8_t * x, int h) { return plane(x,  8, 1, 32*h); }
static inline i8x32 plane_1x32(const uint8_t * x)        { return plane(x,  4, 1, 0);    }

static inline int32_t product(i8x32 levels, const int8_t * y) {
    int32_t sum = 0;
    for (int i = 0; i < 32; ++i) {
        sum += levels.x[i] * y[i];
    }
    return sum;
}

#endif

static inline i8x32 levels_tq3(const block_tq3 * x, int h) {
    return with_signs(lookup(MAGNITUDES_3, plane_2x64(x->qs, h)), plane_1x64(x->qh, h));
}

static inline i8x32 levels_tq2(const block_tq2 * x, int h) {
    return lookup(LEVELS_2, plane_2x64(x->qs, h));
}

static inline i8x32 levels_k5x3(const block_k5x3 * x, int h) {
    return h == 0 ? with_signs(lookup(MAGNITUDES_5, plane_4x32(x->qs5)), plane_1x32(x->qh5))
                  : with_signs(lookup(MAGNITUDES_3, plane_2x32(x->qs3)), plane_1x32(x->qh3));
}

static inline i8x32 levels_k4x2(const block_k4x2 * x, int h) {
    return h == 0 ? lookup(LEVELS_4, plane_4x32(x->qs4)) : lookup(LEVELS_2, plane_2x32(x->qs2));
}

// The sum over blocks of 64 of scale * query scale * integer product, for each half; blocks in order.
#define VEC_DOT(type, scale_0, scale_1)                                                                               \
    void ggml_vec_dot_##type##_q8_0(int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc) { \
        assert(n % 64 == 0 && nrc == 1);                                                                              \
        GGML_UNUSED(bs);                                                                                              \
        GGML_UNUSED(bx);                                                                                              \
        GGML_UNUSED(by);                                                                                              \
        GGML_UNUSED(nrc);                                                                                             \
        const block_##type * x = (const block_##type *) vx;                                                           \
        const block_q8_0   * y = (const block_q8_0 *) vy;                                                             \
        float sum = 0.0f;                                                                                             \
        for (int i = 0; i < n/64; ++i) {                                                                              \
            const float d0 = GGML_CPU_FP16_TO_FP32(x[i].scale_0) * GGML_CPU_FP16_TO_FP32(y[2*i].d);                   \
            const float d1 = GGML_CPU_FP16_TO_FP32(x[i].scale_1) * GGML_CPU_FP16_TO_FP32(y[2*i + 1].d);               \
            sum += d0 * product(levels_##type(x + i, 0), y[2*i].qs);                                                  \
            sum += d1 * product(levels_##type(x + i, 1), y[2*i + 1].qs);                                              \
        }                                                                                                             \
        *s = sum;                                                                                                     \
    }

VEC_DOT(tq3,  d,  d)
VEC_DOT(tq2,  d,  d)
VEC_DOT(k5x3, d5, d3)
VEC_DOT(k4x2, d4, d2)

static const struct ggml_type_traits_cpu TRAITS[] = {
    { quantize_row_tq3_ref,  ggml_vec_dot_tq3_q8_0,  GGML_TYPE_Q8_0, 1 },
    { quantize_row_tq2_ref,  ggml_vec_dot_tq2_q8_0,  GGML_TYPE_Q8_0, 1 },
    { quantize_row_k5x3_ref, ggml_vec_dot_k5x3_q8_0, GGML_TYPE_Q8_0, 1 },
    { quantize_row_k4x2_ref, ggml_vec_dot_k4x2_q8_0, GGML_TYPE_Q8_0, 1 },
};

const struct ggml_type_traits_cpu * ggml_kv_type_traits_cpu(enum ggml_type type) {
    return &TRAITS[type - GGML_TYPE_KV_FIRST];
}
