// Runs every architecture that upstream's tests/test-llama-archs.cpp can make a small random model of, under policies:
//
//   - a policy that gives every layer one type computes, bit for bit, what --cache-type-k and --cache-type-v compute
//   - a policy for some layers changes the logits no more than its coarsest type in all layers does; a layer that is
//     stored one way and read another would
//   - or the context is refused, because the model cannot have per-layer types
//
// usage: llama-kv-layers-archs [ARCH]
// exit:  0 all hold, 1 some do not

#include "archs.h"

static const random_weights WEIGHTS = { /*.stdev =*/ 0.01f, /*.norm =*/ 0.0f };

static const double MARGIN = 4.0; // errors of layers can add up either way

struct run_config {
    const char * kv_layers; // null: no policy
    ggml_type    type;      // of K and V where the policy names nothing
};

// the logits of all tokens; empty when the context is refused, last_error says why
static std::vector<float> run(llama_model * model, const run_config & config, bool encode) {
    llama_context_params params = small_params(encode);
    params.type_k    = config.type;
    params.type_v    = config.type;
    params.kv_layers = config.kv_layers;

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

// prints one line, returns whether everything held
static bool check_arch(llm_arch arch) {
    llama_model_ptr model = make_model(arch, WEIGHTS);
    if (!model) {
        printf("%-20s no model\n", llm_arch_name(arch));
        return true;
    }

    const bool encode = encodes(arch);

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
    return check_archs(argc, argv, check_arch);
}
