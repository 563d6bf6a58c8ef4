#pragma once

#include "llama.h"

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

// Per-layer types of the KV cache (--kv-layers): a policy on its way from the context's parameters to the caches.
//
// The memory of a model is made deep inside llama_model::create_memory(). What the policy says is kept for that time, on
// that thread, so that a cache finds it without any constructor on the way knowing of it. Which kinds of memory may have
// a policy is decided in one place, when the memory is there: a kind that nobody has looked at is refused.

struct llama_cparams;
struct llama_hparams;
struct llama_memory_i;
struct llama_memory_params;
struct llama_model;

using llama_kv_filter = std::function<bool(int32_t il)>;

// Settles what has to be known before a context is made: the policy's text is valid, and flash attention is on when the
// policy quantizes V and leaves the choice open. Logs one line and returns false when the text is not valid.
bool llama_kv_layers_prepare(llama_context_params & params);

// model.create_memory(params_mem, cparams), under the policy of params.
// throws llama_kv_policy_error, or std::runtime_error when the model or its memory cannot have per-layer types
llama_memory_i * llama_kv_layers_create_memory(
        const llama_model          & model,
        const llama_context_params & params,
        const llama_memory_params  & params_mem,
        const llama_cparams        & cparams);

// Applies the policy to the model's layers, once per context: the first memory that knows which layers keep a cache calls
// it, later calls and calls without a policy do nothing.
//   filter: the layer is kept by this memory; may be null
// throws std::runtime_error when two rules meet on one layer
void llama_kv_layers_resolve(const llama_hparams & hparams, const llama_kv_filter & filter);

// One cache that is being made: the types of its layers, with or without a policy.
class llama_kv_layers {
public:
    // one side, K or V
    struct side {
        ggml_type base;               // without a policy, and for layers that no rule names
        bool      planned;            // a policy is at work
        std::vector<ggml_type> taken; // the types that this cache was given, under a policy
    };

    struct types {
        ggml_type type_k;
        ggml_type type_v;
    };

    side type_k;
    side type_v;

    // type_k, type_v: of layers that no rule names
    // v_trans:        the cache stores V transposed (no flash attention)
    llama_kv_layers(const llama_hparams & hparams, const llama_kv_filter & filter, ggml_type type_k, ggml_type type_v, bool v_trans);

    // The types of layer il, which is about to be allocated.
    // throws std::runtime_error when the layer cannot be stored so
    types at(uint32_t il);

    // for the log: the one type of all layers, or "mixed"
    static const char * name(const side & s);

    // some layer stores this side quantized
    static bool any_quantized(const side & s);

    // Ends the making of a cache, with all layers in place: logs the types of each, and switches a rotation off that no
    // layer needs because all belong to another cache.
    //   rot_k, rot_v: 0 or false: the cache rotates no layer's K, or V
    //   can_shift:    the K-shift works on this model
    // returns whether it works with the types, too
    template <typename layers_t, typename rot_t>
    bool settle(const layers_t & layers, rot_t & rot_k, rot_t & rot_v, bool can_shift) const {
        std::vector<stored> all;
        for (const auto & layer : layers) {
            all.push_back({ layer.il, layer.k, layer.v });
        }
        if (n_allocated == 0 && !all.empty()) {
            rot_k = any_quantized(all, true)  ? rot_k : 0;
            rot_v = any_quantized(all, false) ? rot_v : 0;
        }
        return settle(all, rot_k != 0, rot_v != 0, can_shift);
    }

    // For trees whose state files do not show a rotation: marks the type words when a policy's quantized caches have none.
    static int32_t state_mark();

private:
    struct stored {
        uint32_t            il;
        const ggml_tensor * k;
        const ggml_tensor * v; // may be null
    };

    static bool any_quantized(const std::vector<stored> & layers, bool is_k);

    bool settle(const std::vector<stored> & layers, bool rot_k, bool rot_v, bool can_shift) const;

    const llama_hparams & hparams;

    bool     v_trans;
    uint32_t n_allocated = 0;
};

// The rotation tensors that apply to one layer: those of the sides that it stores quantized.
struct llama_kv_rotation {
    ggml_tensor * self_k_rot;
    ggml_tensor * self_v_rot;
};

//   mctx: the context of the cache that holds the layer
template <typename mctx_t>
llama_kv_rotation llama_kv_layer_rotation(const mctx_t * mctx, int32_t il, ggml_tensor * k_rot, ggml_tensor * v_rot) {
    const auto [quantized_k, quantized_v] = mctx->layer_quantized(il);

    return { quantized_k ? k_rot : nullptr, quantized_v ? v_rot : nullptr };
}

// what a type word of a state file says
std::string llama_kv_state_type_name(int32_t state_type);

// Logs, as an error, why a saved state is refused, and keeps it for whoever answers for the refusal on this thread.
//   format: begins with the name of the function that refuses, "%s: "
#ifdef __GNUC__
__attribute__((format(printf, 1, 2)))
#endif
void llama_kv_refuse(const char * format, ...);

// What this thread refused last, without that name, and forgets it; otherwise where there is nothing.
LLAMA_API std::string llama_kv_refusal(const std::string & otherwise);
