#include "options.h"

#include "llama-kv-policy.h"

#include <functional>
#include <limits>
#include <map>

static const char * USAGE =
    "usage: llama-kv-divergence -m MODEL -f FILE [options] [policies]\n"
    "\n"
    "Feeds the same tokens to a baseline cache and to one or more policy caches and prints, as JSON objects a line, how far\n"
    "the predictions of every scored token are apart. Each file is one document; documents are cut into chunks of -c tokens.\n"
    "\n"
    "  -m,    --model FILE              model (GGUF)\n"
    "  -f,    --file FILE               text to score; may be given several times\n"
    "         --parse-special           names of special tokens in the text stand for these tokens\n"
    "  -c,    --ctx-size N              tokens of a chunk, 0 = as many as the model was trained on (default 512)\n"
    "         --score-from N            first position of a chunk that is scored (default: half of -c)\n"
    "         --every N                 score every N-th position (default 1)\n"
    "         --n-tokens N              score at most N tokens, 0 = all (default 0)\n"
    "         --skip-chunks N           leave out the first N scored chunks, which an earlier run has printed\n"
    "  -ub,   --ubatch-size N           tokens of a batch (default 512)\n"
    "  -t,    --threads N               threads (default: those of the machine)\n"
    "         --jobs N                  policies that are run at the same time, each with its part of the threads (default 1)\n"
    "         --contexts N              up to N policies keep their contexts from chunk to chunk; contexts of more are made\n"
    "                                   again for each chunk (default 8)\n"
    "         --logits-mib N            memory for the baseline's logits; a longer chunk is scored in parts (default 1024)\n"
    "  -fa,   --flash-attn on|off|auto  flash attention (default auto)\n"
    "  -v,    --verbose                 the whole log of the library on stderr\n"
    "\n"
    "The policy caches. Each --kv-layers begins one; what follows it is its own, what comes before the first is that of all:\n"
    "         --kv-layers POLICY        types per layer, such as 0-10:q8_0,11-:q4_0; may be given several times\n"
    "  -ctk,  --cache-type-k TYPE       type of K where the policy names none (default f16)\n"
    "  -ctv,  --cache-type-v TYPE       type of V where the policy names none (default f16)\n"
    "         --no-rotation             quantized K and V are not rotated\n"
    "         --path PATH               prefill: scored tokens go in as batches (default); decode: one by one\n"
    "         --n-chunks N              N scored chunks are enough, 0 = all (default 0)\n"
    "\n"
    "The baseline cache:\n"
    "         --base-kv-layers POLICY   (default: none)\n"
    "         --base-cache-type-k TYPE  (default f16)\n"
    "         --base-cache-type-v TYPE  (default f16)\n"
    "         --base-no-rotation\n"
    "         --base-path PATH          (default: the first policy's)\n"
    "\n"
    "exit: 0 done, 1 failed (the baseline, or every policy), 2 the command line cannot be used\n";

const char * usage_text() {
    return USAGE;
}

const char * feed_path_name(feed_path path) {
    return path == feed_path::decode ? "decode" : "prefill";
}

static ggml_type parse_type(const std::string & name, const std::string & text) {
    const ggml_type type = llama_kv_type_from_name(text);
    if (type == GGML_TYPE_COUNT) {
        throw usage_error(name + " '" + text + "': not a cache type (f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1)");
    }

    return type;
}

static std::string parse_policy(const std::string & name, const std::string & text) {
    try {
        return llama_kv_policy::parse(text).str();
    } catch (const llama_kv_policy_error & err) {
        throw usage_error(name + ": " + err.what());
    }
}

static feed_path parse_path(const std::string & name, const std::string & text) {
    if (text != "prefill" && text != "decode") {
        throw usage_error(name + " '" + text + "': prefill or decode is needed");
    }

    return text == "decode" ? feed_path::decode : feed_path::prefill;
}

static llama_flash_attn_type parse_flash_attn(const std::string & name, const std::string & text) {
    if (text == "on") {
        return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    if (text == "off") {
        return LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    if (text == "auto") {
        return LLAMA_FLASH_ATTN_TYPE_AUTO;
    }

    throw usage_error(name + " '" + text + "': on, off or auto is needed");
}

static int32_t parse_int(const std::string & name, const std::string & text, int32_t least) {
    return (int32_t) parse_whole(name, text, least, std::numeric_limits<int32_t>::max());
}

static int64_t parse_count(const std::string & name, const std::string & text) {
    return parse_whole(name, text, 0, std::numeric_limits<int32_t>::max());
}

// what belongs together only shows when everything was read
static void settle(options & opts, const cache_options & of_all, bool base_path_given) {
    if (opts.model.empty()) {
        throw usage_error("no model was given: -m FILE");
    }
    if (opts.files.empty()) {
        throw usage_error("no text was given: -f FILE");
    }
    if (opts.n_ctx == 1) {
        throw usage_error("-c 1: a chunk needs at least 2 tokens, one to predict from and one to predict");
    }
    if (opts.policies.empty()) {
        opts.policies.push_back(of_all);
    }
    if (!base_path_given) {
        opts.baseline.path = opts.policies.front().path;
    }
}

options parse_options(int argc, char ** argv) {
    options       opts;
    cache_options of_all;
    bool          base_path_given = false;

    // whose options are being read
    const auto cache = [&]() -> cache_options & {
        return opts.policies.empty() ? of_all : opts.policies.back();
    };
    const auto begin_policy = [&](const std::string & kv_layers) {
        opts.policies.push_back(of_all);
        opts.policies.back().kv_layers = kv_layers;
    };

    using handler = std::function<void(const std::string & name, const std::string & value)>;

    const std::map<std::string, std::string> long_names = {
        { "-m",   "--model"        }, { "-f",   "--file"         }, { "-c",  "--ctx-size"   }, { "-ub", "--ubatch-size" },
        { "-t",   "--threads"      }, { "-fa",  "--flash-attn"   }, { "-v",  "--verbose"    }, { "-h",  "--help"        },
        { "-ctk", "--cache-type-k" }, { "-ctv", "--cache-type-v" },
    };

    const std::map<std::string, std::function<void()>> flags = {
        { "--help",             [&] { opts.help              = true;  } },
        { "--verbose",          [&] { opts.verbose           = true;  } },
        { "--parse-special",    [&] { opts.parse_special     = true;  } },
        { "--no-rotation",      [&] { cache().rotation       = false; } },
        { "--base-no-rotation", [&] { opts.baseline.rotation = false; } },
    };

    const std::map<std::string, handler> values = {
        { "--model",             [&](const std::string &,   const std::string & v) { opts.model = v; } },
        { "--file",              [&](const std::string &,   const std::string & v) { opts.files.push_back(v); } },
        { "--ctx-size",          [&](const std::string & n, const std::string & v) { opts.n_ctx       = parse_int(n, v, 0); } },
        { "--score-from",        [&](const std::string & n, const std::string & v) { opts.score_from  = parse_int(n, v, 0); } },
        { "--every",             [&](const std::string & n, const std::string & v) { opts.every       = parse_int(n, v, 1); } },
        { "--n-tokens",          [&](const std::string & n, const std::string & v) { opts.n_tokens    = parse_count(n, v); } },
        { "--skip-chunks",       [&](const std::string & n, const std::string & v) { opts.skip_chunks = parse_count(n, v); } },
        { "--ubatch-size",       [&](const std::string & n, const std::string & v) { opts.n_ubatch    = parse_int(n, v, 1); } },
        { "--threads",           [&](const std::string & n, const std::string & v) { opts.n_threads   = parse_int(n, v, 1); } },
        { "--jobs",              [&](const std::string & n, const std::string & v) { opts.n_jobs      = parse_int(n, v, 1); } },
        { "--contexts",          [&](const std::string & n, const std::string & v) { opts.n_contexts  = parse_int(n, v, 0); } },
        { "--logits-mib",        [&](const std::string & n, const std::string & v) { opts.logits_mib  = parse_count(n, v); } },
        { "--flash-attn",        [&](const std::string & n, const std::string & v) { opts.flash_attn  = parse_flash_attn(n, v); } },
        { "--kv-layers",         [&](const std::string & n, const std::string & v) { begin_policy(parse_policy(n, v)); } },
        { "--cache-type-k",      [&](const std::string & n, const std::string & v) { cache().type_k   = parse_type(n, v); } },
        { "--cache-type-v",      [&](const std::string & n, const std::string & v) { cache().type_v   = parse_type(n, v); } },
        { "--path",              [&](const std::string & n, const std::string & v) { cache().path     = parse_path(n, v); } },
        { "--n-chunks",          [&](const std::string & n, const std::string & v) { cache().n_chunks = parse_count(n, v); } },
        { "--base-kv-layers",    [&](const std::string & n, const std::string & v) { opts.baseline.kv_layers = parse_policy(n, v); } },
        { "--base-cache-type-k", [&](const std::string & n, const std::string & v) { opts.baseline.type_k    = parse_type(n, v); } },
        { "--base-cache-type-v", [&](const std::string & n, const std::string & v) { opts.baseline.type_v    = parse_type(n, v); } },
        { "--base-path",         [&](const std::string & n, const std::string & v) { opts.baseline.path      = parse_path(n, v); base_path_given = true; } },
    };

    for (int i = 1; i < argc; ++i) {
        const std::string given = argv[i];

        const auto        alias = long_names.find(given);
        const std::string name  = alias == long_names.end() ? given : alias->second;

        if (const auto flag = flags.find(name); flag != flags.end()) {
            flag->second();
            continue;
        }

        const auto value = values.find(name);
        if (value == values.end()) {
            throw usage_error("unknown argument '" + given + "'; --help lists them");
        }
        if (i + 1 == argc) {
            throw usage_error(given + " needs a value");
        }
        value->second(given, argv[++i]);
    }

    if (!opts.help) {
        settle(opts, of_all, base_path_given);
    }

    return opts;
}
