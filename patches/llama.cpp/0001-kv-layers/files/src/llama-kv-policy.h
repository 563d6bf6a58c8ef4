#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

// The policy language of --kv-layers: which K and V cache type each layer of a model gets.
//
//   policy   = preset | type | rule *("," rule)        blanks and comments may surround each of these
//   rule     = selector ":" types
//   selector = "*" | "rest" | N | N "-" [N] | "kv" N | "kv" N "-" ["kv" N]
//            | ["kv"] "first" N | "last" N ["-" "last" N] | "kvlast" N ["-" "kvlast" N]
//   types    = type | side ["/" side]                  each side at most once
//   side     = ("k" | "v") "=" type
//   preset   = "hybrid" | "k8v4"
//   N        = 1*digit                                 at most 65535; leading zeros are allowed
//   type     = f32 | f16 | bf16 | q8_0 | q4_0 | q4_1 | iq4_nl | q5_0 | q5_1
//
// A plain N counts the model's layers, "kv" N the layers that keep a cache of their own, "last" N layers from the end.
// Blanks are spaces, tabs and line breaks; a comment goes from "#" to the end of its line. Letters may be of either case.

// A policy text, or its use on a model, breaks a rule. what() is one line.
struct LLAMA_API llama_kv_policy_error : public std::invalid_argument {
    // code:         "empty", "preset", "syntax", "number", "type", "range" or "overlap"
    // line, column: of the character at fault, from 1; 0 when the text alone is not at fault
    llama_kv_policy_error(const char * code, const std::string & message, size_t line = 0, size_t column = 0) :
        std::invalid_argument(message), code(code), line(line), column(column) {}

    const char * code;
    size_t       line;
    size_t       column;
};

// What the numbers of a rule count; in the order of the normal form.
enum llama_kv_counting {
    LLAMA_KV_LAYERS,
    LLAMA_KV_LAST,        // layers from the end: 1 is the last one
    LLAMA_KV_CACHED,      // layers that keep a cache of their own
    LLAMA_KV_LAST_CACHED,
    LLAMA_KV_REST,        // nothing: the layers that no other rule names

    LLAMA_KV_COUNTINGS,
};

// The numbers first..last get the types. From the end, first is the one nearer to the end.
// GGML_TYPE_COUNT: this side is left to the default.
struct llama_kv_rule {
    llama_kv_counting counting;

    uint32_t  first;
    uint32_t  last;   // LLAMA_KV_OPEN_END: every later one too
    ggml_type type_k;
    ggml_type type_v;
};

#define LLAMA_KV_OPEN_END 65536u // above every number that can be written

// A rule that has no, or less, effect on a model. code: "clipped" or "no-effect"
struct llama_kv_warning {
    const char * code;
    std::string  message;
};

// The types of every layer; GGML_TYPE_COUNT where the layer keeps no cache of its own.
struct llama_kv_layer_types {
    std::vector<ggml_type> type_k; // [n_layer]
    std::vector<ggml_type> type_v; // [n_layer]

    std::vector<llama_kv_warning> warnings;
};

// Rules in normal form: by way of counting, ascending, equal neighbours merged.
struct LLAMA_API llama_kv_policy {
    std::vector<llama_kv_rule> rules;

    // throws llama_kv_policy_error
    static llama_kv_policy parse(const std::string & text);

    // a policy, or @FILE that holds one; throws llama_kv_policy_error, or std::runtime_error when the file cannot be read
    static llama_kv_policy read(const std::string & argument);

    // the normal form as text: parse(str()) gives the same rules
    std::string str() const;

    // keeps_cache[il]: layer il keeps a cache of its own
    // type_k, type_v:  what a side that no rule names gets
    // throws llama_kv_policy_error "overlap" when rules that count in different ways meet on one layer
    llama_kv_layer_types resolve(const std::vector<bool> & keeps_cache, ggml_type type_k, ggml_type type_v) const;
};

// The cache type of a name in lower case; GGML_TYPE_COUNT when a cache cannot have it.
LLAMA_API ggml_type llama_kv_type_from_name(const std::string & name);
