#pragma once

// The few vector operations that attention needs beyond ggml's GGML_F32_VEC: 16 values widened to float, sums and largest
// of lanes, powers of e. Each is written for AVX2 and later, for NEON, and in plain C++.

#include "kv-attn-bytes.h"

#include "ggml.h"
#include "ggml-cpu.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"
#include "vec.h"

#include <cmath>
#include <cstdint>

// GCC takes a function that only prefetches for one without effect and drops its calls, unless it is inlined early.
#if defined(__GNUC__)
#define KV_ATTN_INLINE inline __attribute__((always_inline))
#else
#define KV_ATTN_INLINE inline
#endif

namespace kv_attn {

// Asks for a cache line into the second-level cache; any address will do.
KV_ATTN_INLINE void prefetch_far(const char * address) {
#if defined(__GNUC__)
    __builtin_prefetch(address, /* read */ 0, /* second level */ 2);
#else
    GGML_UNUSED(address);
#endif
}

constexpr int64_t EPR = GGML_F32_EPR; // floats per vector register

constexpr int64_t N_VEC = 16 / EPR;

// 16 floats in as many registers as they take
struct f32x16 {
    GGML_F32_VEC v[N_VEC];
};

inline f32x16 load_16(const float * x) {
    f32x16 y;
    for (int64_t i = 0; i < N_VEC; ++i) {
        y.v[i] = GGML_F32_VEC_LOAD(x + i*EPR);
    }
    return y;
}

inline void store_16(float * y, const f32x16 & x) {
    for (int64_t i = 0; i < N_VEC; ++i) {
        GGML_F32_VEC_STORE(y + i*EPR, x.v[i]);
    }
}

inline f32x16 scaled(const f32x16 & x, GGML_F32_VEC scale) {
    f32x16 y;
    for (int64_t i = 0; i < N_VEC; ++i) {
        y.v[i] = GGML_F32_VEC_MUL(x.v[i], scale);
    }
    return y;
}

inline f32x16 scaled(const f32x16 & x, GGML_F32_VEC scale, GGML_F32_VEC offset) {
    f32x16 y;
    for (int64_t i = 0; i < N_VEC; ++i) {
        y.v[i] = GGML_F32_VEC_FMA(offset, x.v[i], scale);
    }
    return y;
}

#if defined(KV_ATTN_AVX2)

#if defined(__AVX512F__)

inline f32x16 widen(i8x16 x) {
    return {{ _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x)) }};
}

inline f32x16 load_16(const ggml_fp16_t * x) {
    return {{ _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) x)) }};
}

inline f32x16 load_16(const ggml_bf16_t * x) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) x));
    return {{ _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)) }};
}

#else

inline f32x16 widen(i8x16 x) {
    return {{ _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
              _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))) }};
}

inline f32x16 load_16(const ggml_fp16_t * x) {
    return {{ _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) x)),
              _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (x + 8))) }};
}

inline f32x16 load_16(const ggml_bf16_t * x) {
    f32x16 y;
    for (int i = 0; i < 2; ++i) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) (x + 8*i)));
        y.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    return y;
}

#endif // __AVX512F__

inline GGML_F32_VEC exp_of(GGML_F32_VEC x) { return ggml_v_expf(x); }

#if defined(__AVX512F__)

inline GGML_F32_VEC larger_of(GGML_F32_VEC x, GGML_F32_VEC y) { return _mm512_max_ps(x, y); }
inline float largest_of_lanes(GGML_F32_VEC x)                 { return _mm512_reduce_max_ps(x); }
inline float sum_of_lanes(GGML_F32_VEC x)                     { return _mm512_reduce_add_ps(x); }

#else

inline GGML_F32_VEC larger_of(GGML_F32_VEC x, GGML_F32_VEC y) { return _mm256_max_ps(x, y); }

inline float largest_of_lanes(GGML_F32_VEC x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

inline float sum_of_lanes(GGML_F32_VEC x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

#endif // __AVX512F__

// y[j*y_stride + i] = x[i*x_stride + j] for i and j up to 3
inline void transpose_4(float * y, int64_t y_stride, const float * x, int64_t x_stride) {
    __m128 row[4];
    for (int i = 0; i < 4; ++i) {
        row[i] = _mm_loadu_ps(x + i*x_stride);
    }
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
    for (int j = 0; j < 4; ++j) {
        _mm_storeu_ps(y + j*y_stride, row[j]);
    }
}

// s[i] = the sum of the lanes of x[i]
inline void store_sums(float * s, const GGML_F32_VEC (&x)[4]) {
    __m128 y[4];
    for (int i = 0; i < 4; ++i) {
#if defined(__AVX512F__)
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x[i]),
                                          _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x[i]), 1)));
#else
        const __m256 half = x[i];
#endif
        y[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    _mm_storeu_ps(s, _mm_hadd_ps(_mm_hadd_ps(y[0], y[1]), _mm_hadd_ps(y[2], y[3])));
}

#elif defined(KV_ATTN_NEON)

inline f32x16 widen(i8x16 x) {
    const int16x8_t lo = vmovl_s8(vget_low_s8(x));
    const int16x8_t hi = vmovl_high_s8(x);
    return {{ vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)),
              vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), vcvtq_f32_s32(vmovl_high_s16(hi)) }};
}

inline f32x16 load_16(const ggml_fp16_t * x) {
    const float16x8_t lo = vreinterpretq_f16_u16(vld1q_u16(x));
    const float16x8_t hi = vreinterpretq_f16_u16(vld1q_u16(x + 8));
    return {{ vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo),
              vcvt_f32_f16(vget_low_f16(hi)), vcvt_high_f32_f16(hi) }};
}

inline f32x16 load_16(const ggml_bf16_t * x) {
    const uint16x8_t lo = vld1q_u16((const uint16_t *) x);
    const uint16x8_t hi = vld1q_u16((const uint16_t *) (x + 8));
    const auto as_f32 = [](uint16x4_t bits) { return vreinterpretq_f32_u32(vshll_n_u16(bits, 16)); };
    return {{ as_f32(vget_low_u16(lo)), as_f32(vget_high_u16(lo)),
              as_f32(vget_low_u16(hi)), as_f32(vget_high_u16(hi)) }};
}

inline GGML_F32_VEC exp_of(GGML_F32_VEC x)                    { return ggml_v_expf(x); }
inline GGML_F32_VEC larger_of(GGML_F32_VEC x, GGML_F32_VEC y) { return vmaxnmq_f32(x, y); }
inline float largest_of_lanes(GGML_F32_VEC x)                 { return vmaxnmvq_f32(x); }
inline float sum_of_lanes(GGML_F32_VEC x)                     { return vaddvq_f32(x); }

inline void transpose_4(float * y, int64_t y_stride, const float * x, int64_t x_stride) {
    const float32x4_t x0 = vld1q_f32(x), x1 = vld1q_f32(x + x_stride);
    const float32x4_t x2 = vld1q_f32(x + 2*x_stride), x3 = vld1q_f32(x + 3*x_stride);
    const float32x4_t a = vzip1q_f32(x0, x2), b = vzip2q_f32(x0, x2);
    const float32x4_t c = vzip1q_f32(x1, x3), d = vzip2q_f32(x1, x3);
    vst1q_f32(y,              vzip1q_f32(a, c));
    vst1q_f32(y +   y_stride, vzip2q_f32(a, c));
    vst1q_f32(y + 2*y_stride, vzip1q_f32(b, d));
    vst1q_f32(y + 3*y_stride, vzip2q_f32(b, d));
}

inline void store_sums(float * s, const GGML_F32_VEC (&x)[4]) {
    vst1q_f32(s, vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])));
}

#else

template <typename F> f32x16 each_f32(F && f) {
    float y[16];
    for (int i = 0; i < 16; ++i) {
        y[i] = f(i);
    }
    return load_16(y);
}

inline f32x16 widen(i8x16 x)                   { return each_f32([&](int i) { return (float) x.x[i]; }); }
inline f32x16 load_16(const ggml_fp16_t * x)  { return each_f32([&](int i) { return GGML_CPU_FP16_TO_FP32(x[i]); }); }
inline f32x16 load_16(const ggml_bf16_t * x) { return each_f32([&](int i) { return GGML_BF16_TO_FP32(x[i]); }); }

// f over the lanes of a register, and over those of a second one
template <typename F> GGML_F32_VEC each_lane(GGML_F32_VEC x, GGML_F32_VEC y, F && f) {
    float a[EPR], b[EPR];
    GGML_F32_VEC_STORE(a, x);
    GGML_F32_VEC_STORE(b, y);
    for (int64_t i = 0; i < EPR; ++i) {
        a[i] = f(a[i], b[i]);
    }
    return GGML_F32_VEC_LOAD(a);
}

template <typename F> float over_lanes(GGML_F32_VEC x, F && f) {
    float lanes[EPR];
    GGML_F32_VEC_STORE(lanes, x);
    float y = lanes[0];
    for (int64_t i = 1; i < EPR; ++i) {
        y = f(y, lanes[i]);
    }
    return y;
}

inline float larger_float(float x, float y) { return x > y ? x : y; }

inline GGML_F32_VEC exp_of(GGML_F32_VEC x)                    { return each_lane(x, x, [](float a, float) { return expf(a); }); }
inline GGML_F32_VEC larger_of(GGML_F32_VEC x, GGML_F32_VEC y) { return each_lane(x, y, larger_float); }
inline float largest_of_lanes(GGML_F32_VEC x)                 { return over_lanes(x, larger_float); }
inline float sum_of_lanes(GGML_F32_VEC x)                     { return over_lanes(x, [](float a, float b) { return a + b; }); }

inline void transpose_4(float * y, int64_t y_stride, const float * x, int64_t x_stride) {
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j) {
            y[j*y_stride + i] = x[i*x_stride + j];
        }
    }
}

inline void store_sums(float * s, const GGML_F32_VEC (&x)[4]) {
    for (int i = 0; i < 4; ++i) {
        s[i] = sum_of_lanes(x[i]);
    }
}

#endif

} // namespace kv_attn
