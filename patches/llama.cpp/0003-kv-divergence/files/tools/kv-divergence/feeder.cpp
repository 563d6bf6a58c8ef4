#include "feeder.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <utility>

// A cache reads from the environment, when it is made, that it is not to rotate.
class without_rotation {
public:
    explicit without_rotation(bool active) : active(active) {
        if (active) {
            set("1");
        }
    }
    ~without_rotation() {
        if (active) {
            set("0");
        }
    }

private:
    bool active;

    static void set(const char * value) {
#ifdef _WIN32
        _putenv_s("LLAMA_ATTN_ROT_DISABLE", value);
#else
        setenv("LLAMA_ATTN_ROT_DISABLE", value, 1);
#endif
    }
};

feeder::feeder(llama_model * model, const cache_options & cache, const options & opts, int32_t n_threads, std::string name)
    : cache(cache), n_ubatch(opts.n_ubatch), name(std::move(name)) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = opts.n_ctx;
    params.n_batch         = opts.n_ubatch;
    params.n_ubatch        = opts.n_ubatch;
    params.n_seq_max       = 1;
    params.n_threads       = n_threads;
    params.n_threads_batch = n_threads;
    params.flash_attn_type = opts.flash_attn;
    params.type_k          = cache.type_k;
    params.type_v          = cache.type_v;
    params.kv_layers       = cache.kv_layers.empty() ? nullptr : cache.kv_layers.c_str();
    params.swa_full        = false; // nothing is rewound
    params.no_perf         = true;

    {
        const without_rotation guard(!cache.rotation);
        ctx.reset(llama_init_from_model(model, params));
    }
    if (!ctx) {
        throw std::runtime_error("cannot make the " + this->name + "'s context");
    }

    batch = llama_batch_init(n_ubatch, 0, 1);
}

feeder::~feeder() {
    llama_batch_free(batch);
}

void feeder::start(const std::vector<llama_token> & tokens, int32_t score_from) {
    this->tokens     = &tokens;
    this->score_from = score_from;

    batch_start = 0;
    n_fed       = 0;

    llama_memory_clear(llama_get_memory(ctx.get()), true);
}

std::vector<const float *> feeder::logits(const std::vector<int32_t> & positions, size_t first) {
    while (positions[first] >= n_fed) {
        feed_batch(positions);
    }

    std::vector<const float *> res;
    for (size_t i = first; i < positions.size() && positions[i] < n_fed; ++i) {
        res.push_back(llama_get_logits_ith(ctx.get(), positions[i] - batch_start));
        if (!res.back()) {
            throw std::runtime_error("the " + name + "'s context gives no logits at position " + std::to_string(positions[i]));
        }
    }

    return res;
}

void feeder::feed_batch(const std::vector<int32_t> & positions) {
    int32_t end = (int32_t) tokens->size();
    if (cache.path == feed_path::decode) {
        end = n_fed < score_from ? score_from : n_fed + 1;
    }

    batch_start    = n_fed;
    batch.n_tokens = std::min(end - n_fed, n_ubatch);

    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const int32_t position = batch_start + i;

        batch.token   [i]    = (*tokens)[position];
        batch.pos     [i]    = position;
        batch.n_seq_id[i]    = 1;
        batch.seq_id  [i][0] = 0;
        batch.logits  [i]    = std::binary_search(positions.begin(), positions.end(), position);
    }
    n_fed += batch.n_tokens;

    if (const int32_t status = llama_decode(ctx.get(), batch)) {
        throw std::runtime_error("the " + name + "'s context cannot take the tokens from position " +
                                 std::to_string(batch_start) + " (status " + std::to_string(status) + ")");
    }
}
