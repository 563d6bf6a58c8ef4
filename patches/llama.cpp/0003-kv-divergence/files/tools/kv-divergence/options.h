#pragma once

#include "inputs.h"

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

// How the scored tokens of a chunk reach a context: in batches, or one by one after the others went in as batches.
enum class feed_path { prefill, decode };

const char * feed_path_name(feed_path path);

// One of the caches that are compared, and how its context is fed.
struct cache_options {
    std::string kv_layers; // a policy in normal form; empty: none
    ggml_type   type_k   = GGML_TYPE_F16;
    ggml_type   type_v   = GGML_TYPE_F16;
    bool        rotation = true; // llama.cpp's own, where a type is quantized
    feed_path   path     = feed_path::prefill;
    int64_t     n_chunks = 0;    // scored chunks that are enough; 0: all
};

struct options {
    bool help    = false;
    bool verbose = false;

    std::string              model;
    std::vector<std::string> files;

    cache_options              baseline; // its path is the first policy's unless given
    std::vector<cache_options> policies; // at least one

    int32_t n_ctx       = 512;
    int32_t n_ubatch    = 512;
    int32_t n_threads   = 0;  // of the machine
    int32_t n_jobs      = 1;  // policies that are run at the same time, each with its part of the threads
    int32_t n_contexts  = 8;  // policies whose contexts are kept from chunk to chunk, when they are no more than that
    int32_t score_from  = -1; // half a context
    int32_t every       = 1;
    int64_t n_tokens    = 0;  // all
    int64_t skip_chunks = 0;
    int64_t logits_mib  = 1024; // of the baseline, held at a time

    bool parse_special = false;

    llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
};

// throws usage_error
options parse_options(int argc, char ** argv);

const char * usage_text();
