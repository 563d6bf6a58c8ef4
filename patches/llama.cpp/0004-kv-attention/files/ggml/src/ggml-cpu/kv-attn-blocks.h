#pragma once

// The blocks of cache types as values in registers, 16 at a time, and what the kernels over rows of them share.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#define GGML_COMMON_IMPL_C
#include "ggml-common.h"

#include "kv-attn-simd.h"

#include <algorithm>
#include <type_traits>

namespace kv_attn {

// Cache rows per tile: enough to amortise the softmax, few enough that a converted tile stays near.
constexpr int64_t TILE_KV = 64;

constexpr int64_t BLOCK = 32; // rows of floats are padded to whole blocks of so many values

inline int64_t n_blocks(int64_t width) {
    return (width + BLOCK - 1) / BLOCK;
}

inline GGML_F32_VEC broadcast(ggml_half x) {
    return GGML_F32_VEC_SET1(GGML_CPU_FP16_TO_FP32(x));
}

//
// One block of each cache type, in parts of 16 values: part 0 are values 0..15.
// A quantized value is scale * code, or scale * code + m where the type has an offset m.
//

template <typename T>
struct float_block {
    static constexpr int64_t SIZE = BLOCK; // a multiple of BLOCK

    T x[SIZE];
};

// blocks of upstream's types
template <typename T>
struct ggml_block : T {
    static constexpr int64_t SIZE = BLOCK;

    ggml_half scale(int) const { return T::d; } // of a part
};

// Codes of 5 bits: a fifth bit for each code is in qh
inline i8x16 nibbles_and_bit(const uint8_t * qs, const uint8_t * qh, int h) {
    uint16_t bits;
    memcpy(&bits, qh + 2*h, sizeof(bits));
    return plus_fifth_bit(nibbles(qs, h), bits);
}

struct q8_0_block : ggml_block<block_q8_0> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return load_i8x16(qs + 16*h); }
};

struct q4_0_block : ggml_block<block_q4_0> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return minus(nibbles(qs, h), 8); }
};

struct q4_1_block : ggml_block<block_q4_1> {
    static constexpr bool HAS_OFFSET = true;
    i8x16 codes(int h) const { return nibbles(qs, h); }
};

struct q5_0_block : ggml_block<block_q5_0> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return minus(nibbles_and_bit(qs, qh, h), 16); }
};

struct q5_1_block : ggml_block<block_q5_1> {
    static constexpr bool HAS_OFFSET = true;
    i8x16 codes(int h) const { return nibbles_and_bit(qs, qh, h); }
};

struct iq4_nl_block : ggml_block<block_iq4_nl> {
    static constexpr bool HAS_OFFSET = false;
    i8x16 codes(int h) const { return lookup(load_i8x16(kvalues_iq4nl), nibbles(qs, h)); }
};

template <typename Block>
constexpr bool is_quantized = true;
template <typename T>
constexpr bool is_quantized<float_block<T>> = false;

template <typename Block>
constexpr int N_PARTS = Block::SIZE / 16;

template <typename Block>
inline f32x16 part_as_f32(const Block & block, int h) {
    if constexpr (!is_quantized<Block>) {
        return load_16(block.x + 16*h);
    } else if constexpr (Block::HAS_OFFSET) {
        return scaled(widen(block.codes(h)), broadcast(block.scale(h)), broadcast(block.m));
    } else {
        return scaled(widen(block.codes(h)), broadcast(block.scale(h)));
    }
}

// Calls f(std::integral_constant<int, n>, first row) for groups of at most N rows.
template <int N, typename F>
void for_row_groups(int64_t row, int64_t n_rows, F && f) {
    for (; row + N <= n_rows; row += N) {
        f(std::integral_constant<int, N>(), row);
    }
    if constexpr (N > 1) {
        for_row_groups<(N > 4 ? N/2 : N - 1)>(row, n_rows, f);
    }
}

// Cache rows that are wanted soon. The rows of one head lie too far apart for the processor to foresee them.
struct upcoming_rows {
    const char * first;
    size_t       stride;  // bytes from row to row
    size_t       n_bytes; // of one row
    int64_t      n_rows;

    // asks for rows t .. t + n - 1
    KV_ATTN_INLINE void prefetch(int64_t t, int64_t n) const {
        for (const int64_t end = std::min(t + n, n_rows); t < end; ++t) {
            const char * row = first + t*stride;
            for (const char * line = row - (uintptr_t) row % CACHE_LINE; line < row + n_bytes; line += CACHE_LINE) {
                prefetch_far(line);
            }
        }
    }

    static constexpr size_t CACHE_LINE = 64;
};

} // namespace kv_attn
