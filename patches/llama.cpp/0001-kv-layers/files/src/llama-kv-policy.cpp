#include "llama-kv-policy.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
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

// texts with a name, beside one for each type
static const struct {
    const char * name;
    const char * text;
} LLAMA_KV_PRESETS[] = {
    { "hybrid", "0-10:q8_0,11-31:q4_0" },
    { "k8v4",   "*:k=q8_0/v=q4_0" },
};

static std::string preset_text(const std::string & name) {
    for (const auto & preset : LLAMA_KV_PRESETS) {
        if (name == preset.name) {
            return preset.text;
        }
    }

    return llama_kv_type_from_name(name) == GGML_TYPE_COUNT ? "" : "*:" + name;
}

static std::string kv_type_names() {
    std::string res;
    for (const ggml_type type : LLAMA_KV_TYPES) {
        res += (res.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }

    return res;
}

//
// rules as text
//

static bool from_end(const llama_kv_rule & rule) {
    return rule.counting == LLAMA_KV_LAST || rule.counting == LLAMA_KV_LAST_CACHED;
}

static bool is_cached(const llama_kv_rule & rule) {
    return rule.counting == LLAMA_KV_CACHED || rule.counting == LLAMA_KV_LAST_CACHED;
}

static bool same_types(const llama_kv_rule & a, const llama_kv_rule & b) {
    return a.type_k == b.type_k && a.type_v == b.type_v;
}

static std::string rule_selector(const llama_kv_rule & rule) {
    static const char * prefixes[LLAMA_KV_COUNTINGS] = { "", "last", "kv", "kvlast", "rest" };

    const std::string prefix = prefixes[rule.counting];
    const std::string first  = prefix + std::to_string(rule.first);
    const std::string last   = prefix + std::to_string(rule.last);

    if (rule.counting == LLAMA_KV_REST) {
        return prefix;
    }
    if (from_end(rule)) {
        return rule.first == 1 ? last : last + "-" + first;
    }
    if (rule.last == LLAMA_KV_OPEN_END) {
        return rule.counting == LLAMA_KV_LAYERS && rule.first == 0 ? "*" : first + "-";
    }

    return rule.last == rule.first ? first : first + "-" + last;
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

// The bytes of the character at text[at], in UTF-8.
static std::string character_at(const std::string & text, size_t at) {
    size_t end = at + 1;
    while (end < text.size() && (text[end] & 0xC0) == 0x80) {
        ++end;
    }

    return text.substr(at, end - at);
}

// The character by name where it cannot be seen, and what to write instead where that is known.
static std::string character_name(const std::string & character, const char * hint) {
    static const struct {
        const char * characters;
        const char * hint;
    } instead[] = {
        { "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uFF0D",         "write -" },
        { "'\"`\u2018\u2019\u201A\u201B\u201C\u201D\u201E\u00AB\u00BB", "leave out the quotes" },
        { " \t\n\r",                                             "a rule holds no blanks" },
        { "\u00A0\u2007\u2009\u202F\u3000",                        "write a plain blank" },
        { "\uFEFF\u200B\u200C\u200D\u2060",                        "leave it out" },
        { ";\uFF0C\uFF1B\u3001",                                  "write ," },
        { "\uFF1A",                                               "write :" },
        { "=",                                                    "a colon joins layers and types, as in 0:k=q8_0/v=q4_0" },
        { ".\u2026",                                              "a range is written 0-10" },
        { "@",                                                    "a file is named alone, as in --kv-layers @policy.txt" },
    };

    std::string res = "'" + character + "'";
    if (character == " " || character == "\t") {
        res = character == " " ? "a blank" : "a tab";
    } else if (character == "\n" || character == "\r") {
        res = "a line break";
    } else if (character.size() == 1 && (character[0] < ' ' || character[0] > '~')) {
        res = "a character that is not printable";
    }

    for (const auto & known : instead) {
        if (!hint && strstr(known.characters, character.c_str()) && character[0] != '\0') {
            hint = known.hint;
        }
    }

    return hint ? res + ": " + hint : res;
}

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

    // the rules in the order of the text
    std::vector<llama_kv_rule> policy() {
        skip_blanks();
        if (at == text.size()) {
            fail("empty", 0, "there is no rule, write one such as *:q8_0");
        }

        const std::string known = preset();
        if (!known.empty()) {
            return llama_kv_policy_reader(known).policy();
        }

        std::vector<llama_kv_rule> rules;
        std::vector<size_t>        starts;
        while (true) {
            skip_blanks();
            starts.push_back(at);
            rules.push_back(rule());
            skip_blanks();
            if (at == text.size()) {
                check_overlap(rules, starts);
                return rules;
            }
            expect(",", "',' and another rule, or the end");
        }
    }

private:
    const std::string text;
    std::string       folded; // the text with ASCII letters in lower case
    size_t            at = 0;

    // what a text of a single word stands for; empty, without moving, for any other text
    std::string preset() {
        const size_t at_word = at;
        if (!is_letter(at) || sees("kv") || sees("first") || sees("last") || sees("rest")) {
            return "";
        }

        const std::string word = name();
        skip_blanks();
        if (at < text.size()) {
            at = at_word;
            return "";
        }

        const std::string res = preset_text(word);
        if (res.empty()) {
            std::string known;
            for (const auto & preset : LLAMA_KV_PRESETS) {
                known += std::string(preset.name) + ", ";
            }
            fail("preset", at_word, "unknown preset '" + word.substr(0, 32) + "'; known: " + known + kv_type_names());
        }

        return res;
    }

    llama_kv_rule rule() {
        llama_kv_rule res = {};
        selector(res);
        expect(":", "':' and a type");
        sides(res);
        return res;
    }

    void selector(llama_kv_rule & rule) {
        rule.last = LLAMA_KV_OPEN_END;
        if (take("*")) {
            return;
        }
        if (take("rest")) {
            rule.counting = LLAMA_KV_REST;
            return;
        }

        const bool cached = take("kv");
        rule.counting = cached ? LLAMA_KV_CACHED : LLAMA_KV_LAYERS;
        if (take("first")) {
            rule.last = number("a number", 1) - 1;
            return;
        }
        if (take("last")) {
            rule.counting = cached ? LLAMA_KV_LAST_CACHED : LLAMA_KV_LAST;
            from_the_end(rule, cached ? "kvlast" : "last");
            return;
        }

        rule.first = number(cached ? "a number, 'first' or 'last'" : "layers (0-10, 20-, last2, kv0, rest or *)", 0,
                selector_hint(cached).c_str());
        rule.last  = rule.first;
        if (!take("-")) {
            return;
        }

        const bool closed = cached ? take("kv") : is_digit(at);
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

    void from_the_end(llama_kv_rule & rule, const std::string & prefix) {
        rule.first = 1;
        rule.last  = number("a number", 1);
        if (!take("-")) {
            return;
        }

        expect(prefix.c_str(), "'" + prefix + "' and a number");
        const size_t at_first = at;
        rule.first = number("a number", 1);
        if (rule.first > rule.last) {
            fail("range", at_first, "the range ends at " + prefix + std::to_string(rule.first) +
                    ", before its start " + prefix + std::to_string(rule.last));
        }
    }

    // what to write instead of what stands here, where layers should be named; empty when that is not known
    std::string selector_hint(bool cached) {
        if (sees("-")) {
            return std::string("the last two layers are ") + (cached ? "kvlast2" : "last2");
        }
        if (cached) {
            return "";
        }

        const size_t      at_word = at;
        const std::string word    = name();
        at = at_word;

        return preset_text(word).empty() ? "" : word + " stands alone or behind layers, as in rest:q8_0";
    }

    uint32_t number(const char * wanted, uint32_t least = 0, const char * hint = "") {
        const size_t at_number = at;

        uint32_t res = 0;
        for (; is_digit(at); ++at) {
            res = std::min(10*res + (text[at] - '0'), LLAMA_KV_OPEN_END);
        }

        if (at == at_number) {
            fail_syntax(wanted, hint);
        }
        if (res == LLAMA_KV_OPEN_END) {
            fail("number", at_number, "the number is too large, the limit is " + std::to_string(LLAMA_KV_OPEN_END - 1));
        }
        if (res < least) {
            fail("number", at_number, "a number of layers is at least 1");
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
        const size_t      at_type = at;
        const std::string word    = name();
        if (word.empty()) {
            fail_syntax("a type");
        }

        const ggml_type res = llama_kv_type_from_name(word);
        if (res == GGML_TYPE_COUNT) {
            fail("type", at_type, "unknown type '" + word.substr(0, 32) + "'; known: " + kv_type_names());
        }

        return res;
    }

    // Two ways of counting can only be compared on a model, except where one of them has named every layer.
    void check_overlap(const std::vector<llama_kv_rule> & rules, const std::vector<size_t> & starts) const {
        std::map<uint32_t, const llama_kv_rule *> taken[LLAMA_KV_COUNTINGS]; // by first

        size_t n_named[LLAMA_KV_COUNTINGS] = {};

        for (size_t i = 0; i < rules.size(); ++i) {
            const auto & rule = rules[i];
            auto & same = taken[rule.counting];

            const auto next  = same.upper_bound(rule.first);
            const auto clash = next != same.begin() && std::prev(next)->second->last >= rule.first ? std::prev(next) :
                               next != same.end()   && next->first <= rule.last                    ? next : same.end();
            if (clash != same.end()) {
                const bool every = rule.counting == LLAMA_KV_LAYERS && rule.first == 0 && rule.last == LLAMA_KV_OPEN_END;
                fail("overlap", starts[i], "'" + rule_str(rule) + "' names layers that '" + rule_str(*clash->second) +
                        "' already names; name each layer once" +
                        (every ? "; rest:" + rule_types(rule) + " names those no other rule does" : ""));
            }

            same[rule.first] = &rule;
            n_named[rule.counting] += rule.last - rule.first + 1;

            const bool all_layers = n_named[LLAMA_KV_LAYERS] == LLAMA_KV_OPEN_END + 1;
            const bool all_cached = n_named[LLAMA_KV_CACHED] == LLAMA_KV_OPEN_END + 1;

            const bool ends_or_rest = n_named[LLAMA_KV_LAST_CACHED] + n_named[LLAMA_KV_REST] > 0;
            if ((all_layers && (n_named[LLAMA_KV_LAST] + n_named[LLAMA_KV_CACHED] > 0 || ends_or_rest)) ||
                (all_cached && ends_or_rest)) {
                fail("overlap", starts[i], "with '" + rule_str(rule) + "', rules for every layer stand beside rules that "
                        "count otherwise; name each layer once");
            }
        }
    }

    bool is_digit(size_t i) const {
        return i < folded.size() && folded[i] >= '0' && folded[i] <= '9';
    }

    bool is_letter(size_t i) const {
        return i < folded.size() && folded[i] >= 'a' && folded[i] <= 'z';
    }

    // letters, digits and underscores, in lower case
    std::string name() {
        const size_t at_name = at;
        while (is_digit(at) || is_letter(at) || (at < folded.size() && folded[at] == '_')) {
            ++at;
        }

        return folded.substr(at_name, at - at_name);
    }

    void skip_blanks() {
        while (at < text.size() && strchr(" \t\r\n#", text[at]) && text[at] != '\0') {
            at = text[at] == '#' ? std::min(text.find('\n', at), text.size()) : at + 1;
        }
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

    void expect(const char * word, const std::string & wanted) {
        if (!take(word)) {
            fail_syntax(wanted);
        }
    }

    [[noreturn]] void fail_syntax(const std::string & wanted, const char * hint = "") const {
        fail("syntax", at, "expected " + wanted + ", found " +
                (at < text.size() ? character_name(character_at(text, at), *hint ? hint : nullptr) : "the end"));
    }

    // lines and columns count characters, not bytes
    [[noreturn]] void fail(const char * code, size_t at_fault, const std::string & message) const {
        size_t line   = 1;
        size_t column = 1;
        for (size_t i = 0; i < at_fault; ++i) {
            column += (text[i] & 0xC0) != 0x80;
            if (text[i] == '\n') {
                column = 1;
                ++line;
            }
        }

        const bool lines = text.find('\n') != std::string::npos;
        throw llama_kv_policy_error(code, (lines ? "line " + std::to_string(line) + ", " : "") +
                "column " + std::to_string(column) + ": " + message, line, column);
    }
};

// The numbers that ascending rules leave, as rules with the filler's types.
static void fill_gaps(std::vector<llama_kv_rule> & rules, llama_kv_rule filler) {
    std::vector<llama_kv_rule> res;

    filler.first = 0;
    for (const auto & rule : rules) {
        if (rule.first > filler.first) {
            filler.last = rule.first - 1;
            res.push_back(filler);
        }
        res.push_back(rule);
        filler.first = rule.last + 1;
    }
    if (filler.first < LLAMA_KV_OPEN_END) {
        filler.last = LLAMA_KV_OPEN_END;
        res.push_back(filler);
    }

    rules = std::move(res);
}

// Where all other rules count in one way, the rest gives way to the numbers it stands for. From the end, which has no
// such numbers, it takes in the rules with its own types. rules: sorted
static void settle_rest(std::vector<llama_kv_rule> & rules) {
    if (rules.back().counting != LLAMA_KV_REST) {
        return;
    }

    auto rest = rules.back();
    rules.pop_back();

    const bool one_way = rules.empty() || rules.front().counting == rules.back().counting;
    if (one_way && !rules.empty() && from_end(rules.front())) {
        rules.erase(std::remove_if(rules.begin(), rules.end(), [&](const llama_kv_rule & rule) {
            return same_types(rule, rest);
        }), rules.end());
    }
    if (one_way && (rules.empty() || !from_end(rules.front()))) {
        rest.counting = rules.empty() ? LLAMA_KV_LAYERS : rules.front().counting;
        fill_gaps(rules, rest);
    } else {
        rules.push_back(rest);
    }
}

llama_kv_policy llama_kv_policy::parse(const std::string & text) {
    auto rules = llama_kv_policy_reader(text).policy();

    std::sort(rules.begin(), rules.end(), [](const llama_kv_rule & a, const llama_kv_rule & b) {
        return a.counting != b.counting ? a.counting < b.counting : from_end(a) ? a.first > b.first : a.first < b.first;
    });
    settle_rest(rules);

    llama_kv_policy res;
    for (const auto & rule : rules) {
        auto * left = res.rules.empty() ? nullptr : &res.rules.back();

        if (!left || left->counting != rule.counting || !same_types(*left, rule)) {
            res.rules.push_back(rule);
        } else if (from_end(rule) && rule.last + 1 == left->first) {
            left->first = rule.first;
        } else if (!from_end(rule) && left->last + 1 == rule.first) {
            left->last = rule.last;
        } else {
            res.rules.push_back(rule);
        }
    }

    return res;
}

llama_kv_policy llama_kv_policy::read(const std::string & argument) {
    if (argument.empty() || argument[0] != '@') {
        return parse(argument);
    }

    const std::string path = argument.substr(1);

    std::ifstream file(path, std::ios::binary);
    std::string   text((size_t) 1 << 20, '\0'); // more than a rule for every layer takes
    file.read(&text[0], text.size());
    if (file.gcount() == 0 || !file.eof() || file.bad()) {
        throw std::runtime_error(argument + ": the file cannot be read, is empty, or is larger than a policy can be");
    }
    text.resize(file.gcount());

    const std::string mark = "\uFEFF"; // some editors begin a file with it
    return parse(text.compare(0, mark.size(), mark) == 0 ? text.substr(mark.size()) : text);
}

//
// rules on a model
//

llama_kv_layer_types llama_kv_policy::resolve(const std::vector<bool> & keeps_cache, ggml_type type_k, ggml_type type_v) const {
    const uint32_t n_layer = keeps_cache.size();

    std::vector<uint32_t> layers;    // all of them, in order
    std::vector<uint32_t> kv_layers; // those that keep a cache
    llama_kv_layer_types  res;

    for (uint32_t il = 0; il < n_layer; ++il) {
        res.type_k.push_back(keeps_cache[il] ? type_k : GGML_TYPE_COUNT);
        res.type_v.push_back(keeps_cache[il] ? type_v : GGML_TYPE_COUNT);
        layers.push_back(il);
        if (keeps_cache[il]) {
            kv_layers.push_back(il);
        }
    }

    std::vector<const llama_kv_rule *> ruled(n_layer, nullptr);

    for (const auto & rule : rules) { // the rest comes last
        const auto   & counted = is_cached(rule) ? kv_layers : layers;
        const uint32_t n_there = counted.size();

        bool effect = false;
        for (uint32_t i = 0; i < n_there; ++i) {
            const uint32_t il     = counted[i];
            const uint32_t number = from_end(rule) ? n_there - i : i;
            if (!keeps_cache[il] || number < rule.first || number > rule.last) {
                continue;
            }

            if (ruled[il]) {
                if (rule.counting == LLAMA_KV_REST) {
                    continue;
                }
                throw llama_kv_policy_error("overlap", "'" + rule_str(*ruled[il]) + "' and '" + rule_str(rule) +
                        "' both name layer " + std::to_string(il) + "; name each layer once");
            }

            ruled[il]      = &rule;
            res.type_k[il] = rule.type_k != GGML_TYPE_COUNT ? rule.type_k : type_k;
            res.type_v[il] = rule.type_v != GGML_TYPE_COUNT ? rule.type_v : type_v;

            effect = true;
        }

        if (rule.last != LLAMA_KV_OPEN_END && rule.last >= n_there + (from_end(rule) ? 1 : 0)) {
            res.warnings.push_back({ "clipped", "'" + rule_str(rule) + "' goes past the " +
                    (from_end(rule) ? "start" : "end") + ", the model has " + std::to_string(n_there) +
                    (is_cached(rule) ? " layers with a cache" : " layers") });
        }
        if (!effect) {
            res.warnings.push_back({ "no-effect", "'" + rule_str(rule) + "' has no effect, " +
                    (rule.counting == LLAMA_KV_REST ? "the other rules name every layer" : "it names no layer") +
                    " that keeps a cache of its own" });
        }
    }

    return res;
}
