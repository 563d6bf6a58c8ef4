#include "kv-attn.h"

#include "ggml-impl.h"
#include "simd-mappings.h"

// The kernels keep vectors in arrays, which those of SVE and RVV, of no fixed size, do not allow.
#if defined(GGML_SIMD) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)

#include "kv-attn-rows.h"

#include "simd-gemm.h"
#include "vec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace kv_attn {
namespace {

// Cache rows of one chunk, at most, when there are few query rows. All KV heads of a chunk are visited one after the
// other, so its cache lines, which hold every head of a token, are fetched from memory once.
constexpr int64_t CHUNK_KV = 256;

// Smaller chunks make at least so many items, to keep the threads busy.
constexpr int64_t MIN_ITEMS = 16;

// Tiles of query rows, when there are many: smaller ones, of no fewer than MIN_TILE_ROWS, make at least MIN_TILES of them.
constexpr int64_t MIN_TILES = 64;
constexpr int64_t MIN_TILE_ROWS = 128;

// Bounds the partial results: (query rows) x (chunks) stays below it, unless one chunk alone exceeds it.
constexpr int64_t MAX_PARTIALS = 4096;

constexpr ggml_fp16_t F16_NEG_INF = 0xFC00;

constexpr int64_t LINE = 16; // floats of a cache line; vectors should not straddle two

int64_t divide_up(int64_t n, int64_t part) {
    return (n + part - 1) / part;
}

int64_t round_up(int64_t n, int64_t part) {
    return divide_up(n, part) * part;
}

// x += slope*bias over a tile; returns the largest.
float add_bias(float * x, const float * bias, float slope) {
    const GGML_F32_VEC factor  = GGML_F32_VEC_SET1(slope);
    GGML_F32_VEC       largest = GGML_F32_VEC_SET1(-INFINITY);
    for (int64_t t = 0; t < TILE_KV; t += EPR) {
        const GGML_F32_VEC y = GGML_F32_VEC_FMA(GGML_F32_VEC_LOAD(x + t), GGML_F32_VEC_LOAD(bias + t), factor);
        GGML_F32_VEC_STORE(x + t, y);
        largest = larger_of(y, largest);
    }
    return largest_of_lanes(largest);
}

// x = exp(x - largest) over a tile; returns the sum.
float exponentiate(float * x, float largest) {
    const GGML_F32_VEC minus = GGML_F32_VEC_SET1(-largest);
    GGML_F32_VEC       sum   = GGML_F32_VEC_ZERO;
    for (int64_t t = 0; t < TILE_KV; t += EPR) {
        const GGML_F32_VEC y = exp_of(GGML_F32_VEC_ADD(GGML_F32_VEC_LOAD(x + t), minus));
        GGML_F32_VEC_STORE(x + t, y);
        sum = GGML_F32_VEC_ADD(sum, y);
    }
    return sum_of_lanes(sum);
}

// Which cache rows of a tile a query row sees: 1 or 0. Bytes, so that the compiler can use whole vectors of them.
using seen_rows = std::array<uint8_t, TILE_KV>;

int64_t count(const seen_rows & seen) {
    uint8_t n = 0;
    for (const uint8_t is_seen : seen) {
        n += is_seen;
    }
    return n;
}

//
// the plan: how one node is cut into work items. It depends on the shapes alone, so that the result does not depend
// on the number of threads.
//

struct attn_plan {
    int64_t dk, dv;         // widths of a K and a V head
    int64_t dk_pad, dv_pad; // the same in whole blocks
    int64_t n_head_kv;
    int64_t n_group;        // query heads per KV head
    int64_t n_stream;
    int64_t n_kv;           // cache rows
    int64_t n_rows;         // query rows per KV head, row = token * n_group + head in group
    int64_t tile_rows;      // query rows of one item, at most
    int64_t n_row_tiles;
    int64_t chunk_kv;       // cache rows of one item, at most
    int64_t n_chunks;

    int64_t n_items()    const { return n_stream * n_chunks * n_row_tiles * n_head_kv; }
    int64_t n_rows_all() const { return n_stream * n_head_kv * n_rows; }

    // floats of a partial result: M, S and O, see softmax_state
    int64_t partial_size() const { return dv + 2; }
    int64_t partials_size() const { return n_chunks > 1 ? n_rows_all() * n_chunks * partial_size() : 0; }

    // floats of one thread's item_buffers
    int64_t scratch_size() const {
        return tile_rows * (dk_pad + dv_pad + TILE_KV) + 3*round_up(tile_rows, LINE) + TILE_KV * (2*dk_pad + dv_pad);
    }
};

attn_plan make_plan(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];

    attn_plan p;
    p.dk        = k->ne[0];
    p.dv        = v->ne[0];
    p.dk_pad    = n_blocks(p.dk) * BLOCK;
    p.dv_pad    = n_blocks(p.dv) * BLOCK;
    p.n_head_kv = k->ne[2];
    p.n_group   = q->ne[2] / k->ne[2];
    p.n_stream  = q->ne[3];
    p.n_kv      = k->ne[1];
    p.n_rows    = q->ne[1] * p.n_group;

    // Q and O of one item take half of a 512 KiB second-level cache at most. Items are smaller where there would be few of
    // them, but have rows enough for a product of matrices, and to repay the conversion of the cache rows.
    const int64_t fitting = 65536 / (p.dk + p.dv) / 64 * 64;
    const int64_t shared  = p.n_rows * p.n_stream * p.n_head_kv / MIN_TILES / 64 * 64;
    p.tile_rows   = std::min(p.n_rows, std::max(MIN_TILE_ROWS, std::min(fitting, shared)));
    p.n_row_tiles = divide_up(p.n_rows, p.tile_rows);

    const int64_t min_chunks = divide_up(MIN_ITEMS, p.n_stream * p.n_head_kv * p.n_row_tiles);
    const int64_t max_chunks = std::max<int64_t>(1, MAX_PARTIALS / p.n_rows_all());
    const int64_t wanted     = std::min(CHUNK_KV, p.n_kv / min_chunks);
    p.chunk_kv = round_up(std::max<int64_t>({ 1, wanted, divide_up(p.n_kv, max_chunks) }), TILE_KV);
    p.n_chunks = divide_up(p.n_kv, p.chunk_kv);
    return p;
}

struct attn_inputs {
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const ggml_tensor * sinks;
    const row_ops     * k_ops;
    const row_ops     * v_ops;
    float scale;
    float max_bias;
    float softcap;

    explicit attn_inputs(const ggml_tensor * dst)
        : q(dst->src[0]), k(dst->src[1]), v(dst->src[2]), mask(dst->src[3]), sinks(dst->src[4]),
          k_ops(find_row_ops(k->type)), v_ops(find_row_ops(v->type)) {
        const float * params = (const float *) dst->op_params;
        scale    = params[0];
        max_bias = params[1];
        softcap  = params[2];
        if (softcap != 0.0f) {
            scale /= softcap;
        }
    }

    // ALiBi slope of a query head
    float slope(int64_t head) const {
        if (max_bias <= 0.0f) {
            return 1.0f;
        }
        const int64_t n_log2 = 1ll << (int64_t) floor(log2((double) q->ne[2]));
        return head < n_log2 ? powf(powf(2.0f, -max_bias / n_log2), head + 1)
                             : powf(powf(2.0f, -max_bias / 2.0f / n_log2), 2*(head - n_log2) + 1);
    }

    const float * q_row(int64_t token, int64_t head, int64_t stream) const {
        return (const float *) ((const char *) q->data + token*q->nb[1] + head*q->nb[2] + stream*q->nb[3]);
    }

    const ggml_fp16_t * mask_row(int64_t token, int64_t head, int64_t stream) const {
        return (const ggml_fp16_t *) ((const char *) mask->data + token*mask->nb[1] + (head % mask->ne[2])*mask->nb[2] +
                                      (stream % mask->ne[3])*mask->nb[3]);
    }

    // cache row 0 of one KV head; a cache may have fewer streams than the queries
    const char * head_data(const ggml_tensor * cache, int64_t head_kv, int64_t stream) const {
        return (const char *) cache->data + head_kv*cache->nb[2] + stream / (q->ne[3]/cache->ne[3]) * cache->nb[3];
    }
};

// Attention of some query rows of one KV head over some of its cache rows.
struct attn_item {
    int64_t stream;
    int64_t head_kv;
    int64_t row0, n_rows;
    int64_t kv0, kv1;
};

attn_item make_item(const attn_plan & plan, int64_t i) {
    // KV heads innermost: see CHUNK_KV
    const int64_t head_kv  = i % plan.n_head_kv;
    const int64_t row_tile = i / plan.n_head_kv % plan.n_row_tiles;
    const int64_t chunk    = i / plan.n_head_kv / plan.n_row_tiles % plan.n_chunks;
    const int64_t stream   = i / plan.n_head_kv / plan.n_row_tiles / plan.n_chunks;

    const int64_t row0 = row_tile * plan.tile_rows;
    const int64_t kv0  = chunk * plan.chunk_kv;
    return { stream, head_kv, row0, std::min(plan.tile_rows, plan.n_rows - row0),
             kv0, std::min(plan.n_kv, kv0 + plan.chunk_kv) };
}

// Running softmax of one query row: M is the largest score so far, S the sum of exp(score - M) and O the sum of
// exp(score - M) * V.
struct softmax_state {
    float * m;
    float * s;
    float * o; // dv_pad floats a row
};

// What a thread needs to work on one item, all in its part of the work buffer
struct item_buffers {
    float * q;        // query rows times scale, dk_pad floats each
    softmax_state out;
    float * slopes;   // one a query row
    float * scores;   // TILE_KV a query row

    // a tile, converted once for all query rows
    float * k_tile; // TILE_KV rows of dk_pad floats, or a code_tile
    float * k_cols; // the rows transposed
    float * v_tile; // TILE_KV rows of dv_pad floats, or a code_tile

    item_buffers(const attn_plan & plan, float * scratch) {
        const auto take = [&](int64_t n) {
            float * part = scratch;
            scratch += round_up(n, LINE);
            return part;
        };
        q      = take(plan.tile_rows * plan.dk_pad);
        out.o  = take(plan.tile_rows * plan.dv_pad);
        out.m  = take(plan.tile_rows);
        out.s  = take(plan.tile_rows);
        slopes = take(plan.tile_rows);
        scores = take(plan.tile_rows * TILE_KV);
        k_tile = take(TILE_KV * plan.dk_pad);
        k_cols = take(TILE_KV * plan.dk_pad);
        v_tile = take(TILE_KV * plan.dv_pad);
    }
};

class item_worker {
  public:
    item_worker(const attn_inputs & in, const attn_plan & plan, float * scratch)
        : in(in), plan(plan), buf(plan, scratch) {}

    // Leaves the result of query row item.row0 + r in state r of what it returns.
    softmax_state run(const attn_item & item) {
        start(item);
        for (int64_t kv = item.kv0; kv < item.kv1; kv += TILE_KV) {
            const int64_t n_kv = std::min(TILE_KV, item.kv1 - kv);
            find_visible(item, 0, item.n_rows, kv, n_kv);
            if (n_visible > 0 && sees_little(item, kv, n_kv)) {
                add_tile_by_token(item, kv, n_kv);
            } else if (n_visible > 0) {
                add_tile(item, kv);
            }
        }
        return buf.out;
    }

  private:
    const attn_inputs & in;
    const attn_plan   & plan;
    item_buffers        buf;

    // The cache rows of the tile that some query row in question may see. The others are not touched: what they hold
    // may be anything.
    int64_t visible[TILE_KV];
    int64_t n_visible;

    // The query rows that may see any of them lie from first_row on, before end_row. With a causal mask many rows come
    // before; where sequences share a cache, those of others on both sides.
    int64_t first_row;
    int64_t end_row;

    float bias[TILE_KV]; // of one mask row, see read_bias

    // Whether the tokens together see at most half of what they would if each saw all visible cache rows: sequences in one
    // cache that grow in turn. It is then cheaper to take one token after the other, unless their rows make a matrix.
    bool sees_little(const attn_item & item, int64_t kv, int64_t n_kv) const {
        const bool one_token = next_token(item, first_row) >= end_row;
        if (in.mask == nullptr || one_token || end_row - first_row >= GEMM_ROWS) {
            return false;
        }
        int64_t n_tokens = 0;
        int64_t n_pairs  = 0;
        for (int64_t r = first_row; r < end_row; r = next_token(item, r)) {
            n_pairs  += count(seen_by(item, r, kv, n_kv));
            n_tokens += 1;
        }
        return 2*n_pairs <= n_tokens*n_visible;
    }

    void add_tile_by_token(const attn_item & item, int64_t kv, int64_t n_kv) {
        for (int64_t r = first_row, end = end_row; r < end; r = next_token(item, r)) {
            find_visible(item, r, std::min(end, next_token(item, r)), kv, n_kv);
            if (n_visible > 0) {
                add_tile(item, kv);
            }
        }
    }

    // the first query row of the token after that of r
    int64_t next_token(const attn_item & item, int64_t r) const { return (token_of(item, r) + 1)*plan.n_group - item.row0; }

    void add_tile(const attn_item & item, int64_t kv) {
        const char * k_head = in.head_data(in.k, item.head_kv, item.stream);
        const char * v_head = in.head_data(in.v, item.head_kv, item.stream);
        const char * k_rows[TILE_KV];
        const char * v_rows[TILE_KV];
        for (int64_t t = 0; t < n_visible; ++t) {
            k_rows[t] = k_head + visible[t]*in.k->nb[1];
            v_rows[t] = v_head + visible[t]*in.v->nb[1];
        }

        const int64_t n_rows = end_row - first_row;
        const float * q      = buf.q      + first_row*plan.dk_pad;
        float       * scores = buf.scores + first_row*TILE_KV;
        float       * o      = buf.out.o  + first_row*plan.dv_pad;

        if (as_matrix(item, in.k_ops)) {
            multiply_k(q, n_rows, k_rows, scores);
        } else {
            in.k_ops->dot(q, n_rows, k_rows, n_visible, plan.dk, scores, TILE_KV, buf.k_tile,
                          upcoming(in.v, v_head, kv, item.kv1));
        }
        for (int64_t r = first_row; r < end_row;) {
            const int64_t end = in.mask ? std::min(end_row, end_of_mask_row(item, r)) : end_row;
            read_bias(item, r);
            for (; r < end; ++r) {
                update_softmax(r);
            }
        }
        if (as_matrix(item, in.v_ops)) {
            multiply_v(scores, n_rows, v_rows, o);
        } else {
            // behind the last tile mostly comes the first one of the next head
            const bool is_last = kv + TILE_KV >= item.kv1;
            in.v_ops->add(scores, TILE_KV, n_rows, v_rows, n_visible, plan.dv, o, buf.v_tile,
                          is_last ? upcoming(in.k, k_head + in.k->nb[2], item.kv0, item.kv1)
                                  : upcoming(in.k, k_head, kv + TILE_KV, item.kv1));
        }
    }

    // cache rows of one head from kv on, of one tile and before kv1
    static upcoming_rows upcoming(const ggml_tensor * cache, const char * head, int64_t kv, int64_t kv1) {
        const size_t stride = cache->nb[1];
        return { head + kv*stride, stride, ggml_row_size(cache->type, cache->ne[0]), std::min(TILE_KV, kv1 - kv) };
    }

    static bool as_matrix(const attn_item & item, const row_ops * ops) { return item.n_rows >= ops->best_rows; }

    int64_t token_of(const attn_item & item, int64_t r) const { return (item.row0 + r) / plan.n_group; }

    int64_t head_of(const attn_item & item, int64_t r) const {
        return item.head_kv*plan.n_group + (item.row0 + r) % plan.n_group;
    }

    void start(const attn_item & item) {
        for (int64_t r = 0; r < item.n_rows; ++r) {
            const float * x = in.q_row(token_of(item, r), head_of(item, r), item.stream);
            float       * y = buf.q + r*plan.dk_pad;
            for (int64_t i = 0; i < plan.dk; ++i) {
                y[i] = x[i] * in.scale;
            }
            std::fill(y + plan.dk, y + plan.dk_pad, 0.0f);
            if (!as_matrix(item, in.k_ops)) {
                in.k_ops->prepare(y, plan.dk);
            }
            buf.slopes[r] = in.slope(head_of(item, r));
            buf.out.m[r]  = -INFINITY;
            buf.out.s[r]  = 0.0f;
        }
        std::fill(buf.out.o, buf.out.o + item.n_rows*plan.dv_pad, 0.0f);
    }

    // of query rows from..to - 1
    void find_visible(const attn_item & item, int64_t from, int64_t to, int64_t kv, int64_t n_kv) {
        seen_rows seen   = {};
        int64_t   n_seen = in.mask ? 0 : n_kv;
        first_row = from;
        end_row   = to;
        for (int64_t r = from; n_seen < n_kv && r < to; r = end_of_mask_row(item, r)) {
            const seen_rows more = seen_by(item, r, kv, n_kv);
            for (int64_t t = 0; t < TILE_KV; ++t) {
                seen[t] |= more[t];
            }
            n_seen    = count(seen);
            first_row = n_seen == 0 ? end_of_mask_row(item, r) : first_row;
        }
        while (in.mask && end_row > end_of_mask_row(item, first_row) && count(seen_by(item, end_row - 1, kv, n_kv)) == 0) {
            end_row = start_of_mask_row(item, end_row - 1);
        }
        n_visible = 0;
        for (int64_t t = 0; t < n_kv; ++t) {
            visible[n_visible] = kv + t;
            n_visible += n_seen == n_kv || seen[t];
        }
    }

    // Heads mostly share a row of the mask. Those with that of query row r are from start_of_mask_row(r) on, before
    // end_of_mask_row(r).
    int64_t heads_a_mask_row() const { return in.mask->ne[2] == 1 ? plan.n_group : 1; }

    int64_t start_of_mask_row(const attn_item & item, int64_t r) const {
        return std::max<int64_t>(0, (item.row0 + r)/heads_a_mask_row()*heads_a_mask_row() - item.row0);
    }

    int64_t end_of_mask_row(const attn_item & item, int64_t r) const {
        return ((item.row0 + r)/heads_a_mask_row() + 1)*heads_a_mask_row() - item.row0;
    }

    // which of cache rows kv .. kv + n_kv - 1 query row r sees
    seen_rows seen_by(const attn_item & item, int64_t r, int64_t kv, int64_t n_kv) const {
        const ggml_fp16_t * mask = in.mask_row(token_of(item, r), head_of(item, r), item.stream) + kv;
        seen_rows           seen = {};
        if (n_kv == TILE_KV) { // a number of rows that is known lets the compiler use vectors
            for (int64_t t = 0; t < TILE_KV; ++t) {
                seen[t] = mask[t] != F16_NEG_INF;
            }
        } else {
            for (int64_t t = 0; t < n_kv; ++t) {
                seen[t] = mask[t] != F16_NEG_INF;
            }
        }
        return seen;
    }

    void multiply_k(const float * q, int64_t n_rows, const char * const * k_rows, float * scores) {
        for (int64_t t = 0; t < n_visible; ++t) {
            in.k_ops->to_f32(k_rows[t], plan.dk, buf.k_tile + t*plan.dk_pad);
        }
        std::fill(buf.k_tile + n_visible*plan.dk_pad, buf.k_tile + TILE_KV*plan.dk_pad, 0.0f);
        for (int64_t i = 0; i < plan.dk_pad; i += 4) {
            for (int64_t t = 0; t < TILE_KV; t += 4) {
                transpose_4(buf.k_cols + i*TILE_KV + t, TILE_KV, buf.k_tile + t*plan.dk_pad + i, plan.dk_pad);
            }
        }
        std::fill(scores, scores + n_rows*TILE_KV, 0.0f);
        simd_gemm(scores, q, buf.k_cols, n_rows, plan.dk_pad, TILE_KV);
    }

    void multiply_v(const float * weights, int64_t n_rows, const char * const * v_rows, float * o) {
        for (int64_t t = 0; t < n_visible; ++t) {
            in.v_ops->to_f32(v_rows[t], plan.dv, buf.v_tile + t*plan.dv_pad);
        }
        std::fill(buf.v_tile + n_visible*plan.dv_pad, buf.v_tile + TILE_KV*plan.dv_pad, 0.0f);
        simd_gemm(o, weights, buf.v_tile, n_rows, TILE_KV, plan.dv_pad);
    }

    // bias = what query row r adds to the scores of the visible cache rows, 0 without a mask, and -INFINITY past them
    void read_bias(const attn_item & item, int64_t r) {
        if (in.mask == nullptr) {
            std::fill(bias, bias + n_visible, 0.0f);
            std::fill(bias + n_visible, bias + TILE_KV, -INFINITY);
            return;
        }
        const ggml_fp16_t * mask = in.mask_row(token_of(item, r), head_of(item, r), item.stream);
        ggml_fp16_t         values[TILE_KV];
        if (n_visible == TILE_KV) {
            memcpy(values, mask + visible[0], sizeof(values));
        } else {
            for (int64_t t = 0; t < n_visible; ++t) {
                values[t] = mask[visible[t]];
            }
            std::fill(values + n_visible, values + TILE_KV, F16_NEG_INF);
        }
        for (int64_t t = 0; t < TILE_KV; t += 16) {
            store_16(bias + t, load_16(values + t));
        }
    }

    // Turns the scores of query row r into weights exp(score - M), 0 past n_visible, and brings O and S to the new M.
    void update_softmax(int64_t r) {
        float * x = buf.scores + r*TILE_KV;
        if (in.softcap != 0.0f) {
            for (int64_t t = 0; t < n_visible; ++t) {
                x[t] = in.softcap * tanhf(x[t]);
            }
        }
        std::fill(x + n_visible, x + TILE_KV, 0.0f);
        const float tile_max = add_bias(x, bias, buf.slopes[r]);
        if (tile_max == -INFINITY) {
            std::fill(x, x + TILE_KV, 0.0f);
            return;
        }
        float & m = buf.out.m[r];
        float & s = buf.out.s[r];
        if (tile_max > m) {
            const float shrink = expf(m - tile_max);
            ggml_vec_scale_f32(plan.dv, buf.out.o + r*plan.dv_pad, shrink);
            s *= shrink;
            m  = tile_max;
        }
        s += exponentiate(x, m);
    }
};

// Adds the attention sink of a head, normalises one row and writes it where the op's output has it.
void finish_row(const attn_inputs & in, const attn_plan & plan, ggml_tensor * dst, int64_t row_all,
                float * o, float m, float s) {
    const int64_t row     = row_all % plan.n_rows;
    const int64_t head_kv = row_all / plan.n_rows % plan.n_head_kv;
    const int64_t stream  = row_all / plan.n_rows / plan.n_head_kv;
    const int64_t head    = head_kv*plan.n_group + row % plan.n_group;
    const int64_t token   = row / plan.n_group;
    if (in.sinks) {
        const float sink = ((const float *) in.sinks->data)[head];
        if (sink > m) {
            const float shrink = expf(m - sink);
            ggml_vec_scale_f32(plan.dv, o, shrink);
            s = s*shrink + 1.0f;
        } else {
            s += expf(sink - m);
        }
    }
    ggml_vec_scale_f32(plan.dv, o, s == 0.0f ? 0.0f : 1.0f/s);
    memcpy((char *) dst->data + head*dst->nb[1] + token*dst->nb[2] + stream*dst->nb[3], o, plan.dv * sizeof(float));
}

// Combines the partial results of one query row over all chunks, [chunk][M, S, O], into state `out`.
void combine(const attn_plan & plan, const float * partials, softmax_state out) {
    *out.m = -INFINITY;
    for (int64_t c = 0; c < plan.n_chunks; ++c) {
        *out.m = std::max(*out.m, partials[c * plan.partial_size()]);
    }
    *out.s = 0.0f;
    std::fill(out.o, out.o + plan.dv, 0.0f);
    for (int64_t c = 0; c < plan.n_chunks; ++c) {
        const float * x = partials + c * plan.partial_size();
        if (x[1] != 0.0f) {
            const float shrink = expf(x[0] - *out.m);
            *out.s += shrink * x[1];
            ggml_vec_mad_f32(plan.dv, out.o, x + 2, shrink);
        }
    }
}

bool rows_contiguous(const ggml_tensor * t) {
    return t->nb[0] == ggml_type_size(t->type);
}

bool is_enabled() {
    static const bool enabled = [] {
        const char * value = getenv("GGML_KV_ATTN");
        return value == nullptr || strcmp(value, "0") != 0;
    }();
    return enabled;
}

} // namespace
} // namespace kv_attn

using namespace kv_attn;

bool ggml_kv_attn_supported(const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    return is_enabled() && q->type == GGML_TYPE_F32 && find_row_ops(k->type) && find_row_ops(v->type) &&
           rows_contiguous(q) && rows_contiguous(k) && rows_contiguous(v) &&
           k->ne[1] > 0 && k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 &&
           q->ne[3] % k->ne[3] == 0 && q->ne[3] % v->ne[3] == 0;
}

size_t ggml_kv_attn_work_size(const ggml_tensor * dst, int n_threads) {
    if (!ggml_kv_attn_supported(dst)) {
        return 0;
    }
    const attn_plan plan = make_plan(dst);
    return sizeof(float) * (LINE + plan.scratch_size() * n_threads + plan.partials_size());
}

void ggml_kv_attn_forward(const ggml_compute_params * params, ggml_tensor * dst) {
    const attn_inputs in(dst);
    const attn_plan   plan = make_plan(dst);

    const uintptr_t line = LINE*sizeof(float);
    float * work     = (float *) (((uintptr_t) params->wdata + line - 1) / line * line);
    float * scratch  = work + params->ith * plan.scratch_size();
    float * partials = work + params->nth * plan.scratch_size();

    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    item_worker worker(in, plan, scratch);
    for (int64_t i = params->ith; i < plan.n_items(); i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const attn_item     item  = make_item(plan, i);
        const softmax_state state = worker.run(item);
        for (int64_t r = 0; r < item.n_rows; ++r) {
            const int64_t row_all = (item.stream*plan.n_head_kv + item.head_kv)*plan.n_rows + item.row0 + r;
            float * o = state.o + r*plan.dv_pad;
            if (plan.n_chunks == 1) {
                finish_row(in, plan, dst, row_all, o, state.m[r], state.s[r]);
            } else {
                float * partial = partials + (row_all*plan.n_chunks + item.kv0/plan.chunk_kv) * plan.partial_size();
                partial[0] = state.m[r];
                partial[1] = state.s[r];
                memcpy(partial + 2, o, plan.dv * sizeof(float));
            }
        }
    }

    if (plan.n_chunks == 1) {
        return;
    }
    ggml_barrier(params->threadpool);

    for (int64_t row_all = params->ith; row_all < plan.n_rows_all(); row_all += params->nth) {
        float m, s;
        combine(plan, partials + row_all*plan.n_chunks*plan.partial_size(), { &m, &s, scratch });
        finish_row(in, plan, dst, row_all, scratch, m, s);
    }
}

#else

bool ggml_kv_attn_supported(const ggml_tensor *) {
    return false;
}

size_t ggml_kv_attn_work_size(const ggml_tensor *, int) {
    return 0;
}

void ggml_kv_attn_forward(const ggml_compute_params *, ggml_tensor *) {
    GGML_ABORT("kv-attn: not built for this processor");
}

#endif
