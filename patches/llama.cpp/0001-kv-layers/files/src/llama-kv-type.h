#pragma once

#include "llama.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

struct llama_model;
struct llama_kv_plan;

// The type of one side (K or V) of a KV cache: one ggml type or, under a policy (--kv-layers), one type per layer.
//
// It stands where a plain ggml_type stood on the way from the context to the caches and converts from and to one, so a
// memory that knows nothing of policies still compiles. Such a memory drops the policy, see llama_kv_types::check_used().
class llama_kv_type {
public:
    llama_kv_type(ggml_type type) : type(type) {}
    llama_kv_type(ggml_type type, std::shared_ptr<llama_kv_plan> plan, bool is_k) : type(type), plan(std::move(plan)), is_k(is_k) {}

    // the type of layers that no rule names
    operator ggml_type() const { return type; }

    // a policy is at work
    bool has_policy() const { return plan != nullptr; }

    // Applies the policy's rules, once per context: the first cache that knows all layers calls it, later calls are ignored.
    //   n_layer:     layers of the model
    //   keeps_cache: the layer keeps a cache of its own, in this cache or in a sibling
    // throws std::runtime_error when two rules meet on one layer
    void resolve(uint32_t n_layer, const std::function<bool(uint32_t il)> & keeps_cache) const;

    // The type of layer il for a cache that is about to allocate it.
    //   n_embd_head: values per head
    //   transposed:  the cache stores this side transposed (V without flash attention)
    // throws std::runtime_error when the layer cannot be stored so
    ggml_type take(uint32_t il, uint32_t n_embd_head, bool transposed) const;

    // some layer stores this side quantized
    bool any_quantized() const;

    // some layers differ, so that no single pair of types gives the same caches
    bool is_mixed() const;

private:
    ggml_type type;

    std::shared_ptr<llama_kv_plan> plan; // shared by both sides; null without a policy

    bool is_k = false;
};

// The two sides of one context's caches.
struct llama_kv_types {
    llama_kv_type k;
    llama_kv_type v;

    // throws llama_kv_policy_error, or std::runtime_error when the model cannot have per-layer types
    llama_kv_types(const llama_model & model, const llama_context_params & params);

    // Throws std::runtime_error when the memory that was made for the model ignored the policy.
    //   has_kv: the memory has a KV cache (not null and not purely recurrent)
    void check_used(bool has_kv) const;

private:
    std::shared_ptr<llama_kv_plan> plan;

    llama_kv_types(const llama_context_params & params, std::shared_ptr<llama_kv_plan> plan);
};

// Settles what has to be known before a context is made: the policy's text is valid, and flash attention is on when the
// policy quantizes V and leaves the choice open. Logs one line and returns false when the text is not valid.
bool llama_kv_types_prepare(llama_context_params & params);

// The type word of a state file. Under a mixed policy, a quantized tensor whose rotation was disabled by environment is
// marked: its type alone does not show it.
int32_t llama_kv_state_type(ggml_type type, bool unrotated);

// what a type word of a state file says
std::string llama_kv_state_type_name(int32_t state_type);

// whether the K-shift can turn a K tensor in place
//   n_rot: leading values of each head that RoPE turns
bool llama_kv_type_can_shift(ggml_type type, uint32_t n_rot, uint32_t n_embd_head);

// "q8_0   (    2.13 MiB,    2228224 B)", for the log line of a layer; tensor may be null
std::string llama_kv_tensor_desc(const ggml_tensor * tensor, bool rotated);
