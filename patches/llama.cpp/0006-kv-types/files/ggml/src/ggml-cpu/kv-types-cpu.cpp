#include "kv-types-cpu.h"

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "kv-types-blocks.h"
#include "kv-types-codes.h"
#include "simd-mappings.h"

using namespace kv_attn;

namespace {

// the product of 32 codes, levels of at most 127, with as many of a q8_0 block, which are within -127 .. 127
int32_t product(i8x16 low, i8x16 high, const int8_t * y) {
#if defined(KV_ATTN_AVX2)
    const __m256i x     = _mm256_set_m128i(high, low);
    const __m256i query = _mm256_loadu_si256((const __m256i *) y);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(query, x));
    const __m256i quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    const __m128i half  = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
    const __m128i two   = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
#elif defined(KV_ATTN_NEON)
    return vaddvq_s32(ggml_vdotq_s32(ggml_vdotq_s32(vdupq_n_s32(0), low, vld1q_s8(y)), high, vld1q_s8(y + 16)));
#else
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) {
        sum += low.x[i]*y[i] + high.x[i]*y[i + 16];
    }
    return sum;
#endif
}

// ggml_vec_dot_t, of one row; n: a multiple of 64
template <typename Block>
void vec_dot(int n, float * s, size_t, const void * vx, size_t, const void * vy, size_t, int nrc) {
    GGML_ASSERT(n % KV_TYPES_BLOCK == 0 && nrc == 1);
    const Block      * x = (const Block *) vx;
    const block_q8_0 * y = (const block_q8_0 *) vy;
    float sum = 0.0f;
    for (int i = 0; i < n/KV_TYPES_BLOCK; ++i) {
        for (int h = 0; h < 4; h += 2) {
            const block_q8_0 & query = y[2*i + h/2];
            const float        scale = GGML_CPU_FP16_TO_FP32(x[i].scale(h)) * GGML_CPU_FP16_TO_FP32(query.d);
            sum += scale * product(x[i].codes(h), x[i].codes(h + 1), query.qs);
        }
    }
    *s = sum;
}

void quantize_row_tq3 (const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_TQ3,  x, (uint8_t *) y, k); }
void quantize_row_tq2 (const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_TQ2,  x, (uint8_t *) y, k); }
void quantize_row_k5x3(const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_K5X3, x, (uint8_t *) y, k); }
void quantize_row_k4x2(const float * x, void * y, int64_t k) { kv_types_quantize_row(&KV_TYPES_K4X2, x, (uint8_t *) y, k); }

// in the order of their numbers
const ggml_type_traits_cpu TRAITS[] = {
    { quantize_row_tq3,  vec_dot<tq3_block>,  GGML_TYPE_Q8_0, 1 },
    { quantize_row_tq2,  vec_dot<tq2_block>,  GGML_TYPE_Q8_0, 1 },
    { quantize_row_k5x3, vec_dot<k5x3_block>, GGML_TYPE_Q8_0, 1 },
    { quantize_row_k4x2, vec_dot<k4x2_block>, GGML_TYPE_Q8_0, 1 },
};

} // namespace

const ggml_type_traits_cpu * ggml_kv_type_traits_cpu(ggml_type type) {
    return &TRAITS[type - GGML_TYPE_KV_FIRST];
}
