#pragma once

#include "options.h"

#include "llama-cpp.h"

#include <cstdint>
#include <string>
#include <vector>

// One context and the chunk of text it is being fed. Logits are kept for one batch only.
class feeder {
public:
    // n_threads: of this context; name: what messages call it
    // Not while another thread makes one: whether a cache rotates is read from the environment.
    // throws std::runtime_error when the context cannot be made
    feeder(llama_model * model, const cache_options & cache, const options & opts, int32_t n_threads, std::string name);
    ~feeder();

    feeder(const feeder &) = delete;
    feeder & operator=(const feeder &) = delete;

    // Forgets what it was fed and starts a chunk.
    //   tokens:     stay the caller's, and valid until the next chunk
    //   score_from: first position whose logits can be asked for
    void start(const std::vector<llama_token> & tokens, int32_t score_from);

    // The logits after the tokens at positions[first], positions[first + 1], ... as far as one batch gives them, each
    // [n_vocab]; valid until the next call. Positions ascend, within a list and from list to list; no list begins within
    // a batch of the one before. throws std::runtime_error when the model cannot be run
    std::vector<const float *> logits(const std::vector<int32_t> & positions, size_t first);

private:
    cache_options cache;
    int32_t       n_ubatch;
    std::string   name;

    llama_context_ptr ctx;
    llama_batch       batch;

    const std::vector<llama_token> * tokens = nullptr;

    int32_t score_from  = 0;
    int32_t batch_start = 0; // position of the batch's first token
    int32_t n_fed       = 0;

    void feed_batch(const std::vector<int32_t> & positions);
};
