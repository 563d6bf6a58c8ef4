#pragma once

#include "llama.h"

#include <cstdint>
#include <memory>
#include <vector>

// An exact change of K before it is stored (--kv-transform FILE), so that quantizing it costs less. Per layer and KV head
// it holds a centre c and an invertible matrix M, a diagonal or a full one:
//
//     stored: M (k - c)          query: M^-T q          (M^-T q)^T M (k - c) = q^T k - q^T c
//
// q^T c is the same for every key of a query, so the softmax does not see it. The Hadamard rotation follows as before.
//
// The file is read while the memory of a context is made, and each cache takes what belongs to its layers, as it does with
// a policy of per-layer types: no constructor on the way knows of it, and a cache that shares another's layers has theirs.

struct llama_model;

class llama_io_read_i;
class llama_io_write_i;

// What happens to the keys of one layer.
struct llama_kv_layer_transform {
    uint32_t il;     // in the model
    uint64_t digest; // of the numbers, which a state file carries

    bool centred  = false; // c is not 0
    bool diagonal = false; // M is

    ggml_tensor * centre  = nullptr; // [n_embd_head_k, n_head_kv]
    ggml_tensor * forward = nullptr; // M    [n_embd_head_k, n_head_kv] or [n_embd_head_k, n_embd_head_k, n_head_kv]; null: 1
    ggml_tensor * query   = nullptr; // M^-T [n_embd_head_k, n_head]    or the same
    ggml_tensor * inverse = nullptr; // M^-1, of the shape of M

    mutable bool asked = false; // the queries of the graph that is being built are transformed

    // q [n_embd_head_k, n_head, n_tokens], k [n_embd_head_k, n_head_kv, n_tokens], f32
    ggml_tensor * apply_q(ggml_context * ctx, ggml_tensor * q) const;
    ggml_tensor * apply_k(ggml_context * ctx, ggml_tensor * k) const;

    // keys again, from what apply_k gave
    ggml_tensor * undo_k(ggml_context * ctx, ggml_tensor * k) const;

    // both sides of a layer's attention
    //   sinks: its attention sinks, null for none
    //   k:     null when the layer reads the keys of another
    // throws std::runtime_error when this cannot be exact
    void apply(ggml_context * ctx, const ggml_tensor * sinks, ggml_tensor * & q, ggml_tensor * & k) const;
};

using llama_kv_layer_transform_ptr = std::shared_ptr<const llama_kv_layer_transform>;

// The transform that params name, while a context's memory is made on this thread.
class llama_kv_transform_scope {
public:
    //   n_layer: of the model, those of extra heads included
    //   special: a context of a kind of its own, which reads the keys of another
    // throws std::runtime_error when the file is damaged, made for another model, or cannot be exact on this one
    llama_kv_transform_scope(const llama_model & model, const llama_context_params & params, uint32_t n_layer, bool special);
    ~llama_kv_transform_scope();

    // Ends the making of the memory.
    //   keeps_keys: it holds caches; takes: of a kind that was looked at
    // throws std::runtime_error when a layer that the file names is in no cache
    void settle(bool keeps_keys, bool takes) const;
};

// the transform of layer il, for the cache that is being made on this thread; null: keys are stored as they are
llama_kv_layer_transform_ptr llama_kv_transform_take(uint32_t il);

// Transforms the queries and keys of layer il.
//   mctx: the context of the cache that holds the layer
template <typename mctx_t>
void llama_kv_transform_apply(
        ggml_context * ctx, const mctx_t * mctx, int32_t il, const ggml_tensor * sinks, ggml_tensor * & q, ggml_tensor * & k) {
    if (const auto * transform = mctx->layer_transform(il)) {
        transform->apply(ctx, sinks, q, k);
    }
}

// A graph reads the keys of a layer: throws std::runtime_error when its queries were not transformed, because the model
// computes attention in a way of its own. transform may be null.
void llama_kv_transform_check_asked(const llama_kv_layer_transform * transform);

//
// state files: the type word of transformed keys is marked, and their digest follows; transform may be null
//

static const int32_t LLAMA_KV_STATE_TRANSFORMED = 1 << 17;

int32_t llama_kv_transform_state_mark(const llama_kv_layer_transform * transform);

void llama_kv_transform_state_write(llama_io_write_i & io, const llama_kv_layer_transform * transform);

// logs why and returns false when the keys were transformed otherwise
bool llama_kv_transform_state_read(llama_io_read_i & io, const llama_kv_layer_transform * transform);
