#pragma once

#include "llama.h"

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// A command line that cannot be used. what() is one line.
struct usage_error : public std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// How the scored tokens of a chunk reach a context: in batches, or one by one after the others went in as batches.
enum class feed_path { prefill, decode };

const char * feed_path_name(feed_path path);

// One of the two caches that are compared, and how its context is fed.
struct side_options {
    std::string kv_layers; // a policy in normal form; empty: none
    ggml_type   type_k   = GGML_TYPE_F16;
    ggml_type   type_v   = GGML_TYPE_F16;
    feed_path   path     = feed_path::prefill;
    int32_t     n_ubatch = 512;
};

struct options {
    bool help    = false;
    bool verbose = false;

    std::string              model;
    std::vector<std::string> files;

    side_options policy;
    side_options baseline; // path and n_ubatch are the policy's unless given

    int32_t n_ctx      = 512;
    int32_t n_threads  = 0;  // of the machine
    int32_t score_from = -1; // half a context
    int32_t every      = 1;
    int64_t n_tokens   = 0;  // all
    int64_t skip       = 0;

    bool parse_special = false;

    llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
};

// throws usage_error
options parse_options(int argc, char ** argv);

const char * usage_text();
