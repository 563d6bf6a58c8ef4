#pragma once

#include "../../src/llama-kv-policy.h"

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

// The options of llama-bench that say how K and V are stored. An option may be given several times; each of its values is
// one of the sweep, and "none" stands for not giving it.

struct kv_setting {
    std::string layers = "none";

    // points into the setting
    void apply(llama_context_params & params) const {
        const auto given = [](const std::string & value) { return value == "none" ? nullptr : value.c_str(); };

        params.kv_layers = given(layers);
    }
};

struct kv_option {
    const char * name;
    std::string kv_setting::* member;
    std::string (*read)(const std::string & text); // its normal form, or an exception

    std::vector<std::string> values;
};

static std::vector<kv_option> kv_options = {
    // not split at commas, they separate the rules of a policy
    { "--kv-layers", &kv_setting::layers, [](const std::string & text) { return llama_kv_policy::read(text).str(); }, {} },
};

// Takes the option at argv[i] and its value; false when it is another option. Ends the program on a text that is not valid.
static bool kv_take(const std::string & arg, int argc, char ** argv, int & i) {
    for (auto & option : kv_options) {
        if (arg != option.name) {
            continue;
        }
        if (++i >= argc) {
            fprintf(stderr, "error: %s: a value is missing\n", option.name);
            exit(1);
        }
        try {
            const std::string value = argv[i];
            option.values.push_back(value == "none" ? value : option.read(value));
        } catch (const std::exception & e) {
            fprintf(stderr, "error: %s: %s\n", option.name, e.what());
            exit(1);
        }
        return true;
    }
    return false;
}

// the values of the sweep
static std::vector<kv_setting> kv_settings() {
    std::vector<kv_setting> res = { kv_setting() };
    for (const auto & option : kv_options) {
        if (option.values.empty()) {
            continue;
        }
        std::vector<kv_setting> all;
        for (const auto & setting : res) {
            for (const auto & value : option.values) {
                all.push_back(setting);
                all.back().*option.member = value;
            }
        }
        res = all;
    }
    return res;
}

// there is something to compare
static bool kv_shown(std::string kv_setting::* member) {
    for (const auto & setting : kv_settings()) {
        if (setting.*member != "none") {
            return true;
        }
    }
    return false;
}

// the options that give it; empty for none
static std::string kv_given(const kv_setting & setting) {
    std::string res;
    for (const auto & option : kv_options) {
        if (setting.*option.member != "none") {
            res += (res.empty() ? "" : " ") + std::string(option.name) + " " + setting.*option.member;
        }
    }
    return res;
}
