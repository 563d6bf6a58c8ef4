#include "llama-kv-type.h"

#include "llama-impl.h"
#include "llama-kv-policy.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

// What one context asked for, and what it means for the model's layers once they are known.
struct llama_kv_plan {
    llama_kv_policy policy;

    ggml_type type_k;
    ggml_type type_v;

    bool resolved = false;

    llama_kv_layer_types types;
};

// [n_layer] types of one side
static const std::vector<ggml_type> & side_types(const llama_kv_plan & plan, bool is_k) {
    return is_k ? plan.types.type_k : plan.types.type_v;
}

static bool is_own(ggml_type type) {
    return type != GGML_TYPE_COUNT;
}

void llama_kv_type::resolve(uint32_t n_layer, const std::function<bool(uint32_t il)> & keeps_cache) const {
    if (!plan || plan->resolved) {
        return;
    }

    std::vector<bool> keeps(n_layer);
    for (uint32_t il = 0; il < n_layer; ++il) {
        keeps[il] = keeps_cache(il);
    }

    try {
        plan->types = plan->policy.resolve(keeps, plan->type_k, plan->type_v);
    } catch (const llama_kv_policy_error & err) {
        throw std::runtime_error(std::string("--kv-layers: ") + err.what());
    }
    plan->resolved = true;

    for (const auto & warning : plan->types.warnings) {
        LLAMA_LOG_WARN("--kv-layers: %s\n", warning.message.c_str());
    }
}

ggml_type llama_kv_type::take(uint32_t il, uint32_t n_embd_head, bool transposed) const {
    if (!plan) {
        return type;
    }

    const ggml_type     res  = side_types(*plan, is_k).at(il);
    const std::string   what = "--kv-layers: layer " + std::to_string(il) + ": " + (is_k ? "K" : "V") + " type " + ggml_type_name(res);

    if (n_embd_head % ggml_blck_size(res) != 0) {
        throw std::runtime_error(what + " has blocks of " + std::to_string(ggml_blck_size(res)) +
                " values, which do not divide a head of " + std::to_string(n_embd_head));
    }
    if (transposed && ggml_is_quantized(res)) {
        throw std::runtime_error(what + " requires flash attention (-fa on)");
    }

    return res;
}

bool llama_kv_type::any_quantized() const {
    if (!plan) {
        return ggml_is_quantized(type);
    }

    const auto & types = side_types(*plan, is_k);

    return std::any_of(types.begin(), types.end(), [](ggml_type t) { return is_own(t) && ggml_is_quantized(t); });
}

bool llama_kv_type::is_mixed() const {
    if (!plan) {
        return false;
    }

    for (const bool k : { true, false }) {
        const auto & types = side_types(*plan, k);
        const auto   first = std::find_if(types.begin(), types.end(), is_own);
        if (std::any_of(first, types.end(), [&](ggml_type t) { return is_own(t) && t != *first; })) {
            return true;
        }
    }

    return false;
}

//
// llama_kv_types
//

static std::shared_ptr<llama_kv_plan> make_plan(const llama_model & model, const llama_context_params & params) {
    if (!params.kv_layers) {
        return nullptr;
    }

    // dflash stores K and V from an attention of its own, which rotates every layer alike
    const char * refused =
        params.ctx_type == LLAMA_CONTEXT_TYPE_MTP            ? "an MTP context takes one type for all layers" :
        model.hparams.is_mla()                               ? "MLA caches hold compressed keys only" :
        strcmp(llm_arch_name(model.arch), "dflash") == 0     ? "dflash models take one type for all layers" : nullptr;
    if (refused) {
        throw std::runtime_error(std::string("--kv-layers is not supported here: ") + refused +
                "; use --cache-type-k and --cache-type-v");
    }

    auto res = std::make_shared<llama_kv_plan>();

    res->policy = llama_kv_policy::parse(params.kv_layers);
    res->type_k = params.type_k;
    res->type_v = params.type_v;

    LLAMA_LOG_INFO("llama_context: kv_layers             = %s\n", res->policy.str().c_str());

    return res;
}

llama_kv_types::llama_kv_types(const llama_model & model, const llama_context_params & params) :
    llama_kv_types(params, make_plan(model, params)) {
}

llama_kv_types::llama_kv_types(const llama_context_params & params, std::shared_ptr<llama_kv_plan> plan) :
    k(params.type_k, plan, true), v(params.type_v, plan, false), plan(plan) {
}

void llama_kv_types::check_used(bool has_kv) const {
    if (!plan || plan->resolved) {
        return;
    }
    if (has_kv) {
        throw std::runtime_error("--kv-layers is not supported here: this model keeps an indexer or compressed key cache beside "
                "its K and V; use --cache-type-k and --cache-type-v");
    }

    LLAMA_LOG_WARN("--kv-layers: '%s' has no effect, the model keeps no KV cache\n", plan->policy.str().c_str());
}

bool llama_kv_types_prepare(llama_context_params & params) {
    if (!params.kv_layers) {
        return true;
    }

    try {
        const auto policy = llama_kv_policy::parse(params.kv_layers);

        const bool quantizes_v = std::any_of(policy.rules.begin(), policy.rules.end(), [](const llama_kv_rule & rule) {
            return is_own(rule.type_v) && ggml_is_quantized(rule.type_v);
        });
        if (quantizes_v && params.flash_attn_type == LLAMA_FLASH_ATTN_TYPE_AUTO) {
            LLAMA_LOG_INFO("%s: enabling flash_attn since it is required for quantized V cache\n", __func__);
            params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        }
    } catch (const llama_kv_policy_error & err) {
        LLAMA_LOG_ERROR("%s: --kv-layers: %s\n", __func__, err.what());
        return false;
    }

    return true;
}

//
// state files, K-shift, logs
//

static const int32_t LLAMA_KV_STATE_UNROTATED = 1 << 16;

int32_t llama_kv_state_type(ggml_type type, bool unrotated) {
    return type | (unrotated && ggml_is_quantized(type) ? LLAMA_KV_STATE_UNROTATED : 0);
}

std::string llama_kv_state_type_name(int32_t state_type) {
    const int32_t     type = state_type & ~LLAMA_KV_STATE_UNROTATED;
    const std::string name = type >= 0 && type < GGML_TYPE_COUNT ? ggml_type_name((ggml_type) type) : "type " + std::to_string(type);

    return type == state_type ? name : name + " without rotation";
}

bool llama_kv_type_can_shift(ggml_type type, uint32_t n_rot, uint32_t n_embd_head) {
    // RoPE has f32 and f16 kernels; quantized heads are converted to f32, which undoes their rotation only as a whole
    return ggml_is_quantized(type) ? n_rot == n_embd_head : type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
}

std::string llama_kv_tensor_desc(const ggml_tensor * tensor, bool rotated) {
    if (!tensor) {
        return "none";
    }

    return format("%-6s (%8.2f MiB, %10zu B)%s", ggml_type_name(tensor->type),
            ggml_nbytes(tensor)/1024.0/1024.0, ggml_nbytes(tensor), rotated ? " rotated" : "");
}
