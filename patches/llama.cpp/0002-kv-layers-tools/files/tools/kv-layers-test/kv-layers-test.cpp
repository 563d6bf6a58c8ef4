// Runs the policy vectors: every text that must be accepted, with its normal form, every text that must be rejected,
// with its error and column, and what each policy gives on a model's layers.
//
// usage: llama-kv-layers-test VECTORS.json
// exit:  0 every vector holds, 1 some do not (one line each on stderr), 2 the file cannot be used

#include "llama-kv-policy.h"

#include <nlohmann/json.hpp>

#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

static json error_result(const llama_kv_policy_error & err) {
    json res = { { "error", err.code } };
    if (err.column > 0) {
        res["column"] = err.column;
    }
    if (err.line > 1) {
        res["line"] = err.line;
    }

    return res;
}

// the result of one text in the form of the vectors
static json parse_result(const std::string & text) {
    try {
        const std::string canonical = llama_kv_policy::parse(text).str();
        if (llama_kv_policy::parse(canonical).str() != canonical) {
            return { { "canonical", canonical + " (which is not its own normal form)" } };
        }
        return { { "canonical", canonical } };
    } catch (const llama_kv_policy_error & err) {
        return error_result(err);
    }
}

static json type_names(const std::vector<ggml_type> & types) {
    json res = json::array();
    for (const ggml_type type : types) {
        res.push_back(type == GGML_TYPE_COUNT ? json() : json(ggml_type_name(type)));
    }

    return res;
}

// a default type of the vectors; names are in either case, as in a policy
static ggml_type default_type(const std::string & name) {
    std::string folded = name;
    for (char & c : folded) {
        c += c >= 'A' && c <= 'Z' ? 'a' - 'A' : 0;
    }

    const ggml_type res = llama_kv_type_from_name(folded);
    if (res == GGML_TYPE_COUNT) {
        throw llama_kv_policy_error("type", "unknown default type '" + name + "'");
    }

    return res;
}

static json resolve_result(const json & vector) {
    try {
        std::vector<bool> keeps_cache;
        for (const auto & layer : vector.at("layers")) {
            keeps_cache.push_back(layer == "attn");
        }

        const auto types = llama_kv_policy::parse(vector.at("text").get<std::string>()).resolve(
                keeps_cache, default_type(vector.at("default_k")), default_type(vector.at("default_v")));

        json warnings = json::array();
        for (const auto & warning : types.warnings) {
            warnings.push_back(warning.code);
        }

        return { { "k", type_names(types.type_k) }, { "v", type_names(types.type_v) }, { "warnings", warnings } };
    } catch (const llama_kv_policy_error & err) {
        return { { "error", err.code } };
    }
}

// what a vector says of its result: all members but the input
static json expected(const json & vector) {
    json res = vector;
    for (const char * input : { "text", "default_k", "default_v", "layers" }) {
        res.erase(input);
    }

    return res;
}

static bool holds(const char * kind, const json & vector, const json & got) {
    const json want = expected(vector);

    // as maps: the order of members does not matter
    if (nlohmann::json(got) == nlohmann::json(want)) {
        return true;
    }

    fprintf(stderr, "%s %s: expected %s, got %s\n", kind, vector.at("text").dump().c_str(), want.dump().c_str(), got.dump().c_str());
    return false;
}

static int run(const char * path) {
    std::ifstream file(path);
    if (!file) {
        fprintf(stderr, "error: cannot read %s\n", path);
        return 2;
    }

    const json vectors = json::parse(file);

    size_t n_run    = 0;
    size_t n_failed = 0;

    for (const auto & name : vectors.at("types")) {
        ++n_run;
        if (llama_kv_type_from_name(name) == GGML_TYPE_COUNT) {
            ++n_failed;
            fprintf(stderr, "type %s: expected to be known\n", name.dump().c_str());
        }
    }
    for (const auto & vector : vectors.at("parse")) {
        ++n_run;
        n_failed += !holds("parse", vector, parse_result(vector.at("text")));
    }
    for (const auto & vector : vectors.at("resolve")) {
        ++n_run;
        n_failed += !holds("resolve", vector, resolve_result(vector));
    }

    printf("%zu vectors, %zu failed\n", n_run, n_failed);

    if (n_run == 0) {
        fprintf(stderr, "error: %s holds no vectors\n", path);
        return 2;
    }

    return n_failed > 0 ? 1 : 0;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s VECTORS.json\n", argv[0]);
        return 2;
    }

    try {
        return run(argv[1]);
    } catch (const std::exception & err) {
        fprintf(stderr, "error: %s: %s\n", argv[1], err.what());
        return 2;
    }
}
