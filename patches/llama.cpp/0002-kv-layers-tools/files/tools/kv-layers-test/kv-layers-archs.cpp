// Runs every architecture that upstream's tests/test-llama-archs.cpp can make a small random model of, under policies:
//
//   - a policy that gives every layer one type computes, bit for bit, what --cache-type-k and --cache-type-v compute
//   - a policy for some layers changes the logits no more than its coarsest type in all layers does; a layer that is
//     stored one way and read another would
//   - or the context is refused, because the model cannot have per-layer types
//
// usage: llama-kv-layers-archs [ARCH]
// exit:  0 all hold, 1 some do not

// for the models: the functions of that test are static
int upstream_main(int argc, char ** argv);
#define main upstream_main
#include "../../tests/test-llama-archs.cpp"
#undef main

static const size_t SEED   = 1234;
static const float  STDEV  = 0.01f; // of the weights
static const double MARGIN = 4.0;   // errors of layers can add up either way

static std::string last_error; // of the library's log

static void fill_tensor(ggml_tensor * tensor, void * /*user_data*/) {
    std::mt19937 gen(SEED ^ std::hash<std::string>()(tensor->name));
    std::normal_distribution<float> dis(0.0f, STDEV);

    // a state must decay
    const bool negative = strstr(tensor->name, "ssm_a") != nullptr;

    std::vector<float> values(ggml_nelements(tensor));
    for (float & value : values) {
        value = negative ? -fabsf(dis(gen)) : dis(gen);
    }

    std::vector<uint8_t> data(ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_F32) {
        memcpy(data.data(), values.data(), data.size());
    } else {
        GGML_ASSERT(tensor->type == GGML_TYPE_F16);
        ggml_fp32_to_fp16_row(values.data(), (ggml_fp16_t *) data.data(), values.size());
    }
    ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
}

struct run_config {
    const char * kv_layers; // null: no policy
    ggml_type    type;      // of K and V where the policy names nothing
};

// the logits of all tokens; empty when the context is refused, last_error says why
static std::vector<float> run(llama_model * model, const run_config & config, bool encode) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 0;
    params.n_ubatch        = encode ? params.n_ubatch : 64;
    params.n_threads       = 1; // the models are tiny
    params.n_threads_batch = 1;
    params.type_k          = config.type;
    params.type_v          = config.type;
    params.kv_layers       = config.kv_layers;

    last_error.clear();

    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        return {};
    }

    return get_logits(model, ctx.get(), get_tokens(128, 128, SEED), encode);
}

// as bytes: some architectures give NaN here, with and without a policy
static bool same(const std::vector<float> & a, const std::vector<float> & b) {
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size()*sizeof(float)) == 0);
}

static bool has_nan(const std::vector<float> & values) {
    for (const float value : values) {
        if (std::isnan(value)) {
            return true;
        }
    }

    return false;
}

// prints one line, returns whether everything held
static bool check_arch(llm_arch arch) {
    gguf_context_ptr meta = get_gguf_ctx(arch, moe_mandatory(arch));
    gguf_remove_key(meta.get(), "bailingmoe3.kda.safe_gate"); // as upstream's test does

    ggml_backend_dev_t no_devices[] = { nullptr };

    llama_model_params params = llama_model_default_params();
    params.progress_callback = silent_model_load_progress;
    params.devices           = no_devices;

    llama_model_ptr model(llama_model_init_from_user(meta.get(), fill_tensor, nullptr, params));
    if (!model) {
        printf("%-20s no model\n", llm_arch_name(arch));
        return true;
    }

    const bool encode = arch == LLM_ARCH_DREAM || arch == LLM_ARCH_LLADA || arch == LLM_ARCH_LLADA_MOE ||
                        arch == LLM_ARCH_RND1;

    run(model.get(), { "*:f16", GGML_TYPE_F16 }, encode);
    if (last_error.find("--kv-layers is not supported here") != std::string::npos) {
        printf("%-20s refused\n", llm_arch_name(arch));
        return true;
    }

    std::string line;
    bool        ok = true;

    for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 }) {
        const std::string policy = std::string("*:") + ggml_type_name(type);

        const auto want = run(model.get(), { nullptr, type }, encode);
        const auto got  = run(model.get(), { policy.c_str(), GGML_TYPE_F32 }, encode);

        const bool holds = same(want, got);
        line += " " + policy + (!holds ? " DIFFERS" : want.empty() ? " refused" : " same");
        ok   &= holds;
    }

    const struct {
        const char * policy;
        ggml_type    coarsest;
    } mixed[] = {
        { "kv0:bf16,kv1:f16", GGML_TYPE_BF16 },
        { "kv0:q8_0",         GGML_TYPE_Q8_0 },
        { "kv1-:k=q8_0",      GGML_TYPE_Q8_0 },
        { "kv0:q4_0,kv1:f16", GGML_TYPE_Q4_0 },
    };

    const auto base = run(model.get(), { nullptr, GGML_TYPE_F32 }, encode);
    for (const auto & c : mixed) {
        const auto got     = run(model.get(), { c.policy, GGML_TYPE_F32 }, encode);
        const auto uniform = run(model.get(), { nullptr,  c.coarsest    }, encode);

        line += std::string(" ") + c.policy;
        if (got.empty() || has_nan(got)) {
            line += got.empty() ? " refused" : " nan";
            ok   &= uniform.empty() || has_nan(uniform);
        } else {
            const double error = nmse(base, got);
            char text[16];
            snprintf(text, sizeof(text), " %.1e", error);
            line += text;
            ok   &= uniform.empty() || error <= MARGIN*nmse(base, uniform); // without flash attention only K can be quantized
        }
    }

    printf("%-20s%s%s\n", llm_arch_name(arch), line.c_str(), ok ? "" : " FAILED");
    return ok;
}

int main(int argc, char ** argv) {
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            last_error += text;
        }
    }, nullptr);

    ggml_backend_load_all();

    size_t n_run    = 0;
    size_t n_failed = 0;

    for (const llm_arch arch : llm_arch_all()) {
        const std::string name = llm_arch_name(arch);

        // upstream's test makes no complete models of these; T5 computes garbage from any quantized V cache, and aborts
        const bool skipped = name == "gemma4" || name == "gemma4-assistant" || name == "eagle3" || name == "dflash" || name == "t5";

        if (arch == LLM_ARCH_UNKNOWN || skipped || !arch_supported(arch) || (argc > 1 && name != argv[1])) {
            continue;
        }

        ++n_run;
        n_failed += !check_arch(arch);
        fflush(stdout);
    }

    printf("%zu architectures, %zu failed\n", n_run, n_failed);

    return n_run > 0 && n_failed == 0 ? 0 : 1;
}
