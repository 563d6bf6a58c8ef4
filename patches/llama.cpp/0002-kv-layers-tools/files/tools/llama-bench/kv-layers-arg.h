#pragma once

#include "../../src/llama-kv-policy.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

// --kv-layers of llama-bench: one policy per option, each is a value of the sweep; "none" stands for no policy.

static std::vector<std::string> kv_layers_args;

// Takes the option at argv[i] and its value; false when it is another option. Ends the program on a text that is not valid.
static bool kv_layers_take(const std::string & arg, int argc, char ** argv, int & i) {
    if (arg != "--kv-layers") {
        return false;
    }
    if (++i >= argc) {
        fprintf(stderr, "error: --kv-layers: a policy is missing\n");
        exit(1);
    }
    try {
        // not split at commas, they separate the rules of a policy
        const std::string value = argv[i];
        kv_layers_args.push_back(value == "none" ? value : llama_kv_policy::read(value).str());
    } catch (const std::exception & e) {
        fprintf(stderr, "error: --kv-layers: %s\n", e.what());
        exit(1);
    }
    return true;
}

// the values of the sweep
static std::vector<std::string> kv_layers_values() {
    return kv_layers_args.empty() ? std::vector<std::string>{ "none" } : kv_layers_args;
}

// there is something to compare
static bool kv_layers_shown() {
    return kv_layers_values() != std::vector<std::string>{ "none" };
}

// for llama_context_params::kv_layers; points into the policy
static const char * kv_layers_param(const std::string & policy) {
    return policy == "none" ? nullptr : policy.c_str();
}
