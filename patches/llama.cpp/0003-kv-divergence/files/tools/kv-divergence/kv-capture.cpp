// Writes down what attention is given: K and V as they are stored in a float32 cache, after RoPE and without a rotation,
// and the queries of some positions, as the attention operation reads them. Values go to one file per layer and side as
// they are computed, so memory does not grow with the text, but for the cache itself.
//
//   k.LAYER, v.LAYER   float32 [n_tokens][n_head_kv][head_dim]
//   q.LAYER            float32 [n_queries][n_head][head_dim]
//
// LAYER is one that keeps a cache. Layers that read another's cache are passed over.

#include "watched_run.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
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
class watcher : public graph_watcher {
public:
    watcher(std::string folder, std::vector<int32_t> wanted) : folder(std::move(folder)), wanted(std::move(wanted)) {}

    std::map<int, layer_capture> layers;

protected:
    void begin_batch(int32_t start, int32_t n_tokens) override {
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

    bool wants_stored() const override { return true; }

    void take_stored(int il, bool is_k, std::vector<float> rows, int64_t n_tokens) override {
        layer_capture & layer = layers[il];

        auto & file = is_k ? layer.k : layer.v;
        if (!file) {
            file = std::make_unique<row_file>(folder, (is_k ? "k." : "v.") + std::to_string(il));
        }
        file->append(rows);
        (is_k ? layer.n_k : layer.n_v) += n_tokens;
    }

    void take_queries(int il, const ggml_tensor * attention) override {
        layer_capture     & layer = layers[il];
        const ggml_tensor * q     = attention->src[0]; // [head_dim, n_tokens, n_head]

        // a later reader is a layer without a cache of its own
        if (layer.read) {
            return;
        }
        layer.read = true;

        layer.n_head     = q->ne[2];
        layer.n_head_kv  = attention->src[1]->ne[2];
        layer.head_dim_k = attention->src[1]->ne[0];
        layer.head_dim_v = attention->src[2]->ne[0];
        memcpy(&layer.logit_scale, attention->op_params + 0, sizeof(float));
        memcpy(&layer.soft_cap,    attention->op_params + 2, sizeof(float));

        if (!layer.q) {
            layer.q = std::make_unique<row_file>(folder, "q." + std::to_string(il));
        }

        std::vector<size_t> offsets;
        for (const int32_t i : queries) {
            for (int64_t head = 0; head < q->ne[2]; ++head) {
                offsets.push_back(i*q->nb[1] + head*q->nb[2]);
            }
        }
        layer.q->append(read_rows(q, q->ne[0], offsets));
        layer.n_q += queries.size();
    }

private:
    std::string          folder;
    std::vector<int32_t> wanted;
    std::vector<int32_t> queries; // in this batch
};

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
    run_options opts;
    int32_t     n_queries = 256;
    parse_run_options(argc, argv, opts, { { "--queries", &n_queries, 1 } });
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
    const auto    queries  = spread(n_queries, n_tokens);

    // a float32 cache is neither rounded nor rotated
    watcher watch(opts.output, queries);
    const llama_context_ptr ctx = watched_context(model.get(), opts, n_tokens, n_ubatch, GGML_TYPE_F32, watch);

    print_line({
        { "kind",           "start" },
        { "schema_version", SCHEMA_VERSION },
        { "n_text_tokens",  n_text },
        { "n_tokens",       n_tokens },
        { "q_positions",    queries },
    });

    watch.feed(ctx.get(), tokens, 0, n_tokens, n_ubatch);
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
