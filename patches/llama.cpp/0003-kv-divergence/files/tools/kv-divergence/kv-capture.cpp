// Writes down what attention is given: K and V as they are stored in a float32 cache, after RoPE and without a rotation,
// and the queries of some positions, as the attention operation reads them. Values go to one file per layer and side as
// they are computed, so memory does not grow with the text, but for the cache itself.
//
//   k.LAYER, v.LAYER   float32 [n_tokens][n_head_kv][head_dim]
//   q.LAYER            float32 [n_queries][n_head][head_dim]
//
// LAYER is one that keeps a cache. Layers that read another's cache are passed over.

#include "inputs.h"

#include "llama-cpp.h"
#include "ggml-backend.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using json = nlohmann::ordered_json;

static const int SCHEMA_VERSION = 1;

static const char * USAGE =
    "usage: llama-kv-capture -m MODEL -f FILE -o DIR [options]\n"
    "\n"
    "Runs a text through a model with a float32 cache and writes K and V of every layer that keeps a cache, and the queries\n"
    "of some positions, into files of a folder; what they hold is said as JSON objects a line.\n"
    "\n"
    "  -m,    --model FILE        model (GGUF)\n"
    "  -f,    --file FILE         text\n"
    "  -o,    --output DIR        folder for the values; there already, without files of these names\n"
    "  -c,    --ctx-size N        take the first N tokens of the text at most, 0 = as many as the model was trained on (default 0)\n"
    "         --queries N         positions whose queries are kept, evenly spread, the last token's among them (default 256)\n"
    "  -ub,   --ubatch-size N     tokens of a batch (default 512)\n"
    "  -t,    --threads N         threads (default: those of the machine)\n"
    "  -v,    --verbose           the whole log of the library on stderr\n"
    "\n"
    "exit: 0 done, 1 failed, 2 the command line cannot be used\n";

struct capture_options {
    bool help    = false;
    bool verbose = false;

    std::string model;
    std::string file;
    std::string folder;

    int32_t n_ctx     = 0;
    int32_t n_queries = 256;
    int32_t n_ubatch  = 512;
    int32_t n_threads = 0; // of the machine
};

static capture_options parse_options(int argc, char ** argv) {
    capture_options opts;

    const std::map<std::string, std::string> long_names = {
        { "-m", "--model"    }, { "-f",  "--file"        }, { "-o", "--output"  }, { "-c", "--ctx-size" },
        { "-t", "--threads"  }, { "-ub", "--ubatch-size" }, { "-v", "--verbose" }, { "-h", "--help"     },
    };
    const std::map<std::string, bool *>        flags   = { { "--help", &opts.help }, { "--verbose", &opts.verbose } };
    const std::map<std::string, std::string *> texts   = { { "--model", &opts.model }, { "--file", &opts.file }, { "--output", &opts.folder } };
    const std::map<std::string, int32_t *>     numbers = {
        { "--ctx-size",    &opts.n_ctx    }, { "--queries", &opts.n_queries },
        { "--ubatch-size", &opts.n_ubatch }, { "--threads", &opts.n_threads },
    };

    for (int i = 1; i < argc; ++i) {
        const std::string given = argv[i];

        const auto        alias = long_names.find(given);
        const std::string name  = alias == long_names.end() ? given : alias->second;

        if (const auto flag = flags.find(name); flag != flags.end()) {
            *flag->second = true;
            continue;
        }

        const auto text   = texts.find(name);
        const auto number = numbers.find(name);
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
            *number->second = (int32_t) parse_whole(given, value, name == "--ctx-size" ? 0 : 1, std::numeric_limits<int32_t>::max());
        }
    }

    if (!opts.help) {
        for (const auto & text : texts) {
            if (text.second->empty()) {
                throw usage_error("no " + text.first + " was given");
            }
        }
    }

    return opts;
}

// n positions of n_tokens, evenly spread, the last among them; all when there are no more
static std::vector<int32_t> spread(int32_t n, int32_t n_tokens) {
    std::vector<int32_t> res;
    n = std::min(n, n_tokens);
    for (int64_t i = 1; i <= n; ++i) {
        res.push_back((int32_t) (i*n_tokens/n) - 1);
    }

    return res;
}

// A file that rows are appended to.
class row_file {
public:
    row_file(const std::string & folder, const std::string & name) : path(folder + "/" + name), file(fopen(path.c_str(), "wbx"), fclose) {
        if (!file) {
            fail();
        }
    }

    void append(const std::vector<float> & values) {
        // a batch may hold no position that is wanted
        if (!values.empty() && fwrite(values.data(), sizeof(float), values.size(), file.get()) != values.size()) {
            fail();
        }
    }

    void finish() {
        if (fflush(file.get()) != 0) {
            fail();
        }
    }

private:
    std::string                                path;
    std::unique_ptr<FILE, int (*)(FILE *)>     file;

    [[noreturn]] void fail() const {
        throw std::runtime_error("cannot write " + path + ": " + strerror(errno));
    }
};

// What is known of a layer that keeps a cache.
struct layer_capture {
    int64_t n_head = 0, n_head_kv = 0, head_dim_k = 0, head_dim_v = 0;
    float   logit_scale = 0.0f;
    float   soft_cap    = 0.0f; // 0: none

    int64_t n_k = 0, n_v = 0, n_q = 0; // tokens written
    bool    read = false;              // this batch's queries have been taken

    std::unique_ptr<row_file> k, v, q;
};

// Watches a graph being computed and takes what is wanted of it.
class watcher {
public:
    watcher(std::string folder, std::vector<int32_t> wanted) : folder(std::move(folder)), wanted(std::move(wanted)) {}

    std::map<int, layer_capture> layers;

    void begin_batch(int32_t start, int32_t n_tokens) {
        queries.clear();
        for (const int32_t position : wanted) {
            if (position >= start && position < start + n_tokens) {
                queries.push_back(position - start);
            }
        }
        for (auto & layer : layers) {
            layer.second.read = false;
        }
    }

    // ggml_backend_sched_eval_callback: asked whether a node is wanted, then given it
    static bool on_node(ggml_tensor * node, bool ask, void * user_data) {
        auto & self = *(watcher *) user_data;

        const bool stores = node->op == GGML_OP_SET_ROWS && (layer_of(node, "cache_k_l") >= 0 || layer_of(node, "cache_v_l") >= 0);
        const bool reads  = node->op == GGML_OP_FLASH_ATTN_EXT && layer_of(node->src[1], "cache_k_l") >= 0;
        if (ask || !self.failure.empty()) {
            return ask && (stores || reads);
        }

        // nothing may be thrown through the library
        try {
            if (stores) {
                self.take_stored(node);
            } else if (reads) {
                self.take_queries(node);
            }
        } catch (const std::exception & err) {
            self.failure = err.what();
        }
        return self.failure.empty();
    }

    void raise_failure() const {
        if (!failure.empty()) {
            throw std::runtime_error(failure);
        }
    }

private:
    std::string          folder;
    std::vector<int32_t> wanted;
    std::vector<int32_t> queries; // in this batch
    std::string          failure;

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

    static void check_float(const ggml_tensor * tensor) {
        if (tensor->type != GGML_TYPE_F32) {
            throw std::runtime_error(std::string(tensor->name) + " is " + ggml_type_name(tensor->type) + ", float32 is needed");
        }
    }

    // Values of rows [n_values] that begin at the offsets.
    static std::vector<float> rows(const ggml_tensor * tensor, int64_t n_values, const std::vector<size_t> & offsets) {
        std::vector<float> res(n_values*offsets.size());
        for (size_t i = 0; i < offsets.size(); ++i) {
            ggml_backend_tensor_get(tensor, res.data() + i*n_values, offsets[i], n_values*sizeof(float));
        }

        return res;
    }

    void take_stored(const ggml_tensor * node) {
        const bool          is_k   = layer_of(node, "cache_k_l") >= 0;
        const int           il     = layer_of(node, is_k ? "cache_k_l" : "cache_v_l");
        layer_capture     & layer  = layers[il];
        const ggml_tensor * stored = node->src[0];
        check_float(stored);

        auto & file = is_k ? layer.k : layer.v;
        if (!file) {
            file = std::make_unique<row_file>(folder, (is_k ? "k." : "v.") + std::to_string(il));
        }

        std::vector<size_t> offsets;
        for (int64_t i = 0; i < stored->ne[1]; ++i) {
            offsets.push_back(i*stored->nb[1]);
        }
        file->append(rows(stored, stored->ne[0], offsets));
        (is_k ? layer.n_k : layer.n_v) += stored->ne[1];
    }

    void take_queries(const ggml_tensor * node) {
        const int           il    = layer_of(node->src[1], "cache_k_l");
        layer_capture     & layer = layers[il];
        const ggml_tensor * q     = node->src[0]; // [head_dim, n_tokens, n_head]
        check_float(q);

        // a later reader is a layer without a cache of its own
        if (layer.read) {
            return;
        }
        layer.read = true;

        layer.n_head     = q->ne[2];
        layer.n_head_kv  = node->src[1]->ne[2];
        layer.head_dim_k = node->src[1]->ne[0];
        layer.head_dim_v = node->src[2]->ne[0];
        memcpy(&layer.logit_scale, node->op_params + 0, sizeof(float));
        memcpy(&layer.soft_cap,    node->op_params + 2, sizeof(float));

        if (!layer.q) {
            layer.q = std::make_unique<row_file>(folder, "q." + std::to_string(il));
        }

        std::vector<size_t> offsets;
        for (const int32_t i : queries) {
            for (int64_t head = 0; head < q->ne[2]; ++head) {
                offsets.push_back(i*q->nb[1] + head*q->nb[2]);
            }
        }
        layer.q->append(rows(q, q->ne[0], offsets));
        layer.n_q += queries.size();
    }
};

static void print_line(const json & line) {
    print_out(line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n");
}

static void check_complete(const std::map<int, layer_capture> & layers, int64_t n_tokens, int64_t n_queries) {
    if (layers.empty()) {
        throw std::runtime_error("no layer keeps a K/V cache that attention reads; there is nothing to capture");
    }
    for (const auto & entry : layers) {
        const auto & layer = entry.second;
        if (layer.n_k != n_tokens || layer.n_v != n_tokens || layer.n_q != n_queries) {
            throw std::runtime_error("layer " + std::to_string(entry.first) + " gave K of " + std::to_string(layer.n_k) + ", V of " +
                                     std::to_string(layer.n_v) + " tokens and Q of " + std::to_string(layer.n_q) + ", not of " +
                                     std::to_string(n_tokens) + " and " + std::to_string(n_queries) + "; its attention is of another kind");
        }
    }
}

static json layer_json(int il, const layer_capture & layer) {
    return {
        { "layer",       il },
        { "n_head",      layer.n_head },
        { "n_head_kv",   layer.n_head_kv },
        { "head_dim_k",  layer.head_dim_k },
        { "head_dim_v",  layer.head_dim_v },
        { "logit_scale", layer.logit_scale },
        { "soft_cap",    layer.soft_cap },
    };
}

static void run(int argc, char ** argv, library_log & log) {
    capture_options opts = parse_options(argc, argv);
    if (opts.help) {
        print_out(USAGE);
        return;
    }

    log.start(opts.verbose);
    ggml_backend_load_all();
    llama_backend_init();
    log.take_error();

    const llama_model_ptr model = load_model(opts.model);
    opts.n_ctx = checked_n_ctx(model.get(), opts.n_ctx);

    std::vector<llama_token> tokens = tokenize(llama_model_get_vocab(model.get()), opts.file, false);
    const size_t n_text = tokens.size();
    tokens.resize(std::min<size_t>(n_text, opts.n_ctx));

    const int32_t n_tokens = (int32_t) tokens.size();
    const int32_t n_ubatch = std::min(opts.n_ubatch, n_tokens);
    const auto    queries  = spread(opts.n_queries, n_tokens);

    watcher watch(opts.folder, queries);

    llama_context_params params = llama_context_default_params();
    params.n_ctx             = n_tokens;
    params.n_batch           = n_ubatch;
    params.n_ubatch          = n_ubatch;
    params.n_seq_max         = 1;
    params.n_threads         = opts.n_threads == 0 ? std::max(1u, std::thread::hardware_concurrency()) : opts.n_threads;
    params.n_threads_batch   = params.n_threads;
    params.flash_attn_type   = LLAMA_FLASH_ATTN_TYPE_ENABLED; // the operation whose operands are taken
    params.type_k            = GGML_TYPE_F32; // neither rounded nor rotated
    params.type_v            = GGML_TYPE_F32;
    params.swa_full          = false;
    params.no_perf           = true;
    params.cb_eval           = watcher::on_node;
    params.cb_eval_user_data = &watch;

    llama_context_ptr ctx(llama_init_from_model(model.get(), params));
    if (!ctx) {
        throw std::runtime_error("cannot make the context");
    }

    print_line({
        { "kind",           "start" },
        { "schema_version", SCHEMA_VERSION },
        { "n_text_tokens",  n_text },
        { "n_tokens",       n_tokens },
        { "q_positions",    queries },
    });

    for (int32_t start = 0; start < n_tokens; start += n_ubatch) {
        const int32_t n_batch = std::min(n_ubatch, n_tokens - start);

        watch.begin_batch(start, n_batch);
        const int32_t status = llama_decode(ctx.get(), llama_batch_get_one(tokens.data() + start, n_batch));
        watch.raise_failure();
        if (status) {
            throw std::runtime_error("the context cannot take the tokens from position " + std::to_string(start) +
                                     " (status " + std::to_string(status) + ")");
        }
        print_line({ { "kind", "batch" }, { "n_tokens", start + n_batch } });
    }

    check_complete(watch.layers, n_tokens, queries.size());

    json layers = json::array();
    for (auto & entry : watch.layers) {
        for (auto * file : { &entry.second.k, &entry.second.v, &entry.second.q }) {
            (*file)->finish();
        }
        layers.push_back(layer_json(entry.first, entry.second));
    }
    print_line({ { "kind", "end" }, { "layers", layers } });
}

int main(int argc, char ** argv) {
    library_log log;
    return run_program(log, run, argc, argv);
}
