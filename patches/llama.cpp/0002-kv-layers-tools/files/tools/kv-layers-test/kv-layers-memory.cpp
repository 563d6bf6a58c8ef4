// Says what a context allocates for a model of which there is only a GGUF header: the weights are left as they are.
//
// usage: llama-kv-layers-memory --write DIR        the headers of upstream's tests/test-llama-archs.cpp, DIR/ARCH.gguf
//        llama-kv-layers-memory FILE RUN...        the log of one context for each RUN, a line "run RUN" before it
//
// RUN is key=value,...: c (context), np (sequences), kvu, full (--swa-full), b, ub, k, v (cache types), fa; left out, as
// llama-server has it.
// exit: 0 done; 1 no model or no context, the log says why

// for the headers: the functions of that test are static
int upstream_main(int argc, char ** argv);
#define main upstream_main
#include "../../tests/test-llama-archs.cpp"
#undef main

#include <sstream>

static void leave_tensor(ggml_tensor * /*tensor*/, void * /*user_data*/) {}

static ggml_type cache_type(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char * known = ggml_type_name((ggml_type) i);
        if (known && name == known) {
            return (ggml_type) i;
        }
    }
    fprintf(stderr, "no type %s\n", name.c_str());
    exit(1);
}

static llama_context_params parse_run(const std::string & run) {
    llama_context_params params = llama_context_default_params();
    params.n_threads       = 1;
    params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full        = false; // as llama-server has it

    std::istringstream items(run);
    for (std::string item; std::getline(items, item, ',');) {
        const size_t      at    = item.find('=');
        const std::string key   = item.substr(0, at);
        const std::string value = at == std::string::npos ? "1" : item.substr(at + 1);
        const uint32_t    n     = strtoul(value.c_str(), nullptr, 10);

        if      (key == "c")    { params.n_ctx      = n; }
        else if (key == "np")   { params.n_seq_max  = n; }
        else if (key == "kvu")  { params.kv_unified = n; }
        else if (key == "full") { params.swa_full   = n; }
        else if (key == "b")    { params.n_batch    = n; }
        else if (key == "ub")   { params.n_ubatch   = n; }
        else if (key == "k")    { params.type_k     = cache_type(value); }
        else if (key == "v")    { params.type_v     = cache_type(value); }
        else if (key == "fa")   { params.flash_attn_type = n ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED; }
        else {
            fprintf(stderr, "no key %s\n", key.c_str());
            exit(1);
        }
    }

    return params;
}

static int write_headers(const std::string & dir) {
    for (const llm_arch arch : llm_arch_all()) {
        if (arch == LLM_ARCH_UNKNOWN || arch == LLM_ARCH_CLIP) {
            continue;
        }

        gguf_context_ptr meta = get_gguf_ctx(arch, moe_mandatory(arch));
        if (!gguf_write_to_file(meta.get(), (dir + "/" + llm_arch_name(arch) + ".gguf").c_str(), /*only_meta =*/ true)) {
            return 1;
        }
    }

    return 0;
}

int main(int argc, char ** argv) {
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        return write_headers(argv[2]);
    }

    if (argc < 3) {
        fprintf(stderr, "usage: %s --write DIR | FILE RUN...\n", argv[0]);
        return 1;
    }

    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level != GGML_LOG_LEVEL_DEBUG) {
            fputs(text, stdout);
        }
    }, nullptr);

    ggml_backend_load_all();

    gguf_init_params init = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
    gguf_context_ptr meta(gguf_init_from_file(argv[1], init));
    if (!meta) {
        return 1;
    }

    ggml_backend_dev_t no_devices[] = { nullptr };

    llama_model_params params = llama_model_default_params();
    params.progress_callback = silent_model_load_progress;
    params.devices           = no_devices;

    llama_model_ptr model(llama_model_init_from_user(meta.get(), leave_tensor, nullptr, params));
    if (!model) {
        return 1;
    }

    int failed = 0;
    for (int i = 2; i < argc; i++) {
        printf("run %s\n", argv[i]);
        llama_context_ptr ctx(llama_init_from_model(model.get(), parse_run(argv[i])));
        failed |= !ctx;
        fflush(stdout);
    }

    return failed;
}
