#pragma once

// Small random models of every architecture that upstream's tests/test-llama-archs.cpp can make, for programs that hold each
// of them to something.

// for the models: the functions of that test are static
int upstream_main(int argc, char ** argv);
#define main upstream_main
#include "../../tests/test-llama-archs.cpp"
#undef main

static const size_t SEED = 1234;

static std::string last_error; // of the library's log

struct random_weights {
    float stdev;
    float norm; // mean of the weights of norms; that of others is 0
};

static void fill_tensor(ggml_tensor * tensor, void * user_data) {
    const auto & weights = *(const random_weights *) user_data;

    std::mt19937 gen(SEED ^ std::hash<std::string>()(tensor->name));
    std::normal_distribution<float> dis(strstr(tensor->name, "norm.weight") ? weights.norm : 0.0f, weights.stdev);

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

// null when there is no model of this architecture
static llama_model_ptr make_model(llm_arch arch, random_weights weights) {
    gguf_context_ptr meta = get_gguf_ctx(arch, moe_mandatory(arch));
    gguf_remove_key(meta.get(), "bailingmoe3.kda.safe_gate"); // as upstream's test does

    ggml_backend_dev_t no_devices[] = { nullptr };

    llama_model_params params = llama_model_default_params();
    params.progress_callback = silent_model_load_progress;
    params.devices           = no_devices;

    return llama_model_ptr(llama_model_init_from_user(meta.get(), fill_tensor, &weights, params));
}

// the model's tokens go through its encoder
static bool encodes(llm_arch arch) {
    return arch == LLM_ARCH_DREAM || arch == LLM_ARCH_LLADA || arch == LLM_ARCH_LLADA_MOE || arch == LLM_ARCH_RND1;
}

// for a short, single-threaded, repeatable run
static llama_context_params small_params(bool encode) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 0;
    params.n_ubatch        = encode ? params.n_ubatch : 64;
    params.n_threads       = 1;
    params.n_threads_batch = 1;

    return params;
}

static bool has_nan(const std::vector<float> & values) {
    for (const float value : values) {
        if (std::isnan(value)) {
            return true;
        }
    }

    return false;
}

// Calls check, which prints a line, for every architecture, or for the one that the command line names; returns the exit
// status of the program: 0 when all of them held.
static int check_archs(int argc, char ** argv, bool (*check)(llm_arch arch)) {
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
        n_failed += !check(arch);
        fflush(stdout);
    }

    printf("%zu architectures, %zu failed\n", n_run, n_failed);

    return n_run > 0 && n_failed == 0 ? 0 : 1;
}
