// Sums the moments of keys and queries as attention is given them, after RoPE and without a rotation: what an exact change
// of K is fitted from (--kv-transform). No activation is kept, so memory does not grow with the text.
//
// The text is cut into chunks of -c tokens, as llama-kv-divergence cuts its documents, each run through a cache of its own.
// One file holds, layer by layer as the line "end" lists them and KV head by KV head, float64:
//
//   sum k [head_dim], sum k k^T [head_dim][head_dim], sum q q^T [head_dim][head_dim] over all query heads that read the head

#include "../kv-divergence/watched_run.h"

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
    "usage: llama-kv-moments -m MODEL -f FILE -o FILE [options]\n"
    "\n"
    "Runs a text through a model and sums the first and second moments of the keys and queries of every layer that keeps a\n"
    "cache. What the file holds is said as JSON objects a line.\n"
    "\n"
    "  -m,    --model FILE        model (GGUF)\n"
    "  -f,    --file FILE         text\n"
    "  -o,    --output FILE       file for the sums; there must be none of this name\n"
    "  -c,    --ctx-size N        tokens of a chunk, 0 = as many as the model was trained on (default 512)\n"
    "         --skip-tokens N     leave out the first N tokens of the text, which an earlier run has summed (default 0)\n"
    "         --n-tokens N        the next N tokens at most, 0 = all (default 0)\n"
    "  -ub,   --ubatch-size N     tokens of a batch (default 512)\n"
    "  -t,    --threads N         threads (default: those of the machine)\n"
    "  -v,    --verbose           the whole log of the library on stderr\n"
    "\n"
    "exit: 0 done, 1 failed, 2 the command line cannot be used\n";

// The sums of one layer.
struct layer_sums {
    int64_t n_head_kv = 0, head_dim = 0;
    int64_t n_key = 0, n_query = 0; // per KV head

    bool read = false; // this batch's queries have been taken

    // keys of this batch: the first query tells how wide a head is
    std::vector<float> pending;

    std::vector<double> key_sum, key_square, query_square; // [n_head_kv][head_dim] and [n_head_kv][head_dim][head_dim]
};

// adds x x^T to the lower triangle of square [n][n]
static void add_square(double * square, const float * x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const double xi = x[i];
        for (int64_t j = 0; j <= i; ++j) {
            square[i*n + j] += xi*x[j];
        }
    }
}

class summing : public graph_watcher {
public:
    std::map<int, layer_sums> layers;

protected:
    void begin_batch(int32_t, int32_t) override {
        for (auto & layer : layers) {
            layer.second.read = false;
        }
    }

    void take_stored(int il, bool is_k, std::vector<float> rows, int64_t) override {
        if (is_k) {
            layers[il].pending = std::move(rows);
        }
    }

    void take_queries(int il, const ggml_tensor * attention) override {
        layer_sums        & layer = layers[il];
        const ggml_tensor * k     = attention->src[1]; // [head_dim, n_kv, n_head_kv]
        const ggml_tensor * q     = attention->src[0]; // [head_dim, n_tokens, n_head]

        if (!layer.head_dim) {
            layer.n_head_kv = k->ne[2];
            layer.head_dim  = k->ne[0];
            layer.key_sum     .resize(layer.n_head_kv*layer.head_dim);
            layer.key_square  .resize(layer.n_head_kv*layer.head_dim*layer.head_dim);
            layer.query_square.resize(layer.n_head_kv*layer.head_dim*layer.head_dim);
        }
        const int64_t d = layer.head_dim;

        // the first reader of a batch is the layer that stored its keys, later ones share them
        if (!layer.read) {
            for (size_t row = 0; row < layer.pending.size(); row += d) {
                const int64_t head = row/d % layer.n_head_kv;
                for (int64_t i = 0; i < d; ++i) {
                    layer.key_sum[head*d + i] += layer.pending[row + i];
                }
                add_square(layer.key_square.data() + head*d*d, layer.pending.data() + row, d);
            }
            layer.n_key += layer.pending.size()/(d*layer.n_head_kv);
            layer.read   = true;
        }

        std::vector<size_t> offsets;
        for (int64_t head = 0; head < q->ne[2]; ++head) {
            for (int64_t i = 0; i < q->ne[1]; ++i) {
                offsets.push_back(i*q->nb[1] + head*q->nb[2]);
            }
        }
        const auto    queries = read_rows(q, d, offsets);
        const int64_t group   = q->ne[2]/layer.n_head_kv;
        for (size_t row = 0; row < offsets.size(); ++row) {
            add_square(layer.query_square.data() + (int64_t) row/q->ne[1]/group*d*d, queries.data() + row*d, d);
        }
        layer.n_query += q->ne[1]*group;
    }
};

static void write_sums(const std::string & path, std::map<int, layer_sums> & layers) {
    std::unique_ptr<FILE, void (*)(FILE *)> file(fopen(path.c_str(), "wbx"), [](FILE * open) {
        if (open) {
            fclose(open);
        }
    });

    const auto write = [&](const double * values, size_t n) {
        if (!file || fwrite(values, sizeof(double), n, file.get()) != n) {
            throw std::runtime_error("cannot write " + path + ": " + strerror(errno));
        }
    };
    for (auto & entry : layers) {
        auto &        layer = entry.second;
        const int64_t d     = layer.head_dim;
        for (int64_t head = 0; head < layer.n_head_kv; ++head) {
            write(layer.key_sum.data() + head*d, d);
            for (auto * squares : { &layer.key_square, &layer.query_square }) {
                double * square = squares->data() + head*d*d;
                for (int64_t i = 0; i < d; ++i) {
                    for (int64_t j = 0; j < i; ++j) {
                        square[j*d + i] = square[i*d + j];
                    }
                }
                write(square, d*d);
            }
        }
    }
    if (fflush(file.get()) != 0) {
        throw std::runtime_error("cannot write " + path + ": " + strerror(errno));
    }
}

static void check_complete(const std::map<int, layer_sums> & layers, int64_t n_tokens) {
    if (layers.empty()) {
        throw std::runtime_error("no layer keeps a K/V cache that attention reads; there is nothing to sum");
    }
    for (const auto & entry : layers) {
        if (entry.second.n_key != n_tokens) {
            throw std::runtime_error("layer " + std::to_string(entry.first) + " gave " + std::to_string(entry.second.n_key) +
                                     " keys of " + std::to_string(n_tokens) + " tokens; its attention is of another kind");
        }
    }
}

static void run(int argc, char ** argv, library_log & log) {
    run_options opts;
    int32_t     n_skipped = 0;
    int32_t     n_most    = 0;
    opts.n_ctx = 512;
    parse_run_options(argc, argv, opts, { { "--skip-tokens", &n_skipped, 0 }, { "--n-tokens", &n_most, 0 } });
    if (opts.help) {
        print_out(USAGE);
        return;
    }

    log.start(opts.verbose);
    ggml_backend_load_all();
    llama_backend_init();
    log.take_error();

    const llama_model_ptr model = load_model(opts.model);
    const llama_vocab *   vocab = llama_model_get_vocab(model.get());
    opts.n_ctx = checked_n_ctx(model.get(), opts.n_ctx);

    std::vector<llama_token> tokens = tokenize(vocab, opts.file, false);
    const int32_t n_text = (int32_t) tokens.size();
    if (n_skipped >= n_text) {
        throw std::runtime_error("nothing to sum: --skip-tokens " + std::to_string(n_skipped) + ", the text has " +
                                 std::to_string(n_text) + " tokens");
    }
    tokens.erase(tokens.begin(), tokens.begin() + n_skipped);
    if (n_most > 0) {
        tokens.resize(std::min<size_t>(tokens.size(), n_most));
    }
    const int32_t n_tokens = (int32_t) tokens.size();
    const int32_t n_ctx    = std::min(opts.n_ctx, n_tokens);
    const int32_t n_ubatch = std::min(opts.n_ubatch, n_ctx);

    // a float16 cache is not rotated, and keys are taken before they are stored
    summing sums;
    const llama_context_ptr ctx = watched_context(model.get(), opts, n_ctx, n_ubatch, GGML_TYPE_F16, sums);

    print_line({ { "kind", "start" }, { "schema_version", SCHEMA_VERSION }, { "n_text_tokens", n_text }, { "n_tokens", n_tokens } });

    for (int32_t chunk = 0; chunk < n_tokens; chunk += n_ctx) {
        if (llama_vocab_get_add_bos(vocab)) {
            tokens[chunk] = llama_vocab_bos(vocab);
        }
        llama_memory_clear(llama_get_memory(ctx.get()), true);
        sums.feed(ctx.get(), tokens, chunk, std::min(n_tokens, chunk + n_ctx), n_ubatch);
    }

    check_complete(sums.layers, n_tokens);
    write_sums(opts.output, sums.layers);

    json layers = json::array();
    for (const auto & entry : sums.layers) {
        const auto & layer = entry.second;
        layers.push_back({
            { "layer",     entry.first     },
            { "n_head_kv", layer.n_head_kv },
            { "head_dim",  layer.head_dim  },
            { "n_key",     layer.n_key     },
            { "n_query",   layer.n_query   },
        });
    }
    print_line({ { "kind", "end" }, { "layers", layers } });
}

int main(int argc, char ** argv) {
    library_log log;
    return run_program(log, run, argc, argv);
}
