#include "watched_run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>
#include <thread>

void parse_run_options(int argc, char ** argv, run_options & opts, const std::vector<number_option> & more) {
    const std::map<std::string, std::string> long_names = {
        { "-m", "--model"   }, { "-f",  "--file"        }, { "-o", "--output"  }, { "-c", "--ctx-size" },
        { "-t", "--threads" }, { "-ub", "--ubatch-size" }, { "-v", "--verbose" }, { "-h", "--help"     },
    };
    const std::map<std::string, bool *>        flags = { { "--help", &opts.help }, { "--verbose", &opts.verbose } };
    const std::map<std::string, std::string *> texts = { { "--model", &opts.model }, { "--file", &opts.file }, { "--output", &opts.output } };

    std::vector<number_option> numbers = more;
    numbers.push_back({ "--ctx-size",    &opts.n_ctx,     0 });
    numbers.push_back({ "--ubatch-size", &opts.n_ubatch,  1 });
    numbers.push_back({ "--threads",     &opts.n_threads, 1 });

    for (int i = 1; i < argc; ++i) {
        const std::string given = argv[i];

        const auto        alias = long_names.find(given);
        const std::string name  = alias == long_names.end() ? given : alias->second;

        if (const auto flag = flags.find(name); flag != flags.end()) {
            *flag->second = true;
            continue;
        }

        const auto text   = texts.find(name);
        const auto number = std::find_if(numbers.begin(), numbers.end(), [&](const number_option & option) { return option.name == name; });
        if (text == texts.end() && number == numbers.end()) {
            throw usage_error("unknown argument '" + given + "'; --help lists them");
        }
        if (i + 1 == argc) {
            throw usage_error(given + " needs a value");
        }

        const std::string value = argv[++i];
        if (text != texts.end()) {
            *text->second = value;
        } else {
            *number->value = (int32_t) parse_whole(given, value, number->least, std::numeric_limits<int32_t>::max());
        }
    }

    for (const auto & text : texts) {
        if (!opts.help && text.second->empty()) {
            throw usage_error("no " + text.first + " was given");
        }
    }
}

// the layer of a cache's tensor, or of what is made of it; -1 for another tensor
static int layer_of(const ggml_tensor * tensor, const char * prefix) {
    const size_t n = strlen(prefix);
    for (; tensor; tensor = tensor->view_src ? tensor->view_src : tensor->src[0]) {
        if (strncmp(tensor->name, prefix, n) == 0 && tensor->op == GGML_OP_NONE) {
            return atoi(tensor->name + n);
        }
    }

    return -1;
}

bool graph_watcher::on_node(ggml_tensor * node, bool ask, void * user_data) {
    auto & self = *(graph_watcher *) user_data;

    const bool sets   = node->op == GGML_OP_SET_ROWS && self.wants_stored();
    const int  k      = sets ? layer_of(node, "cache_k_l") : -1;
    const int  v      = sets ? layer_of(node, "cache_v_l") : -1;
    const int  reader = node->op == GGML_OP_FLASH_ATTN_EXT ? layer_of(node->src[1], "cache_k_l") : -1;
    if (ask || !self.failure.empty()) {
        return ask && (k >= 0 || v >= 0 || reader >= 0);
    }

    // nothing may be thrown through the library
    try {
        if (reader >= 0) {
            self.take_queries(reader, node);
        } else if (k >= 0 || v >= 0) {
            const ggml_tensor * stored = node->src[0];

            std::vector<size_t> offsets;
            for (int64_t i = 0; i < stored->ne[1]; ++i) {
                offsets.push_back(i*stored->nb[1]);
            }
            self.take_stored(std::max(k, v), k >= 0, read_rows(stored, stored->ne[0], offsets), stored->ne[1]);
        }
    } catch (const std::exception & err) {
        self.failure = err.what();
    }
    return self.failure.empty();
}

void graph_watcher::feed(llama_context * ctx, const std::vector<llama_token> & tokens, int32_t start, int32_t end, int32_t n_ubatch) {
    for (; start < end; start += n_ubatch) {
        const int32_t n_batch = std::min(n_ubatch, end - start);

        begin_batch(start, n_batch);
        const int32_t status = llama_decode(ctx, llama_batch_get_one(const_cast<llama_token *>(tokens.data()) + start, n_batch));
        if (!failure.empty()) {
            throw std::runtime_error(failure);
        }
        if (status) {
            throw std::runtime_error("the context cannot take the tokens from position " + std::to_string(start) +
                                     " (status " + std::to_string(status) + ")");
        }
        print_line({ { "kind", "batch" }, { "n_tokens", start + n_batch } });
    }
}

std::vector<float> read_rows(const ggml_tensor * tensor, int64_t n_values, const std::vector<size_t> & offsets) {
    if (tensor->type != GGML_TYPE_F32) {
        throw std::runtime_error(std::string(tensor->name) + " is " + ggml_type_name(tensor->type) + ", float32 is needed");
    }

    std::vector<float> res(n_values*offsets.size());
    for (size_t i = 0; i < offsets.size(); ++i) {
        ggml_backend_tensor_get(tensor, res.data() + i*n_values, offsets[i], n_values*sizeof(float));
    }

    return res;
}

llama_context_ptr watched_context(llama_model * model, const run_options & opts, int32_t n_ctx, int32_t n_ubatch, ggml_type type, graph_watcher & watcher) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx             = n_ctx;
    params.n_batch           = n_ubatch;
    params.n_ubatch          = n_ubatch;
    params.n_seq_max         = 1;
    params.n_threads         = opts.n_threads == 0 ? std::max(1u, std::thread::hardware_concurrency()) : opts.n_threads;
    params.n_threads_batch   = params.n_threads;
    params.flash_attn_type   = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k            = type;
    params.type_v            = type;
    params.swa_full          = false;
    params.no_perf           = true;
    params.cb_eval           = graph_watcher::on_node;
    params.cb_eval_user_data = &watcher;

    llama_context_ptr ctx(llama_init_from_model(model, params));
    if (!ctx) {
        throw std::runtime_error("cannot make the context");
    }

    return ctx;
}

void print_line(const nlohmann::ordered_json & line) {
    // a byte that is not UTF-8 must not end the run
    print_out(line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}
