#pragma once

// How the blocks of kv-types.h are made and read. Functions that the compiler has to see whole: each of the base library
// and the CPU backend compiles them for the instructions it may use, and both give the same bytes.
//
// A block is one or two parts: values behind one scale, whose codes are a sign and the number of a magnitude. The sums that
// the bytes depend on are in double, of products that double holds exactly, halves added onto each other: so neither fused
// multiplications nor the length of vectors change a bit.

#include "kv-types.h"

#include "ggml-impl.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#if defined(__GNUC__)
#define KV_TYPES_INLINE static inline __attribute__((always_inline))
#else
#define KV_TYPES_INLINE static inline
#endif

#define KV_TYPES_BLOCK 64

struct kv_types_part {
    int    n;             // values
    int    n_magnitudes;
    int8_t magnitudes[16];
    bool   by_peak;       // measured by the largest value, or else by the norm,
    float  tries[2];      // which is brought to these in turn
    int    plane_bits[2]; // bits of a code by plane, from the lowest; 0 for no plane
};

struct kv_types_layout {
    int                  block_bytes;
    int                  n_parts;
    struct kv_types_part parts[2];
};

#define KV_TYPES_2_BITS   2, { KV_TYPES_MAGNITUDES_2 }
#define KV_TYPES_3_BITS   4, { KV_TYPES_MAGNITUDES_3 }
#define KV_TYPES_4_BITS   8, { KV_TYPES_MAGNITUDES_4 }
#define KV_TYPES_5_BITS  16, { KV_TYPES_MAGNITUDES_5 }

static const struct kv_types_layout KV_TYPES_TQ3 = {
    sizeof(block_tq3), 1, {{ 64, KV_TYPES_3_BITS, true, { 75, 85 }, { 2, 1 } }},
};
static const struct kv_types_layout KV_TYPES_TQ2 = {
    sizeof(block_tq2), 1, {{ 64, KV_TYPES_2_BITS, false, { 48.5f, 56 }, { 2, 0 } }},
};
static const struct kv_types_layout KV_TYPES_K5X3 = {
    sizeof(block_k5x3), 2,
    {{ 32, KV_TYPES_5_BITS, true, { 128, 108 }, { 4, 1 } }, { 32, KV_TYPES_3_BITS, true, { 69, 81 }, { 2, 1 } }},
};
static const struct kv_types_layout KV_TYPES_K4X2 = {
    sizeof(block_k4x2), 2,
    {{ 32, KV_TYPES_4_BITS, true, { 78, 86 }, { 4, 0 } }, { 32, KV_TYPES_2_BITS, false, { 40, 31 }, { 2, 0 } }},
};

KV_TYPES_INLINE int kv_types_part_bytes(const struct kv_types_part * part) {
    return 2 + part->n * (part->plane_bits[0] + part->plane_bits[1]) / 8;
}

KV_TYPES_INLINE void kv_types_fold(double * x, int n) {
    for (int i = 0; i < n; ++i) {
        x[i] += x[i + n];
    }
}

// the sum of 32 or 64 numbers, which are overwritten
KV_TYPES_INLINE double kv_types_sum(double * x, int n) {
    if (n == 64) {
        kv_types_fold(x, 32);
    }
    kv_types_fold(x, 16);
    kv_types_fold(x, 8);
    kv_types_fold(x, 4);
    kv_types_fold(x, 2);
    return x[0] + x[1];
}

// Fills in the number of each value's nearest magnitude, the upper of two, where the anchor is at `steps` steps;
// returns the squared norm of the projection of the values onto the magnitudes, and their sum of squares.
KV_TYPES_INLINE double kv_types_nearest(
        const struct kv_types_part * part, const float * sizes, double anchor, float steps, int32_t * places, int32_t * squares) {
    float inverse = (float) ((double) steps / anchor);
    if (!isfinite(inverse)) {
        inverse = 0.0f; // of zeros, or past float; the scale is 0 then, whatever the codes
    }
    float   in_steps[KV_TYPES_BLOCK];
    int32_t levels[KV_TYPES_BLOCK];
    for (int i = 0; i < part->n; ++i) {
        in_steps[i] = sizes[i] * inverse;
        levels[i]   = part->magnitudes[0];
        places[i]   = 0;
    }
    for (int j = 1; j < part->n_magnitudes; ++j) {
        const float   bound = (part->magnitudes[j - 1] + part->magnitudes[j]) * 0.5f;
        const int32_t step  = part->magnitudes[j] - part->magnitudes[j - 1];
        for (int i = 0; i < part->n; ++i) {
            const int32_t above = in_steps[i] >= bound;
            levels[i] += -above & step; // without a branch, for vectors
            places[i] += above;
        }
    }
    double  products[KV_TYPES_BLOCK];
    int32_t sum = 0;
    for (int i = 0; i < part->n; ++i) {
        sum         += levels[i] * levels[i];
        products[i]  = (double) sizes[i] * levels[i];
    }
    const double product = kv_types_sum(products, part->n);
    *squares = sum;
    return product * product / sum;
}

// Value i of a plane of m bytes is in byte i % m: the bytes shifted and masked are the values in their order.
KV_TYPES_INLINE void kv_types_pack_plane(const uint8_t * codes, int n, int shift, int bits, uint8_t * out) {
    const int m = n * bits / 8;
    for (int i = 0; i < m; ++i) {
        out[i] = 0;
    }
    for (int first = 0, to = 0; first < n && m > 0; first += m, to += bits) {
        for (int i = 0; i < m; ++i) {
            out[i] |= (uint8_t) (((codes[first + i] >> shift) & ((1 << bits) - 1)) << to);
        }
    }
}

KV_TYPES_INLINE void kv_types_pack(const struct kv_types_part * part, const uint8_t * codes, uint8_t * out) {
    const int bits = part->plane_bits[0];
    kv_types_pack_plane(codes, part->n, 0,    bits,                out);
    kv_types_pack_plane(codes, part->n, bits, part->plane_bits[1], out + part->n * bits / 8);
}

KV_TYPES_INLINE void kv_types_unpack(const struct kv_types_part * part, const uint8_t * in, int8_t * levels) {
    uint8_t codes[KV_TYPES_BLOCK] = { 0 };
    int taken = 0;
    for (int p = 0; p < 2; ++p) {
        const int bits = part->plane_bits[p];
        const int m    = part->n * bits / 8;
        for (int i = 0; i < part->n && bits > 0; ++i) {
            codes[i] |= (uint8_t) (((in[i % m] >> (bits * (i / m))) & ((1 << bits) - 1)) << taken);
        }
        in    += m;
        taken += bits;
    }
    for (int i = 0; i < part->n; ++i) {
        const int8_t magnitude = part->magnitudes[codes[i] % part->n_magnitudes];
        levels[i] = codes[i] < part->n_magnitudes ? magnitude : (int8_t) -magnitude;
    }
}

KV_TYPES_INLINE void kv_types_quantize_part(const struct kv_types_part * part, const float * x, bool finite, uint8_t * out) {
    float   sizes[KV_TYPES_BLOCK];
    double  squared[KV_TYPES_BLOCK];
    int32_t bits[KV_TYPES_BLOCK];
    int32_t peak_bits = 0; // of finite magnitudes the larger has the larger bits
    memcpy(bits, x, part->n * sizeof(float));
    for (int i = 0; i < part->n; ++i) {
        const int32_t size = bits[i] & 0x7FFFFFFF;
        peak_bits  = size > peak_bits ? size : peak_bits;
        sizes[i]   = fabsf(x[i]);
        squared[i] = (double) x[i] * (double) x[i];
    }
    float peak;
    memcpy(&peak, &peak_bits, sizeof(peak));
    const double norm   = sqrt(kv_types_sum(squared, part->n));
    const double anchor = part->by_peak ? (double) peak : norm;

    int32_t places[2][KV_TYPES_BLOCK];
    int32_t squares[2];
    const double first  = kv_types_nearest(part, sizes, anchor, part->tries[0], places[0], &squares[0]);
    const double second = kv_types_nearest(part, sizes, anchor, part->tries[1], places[1], &squares[1]);
    const int    better = second > first;

    uint8_t codes[KV_TYPES_BLOCK];
    for (int i = 0; i < part->n; ++i) {
        codes[i] = (uint8_t) (places[better][i] + (bits[i] < 0 ? part->n_magnitudes : 0));
    }
    const double      scale = norm / sqrt((double) squares[better]);
    const ggml_fp16_t d     = finite ? GGML_FP32_TO_FP16((float) (scale < 65504.0 ? scale : 65504.0)) : 0x7E00;
    memcpy(out, &d, sizeof(d));
    kv_types_pack(part, codes, out + sizeof(d));
}

KV_TYPES_INLINE void kv_types_quantize_row(const struct kv_types_layout * layout, const float * x, uint8_t * y, int64_t k) {
    assert(k % KV_TYPES_BLOCK == 0);
    for (int64_t i = 0; i < k; i += KV_TYPES_BLOCK, y += layout->block_bytes) {
        float   values[KV_TYPES_BLOCK];
        int32_t bits[KV_TYPES_BLOCK];
        int32_t n_bad = 0;
        memcpy(values, x + i, sizeof(values));
        memcpy(bits,   x + i, sizeof(bits));
        for (int j = 0; j < KV_TYPES_BLOCK; ++j) {
            n_bad += (bits[j] & 0x7F800000) == 0x7F800000; // infinite, or not a number
        }
        if (n_bad > 0) {
            memset(values, 0, sizeof(values));
        }
        kv_types_quantize_part(&layout->parts[0], values, n_bad == 0, y);
        if (layout->n_parts == 2) {
            kv_types_quantize_part(&layout->parts[1], values + layout->parts[0].n, n_bad == 0,
                    y + kv_types_part_bytes(&layout->parts[0]));
        }
    }
}

// levels: what the 64 codes stand for; scales: of each half
KV_TYPES_INLINE void kv_types_unpack_block(const struct kv_types_layout * layout, const uint8_t * x, int8_t * levels, float * scales) {
    for (int p = 0; p < layout->n_parts; ++p) {
        const struct kv_types_part * part = &layout->parts[p];
        ggml_fp16_t d;
        memcpy(&d, x, sizeof(d));
        for (int h = 0; h < part->n / 32; ++h) {
            *scales++ = GGML_FP16_TO_FP32(d);
        }
        kv_types_unpack(part, x + sizeof(d), levels);
        levels += part->n;
        x      += kv_types_part_bytes(part);
    }
}

KV_TYPES_INLINE void kv_types_dequantize_row(const struct kv_types_layout * layout, const uint8_t * x, float * y, int64_t k) {
    assert(k % KV_TYPES_BLOCK == 0);
    for (int64_t i = 0; i < k; i += KV_TYPES_BLOCK, x += layout->block_bytes) {
        int8_t levels[KV_TYPES_BLOCK];
        float  scales[2];
        kv_types_unpack_block(layout, x, levels, scales);
        for (int j = 0; j < KV_TYPES_BLOCK; ++j) {
            y[i + j] = levels[j] * scales[j / 32];
        }
    }
}
