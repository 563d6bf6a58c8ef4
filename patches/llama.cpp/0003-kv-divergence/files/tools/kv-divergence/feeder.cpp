#include "feeder.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

feeder::feeder(llama_model * model, const side_options & side, const options & opts, std::string name)
    : side(side), name(std::move(name)) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = opts.n_ctx;
    params.n_batch         = side.n_ubatch;
    params.n_ubatch        = side.n_ubatch;
    params.n_seq_max       = 1;
    params.n_threads       = opts.n_threads;
    params.n_threads_batch = opts.n_threads;
    params.flash_attn_type = opts.flash_attn;
    params.type_k          = side.type_k;
    params.type_v          = side.type_v;
    params.kv_layers       = side.kv_layers.empty() ? nullptr : side.kv_layers.c_str();
    params.swa_full        = false; // nothing is rewound
    params.no_perf         = true;

    ctx.reset(llama_init_from_model(model, params));
    if (!ctx) {
        throw std::runtime_error("cannot make the " + this->name + "'s context");
    }

    batch = llama_batch_init(side.n_ubatch, 0, 1);
}

feeder::~feeder() {
    llama_batch_free(batch);
}

void feeder::start(const std::vector<llama_token> & tokens, int32_t score_from, std::function<bool(int32_t)> scored) {
    this->tokens     = &tokens;
    this->scored     = std::move(scored);
    this->score_from = score_from;

    batch_start = 0;
    n_fed       = 0;

    llama_memory_clear(llama_get_memory(ctx.get()), true);
}

const float * feeder::logits(int32_t position) {
    while (position >= n_fed) {
        feed_batch();
    }

    const float * res = llama_get_logits_ith(ctx.get(), position - batch_start);
    if (!res) {
        throw std::runtime_error("the " + name + "'s context gives no logits at position " + std::to_string(position));
    }

    return res;
}

void feeder::feed_batch() {
    int32_t end = (int32_t) tokens->size();
    if (side.path == feed_path::decode) {
        end = n_fed < score_from ? score_from : n_fed + 1;
    }

    batch_start    = n_fed;
    batch.n_tokens = std::min(end - n_fed, side.n_ubatch);

    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const int32_t position = batch_start + i;

        batch.token   [i]    = (*tokens)[position];
        batch.pos     [i]    = position;
        batch.n_seq_id[i]    = 1;
        batch.seq_id  [i][0] = 0;
        batch.logits  [i]    = scored(position);
    }
    n_fed += batch.n_tokens;

    if (const int32_t status = llama_decode(ctx.get(), batch)) {
        throw std::runtime_error("the " + name + "'s context cannot take the tokens from position " +
                                 std::to_string(batch_start) + " (status " + std::to_string(status) + ")");
    }
}
