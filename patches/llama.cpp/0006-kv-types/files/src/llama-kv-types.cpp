#include "llama-kv-types.h"

#include "llama-kv-transform.h"

#include "ggml-backend.h"
#include "../ggml/src/kv-types.h"

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

// values of half a block
static const int64_t HALF = 32;

static bool is_split(ggml_type type) {
    return type == GGML_TYPE_K5X3 || type == GGML_TYPE_K4X2;
}

bool llama_kv_type_is_rotated(ggml_type type) {
    return ggml_is_quantized(type) && !is_split(type);
}

static void check_side(uint32_t il, const char * side, const ggml_tensor * tensor, bool rotated, bool ordered) {
    if (!tensor || !ggml_kv_type_is(tensor->type)) {
        return;
    }

    const bool is_key = side[0] == 'K';

    const char * missing =
        is_split(tensor->type) && !is_key     ? "is a type for K alone" :
        is_split(tensor->type) && !ordered    ? "wants keys in the order of what they carry; give a transform that orders them "
                                                "(kvquant calibrate --policy with this type, --kv-transform)" :
        !is_split(tensor->type) && !rotated   ? "wants the cache's rotation, which is off, or has no matrix for heads of this width" :
        tensor->buffer && !ggml_backend_buffer_is_host(tensor->buffer) ? "runs on the CPU alone; keep the cache there (-nkvo)" : nullptr;
    if (missing) {
        throw std::runtime_error("layer " + std::to_string(il) + ": " + side + " type " + ggml_type_name(tensor->type) + " " + missing);
    }
}

void llama_kv_types_check(uint32_t il, const ggml_tensor * k, const ggml_tensor * v, bool rot_k, bool rot_v, bool ordered) {
    check_side(il, "K", k, rot_k, ordered);
    check_side(il, "V", v, rot_v, ordered);
}

// x, n values `stride` apart, times the Hadamard matrix, n a power of two
static void times_hadamard(float * x, int64_t n, int64_t stride) {
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t i = 0; i < n; ++i) {
            if (i & half) {
                continue;
            }
            const float a = x[i*stride], b = x[(i + half)*stride];
            x[i*stride]          = a + b;
            x[(i + half)*stride] = a - b;
        }
    }
    for (int64_t i = 0; i < n; ++i) {
        x[i*stride] /= std::sqrt((float) n);
    }
}

// Puts the rotation of halves between a matrix [n, n, n_head] and what is stored.
//   stored_rows: its rows give what is stored, otherwise its columns take it
static void rotate_halves(ggml_tensor * matrix, bool stored_rows) {
    const int64_t n = matrix->ne[0];

    std::vector<float> values(ggml_nelements(matrix));
    ggml_backend_tensor_get(matrix, values.data(), 0, ggml_nbytes(matrix));

    for (float * head = values.data(); head < values.data() + values.size(); head += n*n) {
        for (int64_t first = 0; first < n; first += HALF) {
            for (int64_t i = 0; i < n; ++i) {
                times_hadamard(stored_rows ? head + first*n + i : head + i*n + first, HALF, stored_rows ? n : 1);
            }
        }
    }
    ggml_backend_tensor_set(matrix, values.data(), 0, ggml_nbytes(matrix));
}

void llama_kv_types_rotate_halves(llama_kv_layer_transform * transform, ggml_type type_k) {
    if (!transform || !transform->ordered || transform->halves || !is_split(type_k)) {
        return;
    }

    rotate_halves(transform->forward, true);
    rotate_halves(transform->query,   true);
    rotate_halves(transform->inverse, false); // the Hadamard matrix is its own inverse
    transform->halves = true;
}
