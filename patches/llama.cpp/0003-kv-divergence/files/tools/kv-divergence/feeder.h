#pragma once

#include "options.h"

#include "llama-cpp.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// One context and the chunk of text it is being fed. Logits are kept for one batch only.
class feeder {
public:
    // name: what messages call this side
    // throws std::runtime_error when the context cannot be made
    feeder(llama_model * model, const side_options & side, const options & opts, std::string name);
    ~feeder();

    feeder(const feeder &) = delete;
    feeder & operator=(const feeder &) = delete;

    // Forgets what it was fed and starts a chunk.
    //   tokens:     stay the caller's, and valid until the next chunk
    //   score_from: first position whose logits will be asked for
    //   scored:     whether a position's logits will be asked for
    void start(const std::vector<llama_token> & tokens, int32_t score_from, std::function<bool(int32_t)> scored);

    // The logits after the chunk's token at a scored position, [n_vocab]; valid until the next call.
    // Positions must ascend. throws std::runtime_error when the model cannot be run
    const float * logits(int32_t position);

private:
    side_options side;
    std::string  name;

    llama_context_ptr ctx;
    llama_batch       batch;

    const std::vector<llama_token> * tokens = nullptr;
    std::function<bool(int32_t)>     scored;

    int32_t score_from  = 0;
    int32_t batch_start = 0; // position of the batch's first token
    int32_t n_fed       = 0;

    void feed_batch();
};
