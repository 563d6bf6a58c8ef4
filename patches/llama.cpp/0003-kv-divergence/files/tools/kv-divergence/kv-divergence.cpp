// Compares the predictions of one model under two KV caches: two contexts on one set of weights are fed the same tokens,
// and every scored token gives a line on stdout as soon as it is known. Memory does not grow with the text, but for its
// tokens: logits are kept for one batch per context.
//
// A document is cut into chunks of -c tokens, as llama-perplexity cuts its text: where the model wants a BOS token, one
// starts the document and replaces the first token of its later chunks. The last chunk may be shorter.

#include "feeder.h"
#include "options.h"
#include "score.h"

#include "llama-cpp.h"
#include "ggml-backend.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

using json = nlohmann::ordered_json;

static const int SCHEMA_VERSION = 1;

// What the library logs. Its first error explains a failure, what follows repeats that something failed.
struct library_log {
    bool        verbose = false;
    std::string first_error;
};

static void on_log(ggml_log_level level, const char * text, void * user_data) {
    auto & log = *(library_log *) user_data;

    if (level == GGML_LOG_LEVEL_ERROR && log.first_error.empty()) {
        log.first_error = text;
        log.first_error.erase(std::min(log.first_error.find('\n'), log.first_error.size()));
    }
    // a rule without effect is worth a word without -v
    if (log.verbose || (level == GGML_LOG_LEVEL_WARN && strncmp(text, "--kv-layers", 11) == 0)) {
        fputs(text, stderr);
    }
}

static std::string read_text(const std::string & path) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    if (!file || !(text << file.rdbuf())) {
        throw std::runtime_error(path + ": " + (errno ? std::generic_category().message(errno) : "no text in it"));
    }

    return text.str();
}

static std::vector<llama_token> tokenize(const llama_vocab * vocab, const std::string & path, bool parse_special) {
    const std::string text = read_text(path);
    if (text.size() > (size_t) std::numeric_limits<int32_t>::max()) {
        throw std::runtime_error(path + ": longer than 2 GiB");
    }

    std::vector<llama_token> tokens;
    if (llama_vocab_get_add_bos(vocab)) {
        tokens.push_back(llama_vocab_bos(vocab));
    }

    const size_t  n_special = tokens.size();
    const int32_t needed    = -llama_tokenize(vocab, text.data(), text.size(), nullptr, 0, false, parse_special);
    if (needed <= 0) {
        throw std::runtime_error(path + ": " + (needed < 0 ? "more tokens than can be counted" : "no tokens in it"));
    }
    tokens.resize(n_special + needed);
    llama_tokenize(vocab, text.data(), text.size(), tokens.data() + n_special, needed, false, parse_special);

    return tokens;
}

// Which positions of a chunk are scored: every one that has a successor to predict, from the first, in steps.
struct schedule {
    int32_t score_from;
    int32_t every;

    bool scored(int32_t position) const {
        return position >= score_from && (position - score_from) % every == 0;
    }

    int64_t count(size_t n_chunk_tokens) const {
        const int64_t n = (int64_t) n_chunk_tokens - 1 - score_from;
        return n <= 0 ? 0 : (n - 1)/every + 1;
    }
};

struct chunk {
    size_t document;
    size_t index; // in its document

    std::vector<llama_token> tokens;
};

// All chunks with something to score, in order.
static std::vector<chunk> cut(const std::vector<std::vector<llama_token>> & documents, const schedule & plan, size_t n_ctx, const llama_vocab * vocab) {
    std::vector<chunk> res;
    for (size_t document = 0; document < documents.size(); ++document) {
        const auto & tokens = documents[document];
        for (size_t start = 0; start < tokens.size(); start += n_ctx) {
            const size_t end = std::min(start + n_ctx, tokens.size());
            if (plan.count(end - start) == 0) {
                continue;
            }

            res.push_back({ document, start/n_ctx, { tokens.begin() + start, tokens.begin() + end } });
            if (llama_vocab_get_add_bos(vocab)) {
                res.back().tokens[0] = llama_vocab_bos(vocab);
            }
        }
    }

    return res;
}

static void print_line(const json & line) {
    // at once, so that a reader sees whole lines only; a byte that is not UTF-8 must not end the run
    const std::string text = line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    if (fwrite(text.data(), 1, text.size(), stdout) != text.size() || fflush(stdout) != 0) {
        throw std::runtime_error(std::string("cannot write to standard output: ") + strerror(errno));
    }
}

static json side_json(const side_options & side) {
    return {
        { "kv_layers", side.kv_layers.empty() ? json() : json(side.kv_layers) },
        { "type_k",    ggml_type_name(side.type_k) },
        { "type_v",    ggml_type_name(side.type_v) },
        { "path",      feed_path_name(side.path) },
        { "n_ubatch",  side.n_ubatch },
    };
}

static void print_start(const options & opts, size_t n_chunks, int64_t n_planned, int32_t n_vocab) {
    print_line({
        { "kind",           "start" },
        { "schema_version", SCHEMA_VERSION },
        { "n_documents",    opts.files.size() },
        { "n_chunks",       n_chunks },
        { "n_tokens",       n_planned },
        { "skip",           opts.skip },
        { "n_vocab",        n_vocab },
        { "n_ctx",          opts.n_ctx },
        { "score_from",     opts.score_from },
        { "every",          opts.every },
        { "n_threads",      opts.n_threads },
        { "baseline",       side_json(opts.baseline) },
        { "policy",         side_json(opts.policy) },
    });
}

static void print_token(const chunk & chunk, int32_t position, const token_score & score) {
    print_line({
        { "kind",         "token" },
        { "document",     chunk.document },
        { "chunk",        chunk.index },
        { "position",     position },
        { "kl",           score.kl },
        { "same_top",     score.same_top },
        { "delta_p",      score.delta_p() },
        { "nll_baseline", score.nll_baseline },
        { "nll_policy",   score.nll_policy },
    });
}

static void print_end(const score_sums & sums) {
    json end = { { "kind", "end" }, { "n_tokens", sums.count() } };
    if (sums.count() > 0) {
        end.update({
            { "kl",           sums.mean_kl() },
            { "same_top",     sums.same_top() },
            { "delta_p_rms",  sums.delta_p_rms() },
            { "ppl_baseline", sums.ppl_baseline() },
            { "ppl_policy",   sums.ppl_policy() },
        });
    }
    print_line(end);
}

static llama_model_ptr load_model(const std::string & path) {
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
    if (!model) {
        throw std::runtime_error("cannot load " + path);
    }
    if (llama_vocab_type(llama_model_get_vocab(model.get())) == LLAMA_VOCAB_TYPE_NONE) {
        throw std::runtime_error(path + ": the model has no tokenizer");
    }
    if (llama_model_has_encoder(model.get()) || !llama_model_has_decoder(model.get())) {
        throw std::runtime_error(path + ": not a model that only predicts the next token");
    }

    return model;
}

// what is left to the model, or limited by it
static void settle(options & opts, const llama_model * model) {
    const int32_t n_ctx_train = llama_model_n_ctx_train(model);
    if (opts.n_ctx > n_ctx_train) {
        throw std::runtime_error("-c " + std::to_string(opts.n_ctx) + ": the model was trained on " +
                                 std::to_string(n_ctx_train) + " tokens; -c 0 takes as many");
    }

    opts.n_ctx      = opts.n_ctx == 0 ? n_ctx_train : opts.n_ctx;
    opts.score_from = opts.score_from < 0 ? opts.n_ctx/2 : opts.score_from;

    // neither a batch nor a step can be longer than a chunk
    opts.every              = std::min(opts.every, opts.n_ctx);
    opts.policy  .n_ubatch = std::min(opts.policy  .n_ubatch, opts.n_ctx);
    opts.baseline.n_ubatch = std::min(opts.baseline.n_ubatch, opts.n_ctx);
}

static std::vector<chunk> read_chunks(const options & opts, const schedule & plan, const llama_vocab * vocab) {
    std::vector<std::vector<llama_token>> documents;
    size_t longest = 0;
    for (const auto & path : opts.files) {
        documents.push_back(tokenize(vocab, path, opts.parse_special));
        longest = std::max(longest, documents.back().size());
    }

    auto res = cut(documents, plan, opts.n_ctx, vocab);
    if (res.empty()) {
        throw std::runtime_error("nothing to score: the longest document has " + std::to_string(longest) + " tokens, chunks have " +
                                 std::to_string(opts.n_ctx) + " and are scored from position " + std::to_string(opts.score_from));
    }

    return res;
}

static void run(options opts) {
    const llama_model_ptr model = load_model(opts.model);
    settle(opts, model.get());

    const llama_vocab * vocab   = llama_model_get_vocab(model.get());
    const int32_t       n_vocab = llama_vocab_n_tokens(vocab);
    const schedule      plan    = { opts.score_from, opts.every };
    const auto          chunks  = read_chunks(opts, plan, vocab);

    int64_t n_planned = 0;
    for (const auto & chunk : chunks) {
        n_planned += plan.count(chunk.tokens.size());
    }
    if (opts.n_tokens > 0) {
        n_planned = std::min(n_planned, opts.n_tokens);
    }

    feeder baseline(model.get(), opts.baseline, opts, "baseline");
    feeder policy  (model.get(), opts.policy,   opts, "policy");

    print_start(opts, chunks.size(), n_planned, n_vocab);

    score_sums sums;
    int64_t    n_done = 0; // scored tokens, those left out among them

    for (const auto & chunk : chunks) {
        const int32_t n_tokens = chunk.tokens.size();
        const auto    scored   = [&](int32_t position) { return position + 1 < n_tokens && plan.scored(position); };

        if (n_done >= n_planned) {
            break;
        }
        if (n_done + plan.count(n_tokens) <= opts.skip) {
            n_done += plan.count(n_tokens);
            continue;
        }

        baseline.start(chunk.tokens, plan.score_from, scored);
        policy  .start(chunk.tokens, plan.score_from, scored);

        for (int32_t position = plan.score_from; scored(position) && n_done < n_planned; position += plan.every) {
            if (n_done++ < opts.skip) {
                continue;
            }

            const token_score score = score_rows(baseline.logits(position), policy.logits(position), n_vocab, chunk.tokens[position + 1]);
            if (const char * what = score.not_finite()) {
                throw std::runtime_error("document " + std::to_string(chunk.document) + ", chunk " + std::to_string(chunk.index) +
                                         ", position " + std::to_string(position) + ": " + what + " not finite");
            }

            sums.add(score);
            print_token(chunk, position, score);
        }
    }

    print_end(sums);
}

int main(int argc, char ** argv) {
    library_log log;

    try {
        options opts = parse_options(argc, argv);
        if (opts.help) {
            fputs(usage_text(), stdout);
            return 0;
        }
        if (opts.n_threads == 0) {
            opts.n_threads = std::max(1u, std::thread::hardware_concurrency());
        }

        log.verbose = opts.verbose;
        llama_log_set(on_log, &log);
        ggml_backend_load_all();
        llama_backend_init();
        // a backend that is not there is no reason for a failure later on
        log.first_error.clear();

        run(opts);
        return 0;
    } catch (const usage_error & err) {
        fprintf(stderr, "error: %s\n", err.what());
        return 2;
    } catch (const std::exception & err) {
        const std::string why = log.first_error.empty() ? "" : ": " + log.first_error;
        fprintf(stderr, "error: %s%s\n", err.what(), why.c_str());
        return 1;
    }
}
