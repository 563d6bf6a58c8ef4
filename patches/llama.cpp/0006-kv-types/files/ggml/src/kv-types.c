#include "kv-types.h"

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "ggml-impl.h"

#include <assert.h>
#include <math.h>
#include <string.h>

// A block is one or two parts: values behind one scale, whose codes are a sign and the number of a magnitude.
// The sums that the bytes depend on are in double, of products that double holds exactly, halves added onto each
// other: so neither fused multiplications nor the length of vectors change a bit.

#define BLOCK      64
#define MAX_LEVELS 16

struct part {
    int     n;               // values
    int     n_magnitudes;
    int8_t  magnitudes[MAX_LEVELS];
    bool    by_peak;         // measured by the largest value, or else by the norm,
    float   tries[2];        // which is brought to these in turn
    int     plane_bits[2];   // bits of a code by plane, from the lowest; 0 for no plane
};

struct layout {
    int          block_bytes;
    int          n_parts;
    struct part  parts[2];
};

#define TWO_BITS   2, { 3, 10 }
#define THREE_BITS 4, { 7, 22, 40, 66 }
#define FOUR_BITS  8, { 4, 12, 20, 29, 38, 49, 62, 80 }
#define FIVE_BITS 16, { 3, 9, 14, 20, 26, 32, 38, 44, 51, 58, 66, 75, 84, 96, 108, 127 }

static const struct layout TQ3 = {
    sizeof(block_tq3), 1, {{ 64, THREE_BITS, true, { 75, 85 }, { 2, 1 } }},
};
static const struct layout TQ2 = {
    sizeof(block_tq2), 1, {{ 64, TWO_BITS, false, { 48.5f, 56 }, { 2, 0 } }},
};
static const struct layout K5X3 = {
    sizeof(block_k5x3), 2,
    {{ 32, FIVE_BITS, true, { 128, 108 }, { 4, 1 } }, { 32, THREE_BITS, true, { 69, 81 }, { 2, 1 } }},
};
static const struct layout K4X2 = {
    sizeof(block_k4x2), 2,
    {{ 32, FOUR_BITS, true, { 78, 86 }, { 4, 0 } }, { 32, TWO_BITS, false, { 40, 31 }, { 2, 0 } }},
};

static_assert(sizeof(block_tq3)  == 2 + 16 + 8,                 "wrong tq3 block size");
static_assert(sizeof(block_tq2)  == 2 + 16,                     "wrong tq2 block size");
static_assert(sizeof(block_k5x3) == (2 + 16 + 4) + (2 + 8 + 4), "wrong k5x3 block size");
static_assert(sizeof(block_k4x2) == (2 + 16) + (2 + 8),         "wrong k4x2 block size");

static int part_bytes(const struct part * part) {
    return 2 + part->n * (part->plane_bits[0] + part->plane_bits[1]) / 8;
}

// the sum of n numbers, n a power of two; they are overwritten
static double folded(double * x, int n) {
    while (n > 1) {
        n /= 2;
        for (int i = 0; i < n; ++i) {
            x[i] += x[i + n];
        }
    }
    return x[0];
}

// Fills in the number of each value's nearest magnitude, the upper of two, where the anchor is at `steps` steps;
// returns the squared norm of the projection of the values onto the magnitudes, and their sum of squares.
static double nearest(const struct part * part, const float * x, double anchor, float steps, uint8_t * places, int * squares) {
    float inverse = (float) (steps / anchor);
    if (!isfinite(inverse)) {
        inverse = 0.0f; // of zeros, or past float; the scale is 0 then, whatever the codes
    }
    double products[BLOCK];
    *squares = 0;
    for (int i = 0; i < part->n; ++i) {
        const float in_steps = fabsf(x[i]) * inverse;
        int place = 0;
        for (int j = 1; j < part->n_magnitudes; ++j) {
            place += in_steps >= (part->magnitudes[j - 1] + part->magnitudes[j]) * 0.5f;
        }
        const int level = part->magnitudes[place];
        places[i]   = (uint8_t) place;
        *squares   += level * level;
        products[i] = (double) fabsf(x[i]) * level;
    }
    const double product = folded(products, part->n);
    return product * product / *squares;
}

static void pack(const struct part * part, const uint8_t * codes, uint8_t * out) {
    int taken = 0;
    for (int p = 0; p < 2; ++p) {
        const int bits = part->plane_bits[p];
        const int m    = part->n * bits / 8;
        memset(out, 0, m);
        for (int i = 0; i < part->n && bits > 0; ++i) {
            out[i % m] |= (uint8_t) (((codes[i] >> taken) & ((1 << bits) - 1)) << (bits * (i / m)));
        }
        out   += m;
        taken += bits;
    }
}

static void unpack(const struct part * part, const uint8_t * in, int8_t * levels) {
    uint8_t codes[BLOCK] = { 0 };
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
        const int place = codes[i] % part->n_magnitudes;
        levels[i] = codes[i] < part->n_magnitudes ? part->magnitudes[place] : (int8_t) -part->magnitudes[place];
    }
}

static void quantize_part(const struct part * part, const float * x, bool finite, uint8_t * out) {
    double squared[BLOCK];
    float  peak = 0.0f;
    for (int i = 0; i < part->n; ++i) {
        squared[i] = (double) x[i] * x[i];
        peak       = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
    }
    const double norm   = sqrt(folded(squared, part->n));
    const double anchor = part->by_peak ? peak : norm;

    uint8_t codes[BLOCK], other[BLOCK];
    int squares, other_squares;
    const double closeness = nearest(part, x, anchor, part->tries[0], codes, &squares);
    if (nearest(part, x, anchor, part->tries[1], other, &other_squares) > closeness) {
        memcpy(codes, other, sizeof(codes));
        squares = other_squares;
    }
    for (int i = 0; i < part->n; ++i) {
        codes[i] += signbit(x[i]) ? (uint8_t) part->n_magnitudes : 0;
    }
    const double      scale = fmin(norm / sqrt((double) squares), 65504.0);
    const ggml_fp16_t d     = finite ? GGML_FP32_TO_FP16((float) scale) : 0x7E00;
    memcpy(out, &d, sizeof(d));
    pack(part, codes, out + sizeof(d));
}

static void quantize_row(const struct layout * layout, const float * x, uint8_t * y, int64_t k) {
    assert(k % BLOCK == 0);
    for (int64_t i = 0; i < k; i += BLOCK, y += layout->block_bytes) {
        const float   zeros[BLOCK] = { 0 };
        const float * values       = x + i;
        bool finite = true;
        for (int j = 0; j < BLOCK; ++j) {
            finite = finite && isfinite(values[j]);
        }
        if (!finite) {
            values = zeros;
        }
        uint8_t * out = y;
        for (int p = 0; p < layout->n_parts; ++p) {
            const struct part * part = &layout->parts[p];
            quantize_part(part, values, finite, out);
            values += part->n;
            out    += part_bytes(part);
        }
    }
}

static void unpack_block(const struct layout * layout, const uint8_t * x, int8_t * levels, float * scales) {
    for (int p = 0; p < layout->n_parts; ++p) {
        const struct part * part = &layout->parts[p];
        ggml_fp16_t d;
        memcpy(&d, x, sizeof(d));
        for (int h = 0; h < part->n / 32; ++h) {
            *scales++ = GGML_FP16_TO_FP32(d);
        }
        unpack(part, x + sizeof(d), levels);
        levels += part->n;
        x      += part_bytes(part);
    }
}

static void dequantize_row(const struct layout * layout, const uint8_t * x, float * y, int64_t k) {
    assert(k % BLOCK == 0);
    for (int64_t i = 0; i < k; i += BLOCK, x += layout->block_bytes) {
        int8_t levels[BLOCK];
        float  scales[2];
        unpack_block(layout, x, levels, scales);
        for (int j = 0; j < BLOCK; ++j) {
            y[i + j] = levels[j] * scales[j / 32];
        }
    }
}

void quantize_row_tq3_ref (const float * x, void * y, int64_t k) { quantize_row(&TQ3,  x, y, k); }
void quantize_row_tq2_ref (const float * x, void * y, int64_t k) { quantize_row(&TQ2,  x, y, k); }
void quantize_row_k5x3_ref(const float * x, void * y, int64_t k) { quantize_row(&K5X3, x, y, k); }
void quantize_row_k4x2_ref(const float * x, void * y, int64_t k) { quantize_row(&K4X2, x, y, k); }

void dequantize_row_tq3 (const void * x, float * y, int64_t k) { dequantize_row(&TQ3,  x, y, k); }
void dequantize_row_tq2 (const void * x, float * y, int64_t k) { dequantize_row(&TQ2,  x, y, k); }
void dequantize_row_k5x3(const void * x, float * y, int64_t k) { dequantize_row(&K5X3, x, y, k); }
void dequantize_row_k4x2(const void * x, float * y, int64_t k) { dequantize_row(&K4X2, x, y, k); }

// In the order of their numbers
static const struct ggml_type_traits TRAITS[] = {
    { "tq3",  BLOCK, 0, sizeof(block_tq3),  true, dequantize_row_tq3,  quantize_row_tq3_ref  },
    { "tq2",  BLOCK, 0, sizeof(block_tq2),  true, dequantize_row_tq2,  quantize_row_tq2_ref  },
    { "k5x3", BLOCK, 0, sizeof(block_k5x3), true, dequantize_row_k5x3, quantize_row_k5x3_ref },
    { "k4x2", BLOCK, 0, sizeof(block_k4x2), true, dequantize_row_k4x2, quantize_row_k4x2_ref },
};

const struct ggml_type_traits * ggml_kv_type_traits(enum ggml_type type) {
    return &TRAITS[type - GGML_TYPE_KV_FIRST];
}
