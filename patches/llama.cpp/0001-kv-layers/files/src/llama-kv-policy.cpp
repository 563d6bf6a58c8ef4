#include "llama-kv-policy.h"

#include <algorithm>
#include <cstring>
#include <utility>

static const ggml_type LLAMA_KV_TYPES[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,
};

ggml_type llama_kv_type_from_name(const std::string & name) {
    for (const ggml_type type : LLAMA_KV_TYPES) {
        if (name == ggml_type_name(type)) {
            return type;
        }
    }

    return GGML_TYPE_COUNT;
}

static std::string kv_type_names() {
    std::string res;
    for (const ggml_type type : LLAMA_KV_TYPES) {
        res += (res.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }

    return res;
}

llama_kv_policy_error::llama_kv_policy_error(const char * code, size_t column, const std::string & message) :
    std::invalid_argument((column > 0 ? "column " + std::to_string(column) + ": " : "") + message),
    code(code), column(column) {
}

//
// rules as text
//

static std::string rule_selector(const llama_kv_rule & rule) {
    const std::string kv    = rule.cached ? "kv" : "";
    const std::string first = kv + std::to_string(rule.first);

    if (rule.last == LLAMA_KV_OPEN_END) {
        return !rule.cached && rule.first == 0 ? "*" : first + "-";
    }

    return rule.last == rule.first ? first : first + "-" + kv + std::to_string(rule.last);
}

static std::string rule_types(const llama_kv_rule & rule) {
    if (rule.type_k == rule.type_v) {
        return ggml_type_name(rule.type_k);
    }

    std::string res;
    if (rule.type_k != GGML_TYPE_COUNT) {
        res += std::string("k=") + ggml_type_name(rule.type_k);
    }
    if (rule.type_v != GGML_TYPE_COUNT) {
        res += std::string(res.empty() ? "v=" : "/v=") + ggml_type_name(rule.type_v);
    }

    return res;
}

static std::string rule_str(const llama_kv_rule & rule) {
    return rule_selector(rule) + ":" + rule_types(rule);
}

std::string llama_kv_policy::str() const {
    std::string res;
    for (const auto & rule : rules) {
        res += (res.empty() ? "" : ",") + rule_str(rule);
    }

    return res;
}

//
// text to rules
//

// A position in the text: every method reads one construct of the grammar and moves past it.
class llama_kv_policy_reader {
public:
    llama_kv_policy_reader(const std::string & text) : text(text), folded(text) {
        for (char & c : folded) {
            if (c >= 'A' && c <= 'Z') {
                c += 'a' - 'A';
            }
        }
    }

    // starts: where each rule begins
    std::vector<llama_kv_rule> policy(std::vector<size_t> & starts) {
        skip(" \t");
        if (at == text.size()) {
            fail("empty", 0, "the policy is empty, write a rule such as *:q8_0");
        }

        std::vector<llama_kv_rule> rules;
        while (true) {
            skip(" \t");
            starts.push_back(at);
            rules.push_back(rule());
            skip(" \t");
            if (at == text.size()) {
                return rules;
            }
            expect(",", "',' and another rule, or the end");
        }
    }

    [[noreturn]] static void fail(const char * code, size_t at, const std::string & message) {
        throw llama_kv_policy_error(code, at + 1, message);
    }

private:
    const std::string & text;
    std::string         folded; // the text with ASCII letters in lower case
    size_t              at = 0;

    llama_kv_rule rule() {
        llama_kv_rule res = {};
        selector(res);
        expect(":", "':' and a type");
        sides(res);
        return res;
    }

    void selector(llama_kv_rule & rule) {
        if (take("*")) {
            rule.last = LLAMA_KV_OPEN_END;
            return;
        }

        rule.cached = take("kv");
        rule.first  = number(rule.cached ? "a number" : "layers (0-10, 20-, kv0 or *)");
        rule.last   = rule.first;
        if (!take("-")) {
            return;
        }

        const bool closed = rule.cached ? take("kv") : at < text.size() && is_digit(text[at]);
        if (!closed) {
            rule.last = LLAMA_KV_OPEN_END;
            return;
        }

        const size_t at_last = at;
        rule.last = number("a number");
        if (rule.last < rule.first) {
            fail("range", at_last, "the range ends at " + std::to_string(rule.last) +
                    ", before its start " + std::to_string(rule.first));
        }
    }

    uint32_t number(const char * wanted) {
        const size_t at_number = at;

        uint32_t res = 0;
        for (; at < text.size() && is_digit(text[at]); ++at) {
            res = std::min(10*res + (text[at] - '0'), LLAMA_KV_OPEN_END);
        }

        if (at == at_number) {
            fail_syntax(wanted);
        }
        if (res == LLAMA_KV_OPEN_END) {
            fail("number", at_number, "the number is too large, the limit is " + std::to_string(LLAMA_KV_OPEN_END - 1));
        }

        return res;
    }

    void sides(llama_kv_rule & rule) {
        rule.type_k = GGML_TYPE_COUNT;
        rule.type_v = GGML_TYPE_COUNT;

        ggml_type * side = next_side(rule);
        if (!side) {
            rule.type_k = rule.type_v = type();
            return;
        }

        at += strlen("k=");
        *side = type();
        if (!take("/")) {
            return;
        }

        side = next_side(rule);
        if (!side || *side != GGML_TYPE_COUNT) {
            fail_syntax(rule.type_k != GGML_TYPE_COUNT ? "'v=' and a type" : "'k=' and a type");
        }

        at += strlen("v=");
        *side = type();
    }

    // the side that "k=" or "v=" at this place announces, without moving
    ggml_type * next_side(llama_kv_rule & rule) const {
        return sees("k=") ? &rule.type_k : sees("v=") ? &rule.type_v : nullptr;
    }

    ggml_type type() {
        const size_t at_type = at;
        while (at < folded.size() && (is_digit(folded[at]) || folded[at] == '_' || (folded[at] >= 'a' && folded[at] <= 'z'))) {
            ++at;
        }
        if (at == at_type) {
            fail_syntax("a type");
        }

        const std::string name = folded.substr(at_type, at - at_type);
        const ggml_type   res  = llama_kv_type_from_name(name);
        if (res == GGML_TYPE_COUNT) {
            fail("type", at_type, "unknown type '" + name.substr(0, 32) + "'; known: " + kv_type_names());
        }

        return res;
    }

    static bool is_digit(char c) {
        return c >= '0' && c <= '9';
    }

    void skip(const char * characters) {
        at = std::min(folded.find_first_not_of(characters, at), folded.size());
    }

    bool sees(const char * word) const {
        return folded.compare(at, strlen(word), word) == 0;
    }

    bool take(const char * word) {
        if (!sees(word)) {
            return false;
        }
        at += strlen(word);
        return true;
    }

    void expect(const char * word, const char * wanted) {
        if (!take(word)) {
            fail_syntax(wanted);
        }
    }

    [[noreturn]] void fail_syntax(const char * wanted) const {
        std::string found = "the end";
        if (at < text.size()) {
            const bool printable = text[at] >= ' ' && text[at] <= '~';
            found = printable ? std::string("'") + text[at] + "'" : "a character that is not printable ASCII";
        }
        fail("syntax", at, std::string("expected ") + wanted + ", found " + found);
    }
};

// Layers and cache positions can only be compared on a model, with one exception: rules that together name every layer
// leave nothing for a cache position to name.
static void check_overlap(const std::vector<llama_kv_rule> & rules, const std::vector<size_t> & starts) {
    size_t n_layers  = 0; // numbers named by layer rules
    bool  any_cached = false;

    for (size_t i = 0; i < rules.size(); ++i) {
        const auto & rule = rules[i];

        for (size_t j = 0; j < i; ++j) {
            if (rules[j].cached == rule.cached && rules[j].first <= rule.last && rule.first <= rules[j].last) {
                llama_kv_policy_reader::fail("overlap", starts[i], "'" + rule_str(rule) + "' names layers that '" +
                        rule_str(rules[j]) + "' already names; name each layer once");
            }
        }

        any_cached |= rule.cached;
        n_layers   += rule.cached ? 0 : rule.last - rule.first + 1;
        if (any_cached && n_layers == LLAMA_KV_OPEN_END + 1) {
            llama_kv_policy_reader::fail("overlap", starts[i], "'" + rule_str(rule) +
                    "' joins layer rules for every layer and kv rules in one policy; name each layer once");
        }
    }
}

llama_kv_policy llama_kv_policy::parse(const std::string & text) {
    std::vector<size_t> starts;

    auto rules = llama_kv_policy_reader(text).policy(starts);
    check_overlap(rules, starts);

    std::sort(rules.begin(), rules.end(), [](const llama_kv_rule & a, const llama_kv_rule & b) {
        return std::make_pair(a.cached, a.first) < std::make_pair(b.cached, b.first);
    });

    llama_kv_policy res;
    for (const auto & rule : rules) {
        auto * last = res.rules.empty() ? nullptr : &res.rules.back();

        if (last && last->cached == rule.cached && last->last + 1 == rule.first &&
                last->type_k == rule.type_k && last->type_v == rule.type_v) {
            last->last = rule.last;
        } else {
            res.rules.push_back(rule);
        }
    }

    return res;
}

//
// rules on a model
//

llama_kv_layer_types llama_kv_policy::resolve(const std::vector<bool> & keeps_cache, ggml_type type_k, ggml_type type_v) const {
    const uint32_t n_layer = keeps_cache.size();

    std::vector<uint32_t> kv_layers; // the layers that keep a cache, in order
    llama_kv_layer_types  res;

    for (uint32_t il = 0; il < n_layer; ++il) {
        res.type_k.push_back(keeps_cache[il] ? type_k : GGML_TYPE_COUNT);
        res.type_v.push_back(keeps_cache[il] ? type_v : GGML_TYPE_COUNT);
        if (keeps_cache[il]) {
            kv_layers.push_back(il);
        }
    }

    std::vector<const llama_kv_rule *> ruled(n_layer, nullptr);

    for (const auto & rule : rules) {
        const uint32_t n_there = rule.cached ? kv_layers.size() : n_layer;

        bool effect = false;
        for (uint32_t i = rule.first; i < n_there && i <= rule.last; ++i) {
            const uint32_t il = rule.cached ? kv_layers[i] : i;
            if (!keeps_cache[il]) {
                continue;
            }

            if (ruled[il]) {
                throw llama_kv_policy_error("overlap", 0, "'" + rule_str(*ruled[il]) + "' and '" + rule_str(rule) +
                        "' both name layer " + std::to_string(il) + "; name each layer once");
            }

            ruled[il]      = &rule;
            res.type_k[il] = rule.type_k != GGML_TYPE_COUNT ? rule.type_k : type_k;
            res.type_v[il] = rule.type_v != GGML_TYPE_COUNT ? rule.type_v : type_v;

            effect = true;
        }

        if (rule.last != LLAMA_KV_OPEN_END && rule.last >= n_there) {
            res.warnings.push_back({ "clipped", "'" + rule_str(rule) + "' goes past the end, the model has " +
                    std::to_string(n_there) + (rule.cached ? " layers with a cache" : " layers") });
        }
        if (!effect) {
            res.warnings.push_back({ "no-effect", "'" + rule_str(rule) +
                    "' has no effect, it names no layer that keeps a cache of its own" });
        }
    }

    return res;
}
