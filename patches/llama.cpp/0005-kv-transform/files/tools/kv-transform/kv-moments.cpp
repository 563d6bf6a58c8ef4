// Sums the moments of keys and queries as attention is given them, after RoPE and without a rotation: what an exact change
// of K is fitted from (--kv-transform). No activation is kept beyond a chunk, so memory does not grow with the text.
//
// The text is cut into chunks of -c tokens, as llama-kv-divergence cuts its documents, each run through a cache of its own.
// One file holds, layer by layer as the line "end" lists them and KV head by KV head, float64:
//
//   sum w_k, sum w_q, sum w_k k [head_dim], sum w_k k k^T [head_dim][head_dim], sum w_q q q^T [head_dim][head_dim]
//
// over all query heads that read the head. What an error of q.k does to the output o of attention is p (v - o), for the
// probability p and the value v of the key, so keys and queries count by how much depends on them: w_q is the sum of
// p^2 |v - o|^2 over the keys that a query sees, w_k that over the queries that see a key.

#include "attention_softmax.h"

#include "../kv-divergence/watched_run.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using json = nlohmann::ordered_json;

static const int SCHEMA_VERSION = 2;

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

// adds w x x^T to the lower triangle of square [n][n]
static void add_square(double * square, double w, const float * x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const double xi = w*x[i];
        for (int64_t j = 0; j <= i; ++j) {
            square[i*n + j] += xi*x[j];
        }
    }
}

// The sums of one KV head.
struct moment_sums {
    int64_t head_dim;

    double key_weight   = 0.0;
    double query_weight = 0.0;

    std::vector<double> key_sum, key_square, query_square; // [head_dim] and [head_dim][head_dim]

    explicit moment_sums(int64_t head_dim)
        : head_dim(head_dim), key_sum(head_dim), key_square(head_dim*head_dim), query_square(head_dim*head_dim) {}

    void add_key(double w, const float * k) {
        key_weight += w;
        for (int64_t i = 0; i < head_dim; ++i) {
            key_sum[i] += w*k[i];
        }
        add_square(key_square.data(), w, k, head_dim);
    }

    void add_query(double w, const float * q) {
        query_weight += w;
        add_square(query_square.data(), w, q, head_dim);
    }
};

// The rows of one KV head in a float16 cache, [n_kv][width].
static std::vector<float> read_head(const ggml_tensor * cache, int64_t head) {
    const int64_t            width = cache->ne[0];
    std::vector<ggml_fp16_t> row(width);
    std::vector<float>       rows(cache->ne[1]*width);
    for (int64_t j = 0; j < cache->ne[1]; ++j) {
        ggml_backend_tensor_get(cache, row.data(), j*cache->nb[1] + head*cache->nb[2], width*sizeof(ggml_fp16_t));
        ggml_fp16_to_fp32_row(row.data(), rows.data() + j*width, width);
    }
    return rows;
}

// Rows of float32, one for a head and token, [n_head][n_tokens][width]; which axis counts heads, and which tokens, differs.
static std::vector<float> read_heads(const ggml_tensor * tensor, int head_axis) {
    const int token_axis = 3 - head_axis;

    std::vector<size_t> offsets;
    for (int64_t head = 0; head < tensor->ne[head_axis]; ++head) {
        for (int64_t i = 0; i < tensor->ne[token_axis]; ++i) {
            offsets.push_back(head*tensor->nb[head_axis] + i*tensor->nb[token_axis]);
        }
    }
    return read_rows(tensor, tensor->ne[0], offsets);
}

static double dot(const float * x, const float * y, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        sum += x[i]*y[i];
    }
    return sum;
}

// Rows [n_rows][width], turned so that the products of a vector with all of them are sums of vectors.
class turned_rows {
public:
    turned_rows(const std::vector<float> & rows, int64_t width) : width(width), n_rows(rows.size()/width), columns(rows.size()) {
        for (int64_t j = 0; j < n_rows; ++j) {
            for (int64_t i = 0; i < width; ++i) {
                columns[i*n_rows + j] = rows[j*width + i];
            }
        }
    }

    // products: [n_rows]
    void multiply(const float * x, std::vector<float> & products) const {
        float * y = products.data();
        std::fill(y, y + n_rows, 0.0f);
        int64_t i = 0;
        for (; i + 4 <= width; i += 4) { // four at a time spare loads and stores of the sums
            const float   x0 = x[i], x1 = x[i + 1], x2 = x[i + 2], x3 = x[i + 3];
            const float * column = columns.data() + i*n_rows;
            for (int64_t j = 0; j < n_rows; ++j) {
                y[j] += x0*column[j] + x1*column[n_rows + j] + x2*column[2*n_rows + j] + x3*column[3*n_rows + j];
            }
        }
        for (; i < width; ++i) {
            for (int64_t j = 0; j < n_rows; ++j) {
                y[j] += x[i]*columns[i*n_rows + j];
            }
        }
    }

private:
    int64_t            width, n_rows;
    std::vector<float> columns; // [width][n_rows]
};

// A batch of one attention: what its heads read, and what they make of it.
struct attention_batch {
    const ggml_tensor * k; // [head_dim, n_kv, n_head_kv]
    const ggml_tensor * v;
    int64_t             n_tokens;
    int64_t             group; // query heads that read a KV head
    attention_softmax   softmax;
    std::vector<float>  queries, outputs;

    explicit attention_batch(const ggml_tensor * attention)
        : k(attention->src[1]), v(attention->src[2]), n_tokens(attention->src[0]->ne[1]), group(attention->src[0]->ne[2]/k->ne[2]),
          softmax(attention), queries(read_heads(attention->src[0], 2)), outputs(read_heads(attention, 1)) {}

    // adds the queries that read a KV head, and the keys that they see
    void add_to(moment_sums & sums, int64_t head_kv) const {
        const int64_t n_kv = k->ne[1];
        const int64_t d_k  = k->ne[0];
        const int64_t d_v  = v->ne[0];

        const auto        keys   = read_head(k, head_kv);
        const auto        values = read_head(v, head_kv);
        const turned_rows turned_keys(keys, d_k);
        const turned_rows turned_values(values, d_v);

        std::vector<float> squares(n_kv); // |v|^2
        for (int64_t j = 0; j < n_kv; ++j) {
            squares[j] = dot(values.data() + j*d_v, values.data() + j*d_v, d_v);
        }

        std::vector<double> of_keys(n_kv);
        std::vector<float>  share(n_kv), product(n_kv);
        for (int64_t row = head_kv*group*n_tokens; row < (head_kv + 1)*group*n_tokens; ++row) {
            const float * query  = queries.data() + row*d_k;
            const float * output = outputs.data() + row*d_v;
            const double  square = dot(output, output, d_v);

            turned_keys.multiply(query, share);
            softmax.shares(share, row % n_tokens, row/n_tokens);
            turned_values.multiply(output, product);

            double of_query = 0.0;
            for (int64_t j = 0; j < n_kv; ++j) {
                // what was never stored may hold anything
                const double w = share[j] == 0.0f ? 0.0 : share[j]*share[j]*std::max(0.0, squares[j] - 2.0*product[j] + square);
                of_query   += w;
                of_keys[j] += w;
            }
            sums.add_query(of_query, query);
        }
        for (int64_t j = 0; j < n_kv; ++j) {
            if (of_keys[j] > 0.0) {
                sums.add_key(of_keys[j], keys.data() + j*d_k);
            }
        }
    }
};

// The sums of one layer, by KV head.
struct layer_sums {
    int64_t n_tokens = 0; // of the queries that were read, once for every layer that reads these keys

    std::vector<moment_sums> heads;
};

class summing : public graph_watcher {
public:
    std::map<int, layer_sums> layers;

    explicit summing(int64_t n_threads) : n_threads(n_threads) {}

protected:
    void begin_batch(int32_t, int32_t) override {}

    void take_queries(int il, const ggml_tensor * attention) override {
        const attention_batch batch(attention);
        const int64_t         n_head = batch.k->ne[2];

        layer_sums & layer = layers[il];
        if (layer.heads.empty()) {
            layer.heads.assign(n_head, moment_sums(batch.k->ne[0]));
        }
        layer.n_tokens += batch.n_tokens;

        // each head is summed by one thread, so that the order of additions is always the same
        std::vector<std::thread> threads;
        for (int64_t i = 0; i < std::min(n_threads, n_head); ++i) {
            threads.emplace_back([&, i] {
                for (int64_t head = i; head < n_head; head += n_threads) {
                    batch.add_to(layer.heads[head], head);
                }
            });
        }
        for (auto & thread : threads) {
            thread.join();
        }
    }

private:
    int64_t n_threads;
};

// from the lower triangle of square [n][n]
static void fill_upper(double * square, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < i; ++j) {
            square[j*n + i] = square[i*n + j];
        }
    }
}

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
        for (moment_sums & sums : entry.second.heads) {
            write(&sums.key_weight, 1);
            write(&sums.query_weight, 1);
            write(sums.key_sum.data(), sums.key_sum.size());
            for (auto * square : { &sums.key_square, &sums.query_square }) {
                fill_upper(square->data(), sums.head_dim);
                write(square->data(), square->size());
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
        if (entry.second.n_tokens % n_tokens != 0) {
            throw std::runtime_error("layer " + std::to_string(entry.first) + " read queries of " + std::to_string(entry.second.n_tokens) +
                                     " tokens, where there are " + std::to_string(n_tokens) + "; its attention is of another kind");
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
    summing sums(opts.n_threads > 0 ? opts.n_threads : std::max(1u, std::thread::hardware_concurrency()));
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
        const auto & heads = entry.second.heads;
        layers.push_back({
            { "layer",     entry.first        },
            { "n_head_kv", heads.size()       },
            { "head_dim",  heads[0].head_dim  },
        });
    }
    print_line({ { "kind", "end" }, { "layers", layers } });
}

int main(int argc, char ** argv) {
    library_log log;
    return run_program(log, run, argc, argv);
}
