#include "llama-kv-layers.h"

#include "llama-impl.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-policy.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <typeinfo>
#include <utility>

// What one context asked for, and what it means for the model's layers once they are known.
struct llama_kv_plan {
    llama_kv_policy policy;

    ggml_type type_k;
    ggml_type type_v;

    bool resolved = false;

    llama_kv_layer_types types;
};

// the plan of the context whose memory this thread is making; null without a policy
static thread_local llama_kv_plan * current_plan = nullptr;

struct llama_kv_plan_scope {
    llama_kv_plan_scope(llama_kv_plan * plan) { current_plan = plan; }
    ~llama_kv_plan_scope() { current_plan = nullptr; }
};

static bool is_own(ggml_type type) {
    return type != GGML_TYPE_COUNT;
}

//
// from the parameters to the memory
//

bool llama_kv_layers_prepare(llama_context_params & params) {
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

// newer trees count the layers of extra heads apart
template <typename hparams_t>
static auto layers_of(const hparams_t & hparams, int) -> decltype(uint32_t(hparams.n_layer_all)) { return hparams.n_layer_all; }
template <typename hparams_t>
static uint32_t layers_of(const hparams_t & hparams, long) { return hparams.n_layer; }

// a context of a kind of its own, such as the one for multi-token prediction; older trees have none
template <typename params_t>
static auto is_special(const params_t & params, int) -> decltype(params.ctx_type != 0) { return params.ctx_type != 0; }
template <typename params_t>
static bool is_special(const params_t &, long) { return false; }

static std::unique_ptr<llama_kv_plan> make_plan(const llama_model & model, const llama_context_params & params) {
    if (!params.kv_layers) {
        return nullptr;
    }

    // dflash stores K and V from an attention of its own, which rotates every layer alike
    const char * refused =
        is_special(params, 0)                                ? "an MTP context takes one type for all layers" :
        model.hparams.is_mla()                               ? "MLA caches hold compressed keys only" :
        strcmp(llm_arch_name(model.arch), "dflash") == 0     ? "dflash models take one type for all layers" : nullptr;
    if (refused) {
        throw std::runtime_error(std::string("--kv-layers is not supported here: ") + refused +
                "; use --cache-type-k and --cache-type-v");
    }

    auto res = std::make_unique<llama_kv_plan>();

    res->policy = llama_kv_policy::parse(params.kv_layers);
    res->type_k = params.type_k;
    res->type_v = params.type_v;

    LLAMA_LOG_INFO("llama_context: kv_layers             = %s\n", res->policy.str().c_str());

    return res;
}

// The memories whose caches were looked at. Not what derives from them, and not what keeps other caches beside them.
static bool takes_policy(const llama_memory_i & memory) {
    const auto & type = typeid(memory);
    return type == typeid(llama_kv_cache)      || type == typeid(llama_kv_cache_iswa) ||
           type == typeid(llama_memory_hybrid) || type == typeid(llama_memory_hybrid_iswa);
}

llama_memory_i * llama_kv_layers_create_memory(
        const llama_model          & model,
        const llama_context_params & params,
        const llama_memory_params  & params_mem,
        const llama_cparams        & cparams) {
    const auto plan = make_plan(model, params);

    llama_kv_plan_scope scope(plan.get());

    std::unique_ptr<llama_memory_i> memory(model.create_memory(params_mem, cparams));

    if (plan && (!memory || llm_arch_is_recurrent(model.arch))) {
        LLAMA_LOG_WARN("--kv-layers: '%s' has no effect, the model keeps no KV cache\n", plan->policy.str().c_str());
    } else if (plan && !takes_policy(*memory)) {
        throw std::runtime_error("--kv-layers is not supported here: this model keeps an indexer or compressed key cache beside "
                "its K and V; use --cache-type-k and --cache-type-v");
    }

    return memory.release();
}

void llama_kv_layers_resolve(const llama_hparams & hparams, const llama_kv_filter & filter) {
    llama_kv_plan * plan = current_plan;
    if (!plan || plan->resolved) {
        return;
    }

    std::vector<bool> keeps_cache(layers_of(hparams, 0));
    for (uint32_t il = 0; il < keeps_cache.size(); ++il) {
        keeps_cache[il] = hparams.has_kv(il) && (!filter || filter(il));
    }

    try {
        plan->types = plan->policy.resolve(keeps_cache, plan->type_k, plan->type_v);
    } catch (const llama_kv_policy_error & err) {
        throw std::runtime_error(std::string("--kv-layers: ") + err.what());
    }
    plan->resolved = true;

    for (const auto & warning : plan->types.warnings) {
        LLAMA_LOG_WARN("--kv-layers: %s\n", warning.message.c_str());
    }
}

//
// llama_kv_layers
//

llama_kv_layers::llama_kv_layers(
        const llama_hparams & hparams, const llama_kv_filter & filter, ggml_type type_k, ggml_type type_v, bool v_trans) :
    type_k{ type_k, current_plan != nullptr, {} },
    type_v{ type_v, current_plan != nullptr, {} },
    hparams(hparams), v_trans(v_trans) {
    llama_kv_layers_resolve(hparams, filter);
}

static void check_storable(uint32_t il, const char * side, ggml_type type, uint32_t n_embd_head, bool transposed) {
    const std::string what = "--kv-layers: layer " + std::to_string(il) + ": " + side + " type " + ggml_type_name(type);

    if (n_embd_head % ggml_blck_size(type) != 0) {
        throw std::runtime_error(what + " has blocks of " + std::to_string(ggml_blck_size(type)) +
                " values, which do not divide a head of " + std::to_string(n_embd_head));
    }
    if (transposed && ggml_is_quantized(type)) {
        throw std::runtime_error(what + " requires flash attention (-fa on)");
    }
}

llama_kv_layers::types llama_kv_layers::at(uint32_t il) {
    n_allocated++;

    if (!current_plan) {
        return { type_k.base, type_v.base };
    }

    const types res = { current_plan->types.type_k.at(il), current_plan->types.type_v.at(il) };

    check_storable(il, "K", res.type_k, hparams.n_embd_head_k(il), false);
    check_storable(il, "V", res.type_v, hparams.n_embd_head_v(il), v_trans);

    type_k.taken.push_back(res.type_k);
    type_v.taken.push_back(res.type_v);

    return res;
}

static bool is_mixed(const std::vector<ggml_type> & types) {
    const auto first = std::find_if(types.begin(), types.end(), is_own);

    return std::any_of(first, types.end(), [&](ggml_type type) { return is_own(type) && type != *first; });
}

const char * llama_kv_layers::name(const side & s) {
    return is_mixed(s.taken) ? "mixed" : ggml_type_name(s.taken.empty() ? s.base : s.taken[0]);
}

bool llama_kv_layers::any_quantized(const side & s) {
    return s.planned ? std::any_of(s.taken.begin(), s.taken.end(), ggml_is_quantized) : ggml_is_quantized(s.base);
}

bool llama_kv_layers::any_quantized(const std::vector<stored> & layers, bool is_k) {
    return std::any_of(layers.begin(), layers.end(), [&](const stored & layer) {
        const ggml_tensor * tensor = is_k ? layer.k : layer.v;
        return tensor && ggml_is_quantized(tensor->type);
    });
}

// "q8_0   (    2.13 MiB,    2228224 B)", for the log line of a layer; tensor may be null
static std::string describe(const ggml_tensor * tensor, bool rotated) {
    if (!tensor) {
        return "none";
    }

    return format("%-6s (%8.2f MiB, %10zu B)%s", ggml_type_name(tensor->type),
            ggml_nbytes(tensor)/1024.0/1024.0, ggml_nbytes(tensor), rotated && ggml_is_quantized(tensor->type) ? " rotated" : "");
}

// whether the K-shift can turn a K tensor in place; n_rot: leading values of each head that RoPE turns
static bool can_shift_type(ggml_type type, uint32_t n_rot, uint32_t n_embd_head) {
    // RoPE has f32 and f16 kernels; quantized heads are converted to f32, which undoes their rotation only as a whole
    return ggml_is_quantized(type) ? n_rot == n_embd_head : type == GGML_TYPE_F32 || type == GGML_TYPE_F16;
}

bool llama_kv_layers::settle(const std::vector<stored> & layers, bool rot_k, bool rot_v, bool can_shift) const {
    const bool may_refuse = type_k.planned && can_shift && hparams.rope_type != LLAMA_ROPE_TYPE_NONE;

    bool shifts = true;

    for (const auto & layer : layers) {
        LLAMA_LOG_INFO("llama_kv_cache: layer %3u: K %s, V %s\n", layer.il,
                describe(layer.k, rot_k).c_str(), describe(layer.v, rot_v).c_str());

        if (may_refuse && shifts && !can_shift_type(layer.k->type, hparams.n_rot(layer.il), hparams.n_embd_head_k(layer.il))) {
            shifts = false;
            LLAMA_LOG_INFO("llama_kv_cache: --kv-layers: layer %u: K type %s cannot be shifted on this model, context shift and "
                    "cache reuse are off\n", layer.il, ggml_type_name(layer.k->type));
        }
    }

    return shifts;
}

std::pair<bool, bool> llama_kv_cache::layer_quantized(int32_t il) const {
    const auto & layer = layers[map_layer_ids.at(il)];

    return { ggml_is_quantized(layer.k->type), layer.v && ggml_is_quantized(layer.v->type) };
}

std::pair<bool, bool> llama_kv_cache_context::layer_quantized(int32_t il) const {
    return kv->layer_quantized(il);
}

//
// state files
//

static const int32_t LLAMA_KV_STATE_UNROTATED = 1 << 16;

int32_t llama_kv_layers::state_mark() {
    const char * disabled = getenv("LLAMA_ATTN_ROT_DISABLE");

    if (!disabled || !atoi(disabled) || !current_plan) {
        return 0;
    }

    const auto quantized = [](const std::vector<ggml_type> & types) {
        return std::any_of(types.begin(), types.end(), [](ggml_type type) { return is_own(type) && ggml_is_quantized(type); });
    };

    return quantized(current_plan->types.type_k) || quantized(current_plan->types.type_v) ? LLAMA_KV_STATE_UNROTATED : 0;
}

std::string llama_kv_state_type_name(int32_t state_type) {
    const int32_t     type = state_type & ~LLAMA_KV_STATE_UNROTATED;
    const std::string name = type >= 0 && type < GGML_TYPE_COUNT ? ggml_type_name((ggml_type) type) : "type " + std::to_string(type);

    return type == state_type ? name : name + " without rotation";
}

static thread_local std::string last_refusal;

void llama_kv_refuse(const char * format, ...) {
    char text[512];

    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);

    LLAMA_LOG_ERROR("%s", text);

    const char * reason = strstr(text, ": ");
    last_refusal = reason ? reason + strlen(": ") : text;
    last_refusal = last_refusal.substr(0, last_refusal.find('\n'));
}

std::string llama_kv_refusal(const std::string & otherwise) {
    const std::string res = std::exchange(last_refusal, "");

    return res.empty() ? otherwise : res;
}
