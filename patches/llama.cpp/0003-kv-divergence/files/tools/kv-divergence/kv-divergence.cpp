// Compares the predictions of one model under several KV caches: contexts on one set of weights are fed the same tokens,
// chunk by chunk, first the baseline's, whose logits are held, then those of the policies. Every chunk gives a line for
// the baseline and one for each policy as soon as it is known. Memory does not grow with the text, but for its tokens.
//
// A document is cut into chunks of -c tokens, as llama-perplexity cuts its text: where the model wants a BOS token, one
// starts the document and replaces the first token of its later chunks. The last chunk may be shorter.

#include "feeder.h"
#include "inputs.h"
#include "options.h"
#include "score.h"

#include "llama-cpp.h"
#include "ggml-backend.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using json = nlohmann::ordered_json;

static const int SCHEMA_VERSION = 2;

// Which positions of a chunk are scored: every one that has a successor to predict, from the first, in steps.
struct schedule {
    int32_t score_from;
    int32_t every;

    std::vector<int32_t> positions(size_t n_chunk_tokens) const {
        std::vector<int32_t> res;
        for (int64_t position = score_from; position + 1 < (int64_t) n_chunk_tokens; position += every) {
            res.push_back((int32_t) position);
        }
        return res;
    }
};

struct chunk {
    size_t document;
    size_t index; // in its document

    std::vector<llama_token> tokens;
    std::vector<int32_t>     positions; // that are scored, at least one

    llama_token after(int32_t position) const {
        return tokens[position + 1];
    }

    std::string place(int32_t position) const {
        return "document " + std::to_string(document) + ", chunk " + std::to_string(index) + ", position " + std::to_string(position);
    }
};

// All chunks with something to score, in order.
static std::vector<chunk> cut(const std::vector<std::vector<llama_token>> & documents, const schedule & plan, size_t n_ctx, const llama_vocab * vocab) {
    std::vector<chunk> res;
    for (size_t document = 0; document < documents.size(); ++document) {
        const auto & tokens = documents[document];
        for (size_t start = 0; start < tokens.size(); start += n_ctx) {
            const size_t end       = std::min(start + n_ctx, tokens.size());
            const auto   positions = plan.positions(end - start);
            if (positions.empty()) {
                continue;
            }

            res.push_back({ document, start/n_ctx, { tokens.begin() + start, tokens.begin() + end }, positions });
            if (llama_vocab_get_add_bos(vocab)) {
                res.back().tokens[0] = llama_vocab_bos(vocab);
            }
        }
    }

    return res;
}

// The first of the chunks that hold n_tokens scored tokens, the last of them cut short; 0: all.
static void limit(std::vector<chunk> & chunks, int64_t n_tokens) {
    int64_t n_left = n_tokens;
    for (size_t i = 0; n_tokens > 0 && i < chunks.size(); ++i) {
        auto & positions = chunks[i].positions;
        if ((int64_t) positions.size() >= n_left) {
            positions.resize(n_left);
            chunks.resize(i + 1);
        }
        n_left -= positions.size();
    }
}

// A chunk's positions in parts: of whole batches, as many as there is memory for.
static std::vector<std::vector<int32_t>> parts_of(const chunk & chunk, int32_t n_ubatch, size_t n_rows) {
    std::vector<std::vector<int32_t>> res;
    std::vector<int32_t>              of_batch;

    for (size_t i = 0; i < chunk.positions.size(); ++i) {
        of_batch.push_back(chunk.positions[i]);
        if (i + 1 < chunk.positions.size() && chunk.positions[i + 1]/n_ubatch == chunk.positions[i]/n_ubatch) {
            continue;
        }
        if (res.empty() || res.back().size() + of_batch.size() > n_rows) {
            res.emplace_back();
        }
        res.back().insert(res.back().end(), of_batch.begin(), of_batch.end());
        of_batch.clear();
    }

    return res;
}

static void print_line(const json & line) {
    // a byte that is not UTF-8 must not end the run
    print_out(line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n");
}

static json cache_json(const cache_options & cache) {
    return {
        { "kv_layers", cache.kv_layers.empty() ? json() : json(cache.kv_layers) },
        { "type_k",    ggml_type_name(cache.type_k) },
        { "type_v",    ggml_type_name(cache.type_v) },
        { "rotation",  cache.rotation },
        { "path",      feed_path_name(cache.path) },
    };
}

static json sums_json(const score_sums & sums) {
    json res = { { "n_tokens", sums.count() } };
    if (sums.count() > 0) {
        res.update({
            { "kl",           sums.mean_kl() },
            { "same_top",     sums.same_top() },
            { "delta_p_rms",  sums.delta_p_rms() },
            { "ppl_baseline", sums.ppl_baseline() },
            { "ppl_policy",   sums.ppl_policy() },
        });
    }
    return res;
}

// The baseline's logits at the positions of a part of a chunk.
class held_logits {
public:
    // throws std::runtime_error when the model cannot be run or computes no numbers
    void take(feeder & baseline, const chunk & chunk, const std::vector<int32_t> & positions, int32_t n_vocab) {
        this->n_vocab = n_vocab;
        rows.resize(positions.size()*n_vocab);
        nll.clear();

        while (nll.size() < positions.size()) {
            for (const float * row : baseline.logits(positions, nll.size())) {
                const int32_t position = positions[nll.size()];
                std::copy(row, row + n_vocab, rows.data() + nll.size()*n_vocab);

                nll.push_back(score_row(row, n_vocab, chunk.after(position)));
                if (!std::isfinite(nll.back())) {
                    throw std::runtime_error(chunk.place(position) + ": the baseline's logits are not finite");
                }
            }
        }
    }

    const float * row(size_t i) const {
        return rows.data() + i*n_vocab;
    }

    std::vector<double> nll; // of the tokens that follow

private:
    size_t             n_vocab = 0;
    std::vector<float> rows;
};

// calls f(0) ... f(n - 1) on several threads
template <typename F>
static void parallel_for(size_t n, size_t n_threads, const F & f) {
    const auto work = [&](size_t first) {
        for (size_t i = first; i < n; i += n_threads) {
            f(i);
        }
    };

    std::vector<std::thread> threads;
    for (size_t thread = 1; thread < std::min(n, n_threads); ++thread) {
        threads.emplace_back(work, thread);
    }
    work(0);
    for (auto & thread : threads) {
        thread.join();
    }
}

// A policy, its context while it has one, and the scores of the chunk it is being fed.
struct contestant {
    size_t        index;
    cache_options cache;

    std::unique_ptr<feeder>  fed;
    std::vector<token_score> scores;
    score_sums               sums;
    std::string              failure; // why it is left out from now on

    bool measures(size_t chunk_index) const {
        return failure.empty() && (cache.n_chunks == 0 || (int64_t) chunk_index < cache.n_chunks);
    }

    // throws std::runtime_error when the model cannot be run or computes no numbers
    void score(const chunk & chunk, const std::vector<int32_t> & positions, const held_logits & held, int32_t n_vocab, int32_t n_threads) {
        for (size_t first = 0; first < positions.size(); ) {
            const auto   rows   = fed->logits(positions, first);
            const size_t n_done = scores.size();

            scores.resize(n_done + rows.size());
            parallel_for(rows.size(), n_threads, [&](size_t i) {
                scores[n_done + i] = score_rows(held.row(first + i), rows[i], n_vocab, chunk.after(positions[first + i]));
            });
            for (size_t i = 0; i < rows.size(); ++i) {
                if (!scores[n_done + i].finite()) {
                    throw std::runtime_error(chunk.place(positions[first + i]) + ": the policy's logits are not finite");
                }
            }
            first += rows.size();
        }
    }
};

class measurement {
public:
    measurement(options opts, library_log & log) : opts(std::move(opts)), log(log) {}

    void run() {
        model = load_model(opts.model);
        settle();
        read_chunks();

        for (size_t i = 0; i < opts.policies.size(); ++i) {
            contestants.push_back({ i, opts.policies[i], nullptr, {}, {}, "" });
        }
        baseline = std::make_unique<feeder>(model.get(), opts.baseline, opts, opts.n_threads, "baseline");

        // what it takes is seen before the first line
        if (keeps_contexts()) {
            for (auto & contestant : contestants) {
                guarded(contestant, [&] { make_context(contestant); });
            }
            raise_if_all_failed();
        }
        print_start();
        for (const auto & contestant : contestants) {
            if (!contestant.failure.empty()) {
                print_failure(contestant);
            }
        }

        for (size_t i = opts.skip_chunks; i < chunks.size(); ++i) {
            std::vector<contestant *> live;
            for (auto & contestant : contestants) {
                if (contestant.measures(i)) {
                    live.push_back(&contestant);
                }
            }
            if (!live.empty()) {
                measure(chunks[i], live);
                raise_if_all_failed();
            }
        }

        print_end();
    }

private:
    options       opts;
    library_log & log;

    llama_model_ptr         model;
    std::vector<chunk>      chunks;
    std::vector<contestant> contestants;
    std::unique_ptr<feeder> baseline;
    held_logits             held;

    int32_t n_vocab            = 0;
    int32_t threads_per_policy = 1;

    bool keeps_contexts() const {
        return contestants.size() <= (size_t) opts.n_contexts;
    }

    // what is left to the model or the machine, or limited by them
    void settle() {
        opts.n_ctx      = checked_n_ctx(model.get(), opts.n_ctx);
        opts.score_from = opts.score_from < 0 ? opts.n_ctx/2 : opts.score_from;
        opts.n_threads  = opts.n_threads == 0 ? std::max(1u, std::thread::hardware_concurrency()) : opts.n_threads;

        // a step or a batch cannot be longer than a chunk, nor can more policies run than there are
        opts.every    = std::min(opts.every,    opts.n_ctx);
        opts.n_ubatch = std::min(opts.n_ubatch, opts.n_ctx);
        opts.n_jobs   = std::min(opts.n_jobs,   (int32_t) opts.policies.size());

        threads_per_policy = std::max(1, opts.n_threads/opts.n_jobs);
        n_vocab            = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    }

    void read_chunks() {
        const llama_vocab * vocab = llama_model_get_vocab(model.get());

        std::vector<std::vector<llama_token>> documents;
        size_t longest = 0;
        for (const auto & path : opts.files) {
            documents.push_back(tokenize(vocab, path, opts.parse_special));
            longest = std::max(longest, documents.back().size());
        }

        chunks = cut(documents, { opts.score_from, opts.every }, opts.n_ctx, vocab);
        if (chunks.empty()) {
            throw std::runtime_error("nothing to score: the longest document has " + std::to_string(longest) + " tokens, chunks have " +
                                     std::to_string(opts.n_ctx) + " and are scored from position " + std::to_string(opts.score_from));
        }
        limit(chunks, opts.n_tokens);
    }

    void make_context(contestant & contestant) {
        contestant.fed = std::make_unique<feeder>(model.get(), contestant.cache, opts, threads_per_policy, "policy");
    }

    // Does something for a policy; one that fails is left out from then on.
    template <typename F>
    void guarded(contestant & contestant, const F & f) {
        try {
            f();
        } catch (const std::exception & err) {
            const std::string why = log.take_error();
            contestant.failure = err.what() + (why.empty() ? "" : ": " + why);
            contestant.fed.reset();
        }
    }

    void raise_if_all_failed() const {
        for (const auto & contestant : contestants) {
            if (contestant.failure.empty()) {
                return;
            }
        }
        throw std::runtime_error(contestants.front().failure);
    }

    void measure(const chunk & chunk, const std::vector<contestant *> & live) {
        const size_t n_rows = std::max<size_t>(1, opts.logits_mib*1024*1024/(n_vocab*sizeof(float)));
        const auto   parts  = parts_of(chunk, opts.n_ubatch, n_rows);

        std::vector<double> nll;
        baseline->start(chunk.tokens, opts.score_from);
        for (auto * contestant : live) {
            contestant->scores.clear();
            if (contestant->fed) {
                contestant->fed->start(chunk.tokens, opts.score_from);
            }
        }

        for (size_t part = 0; part < parts.size(); ++part) {
            held.take(*baseline, chunk, parts[part], n_vocab);
            nll.insert(nll.end(), held.nll.begin(), held.nll.end());

            const bool last = part + 1 == parts.size();
            if (last) {
                print_baseline(chunk, nll);
            }
            for (size_t first = 0; first < live.size(); first += opts.n_jobs) {
                const auto begin = live.begin() + first;
                const std::vector<contestant *> wave(begin, begin + std::min<size_t>(opts.n_jobs, live.size() - first));
                score(chunk, parts[part], wave);
                for (size_t i = 0; last && i < wave.size(); ++i) {
                    print_policy(chunk, *wave[i]);
                }
            }
        }
    }

    // some policies side by side
    void score(const chunk & chunk, const std::vector<int32_t> & positions, const std::vector<contestant *> & wave) {
        for (auto * contestant : wave) {
            if (contestant->failure.empty() && !contestant->fed) {
                guarded(*contestant, [&] {
                    make_context(*contestant);
                    contestant->fed->start(chunk.tokens, opts.score_from);
                });
            }
        }

        parallel_for(wave.size(), wave.size(), [&](size_t i) {
            if (wave[i]->failure.empty()) {
                guarded(*wave[i], [&] { wave[i]->score(chunk, positions, held, n_vocab, threads_per_policy); });
            }
        });

        if (!keeps_contexts()) {
            for (auto * contestant : wave) {
                contestant->fed.reset();
            }
        }
    }

    void print_start() const {
        int64_t n_tokens = 0;
        for (const auto & chunk : chunks) {
            n_tokens += chunk.positions.size();
        }

        json policies = json::array();
        for (const auto & contestant : contestants) {
            policies.push_back(cache_json(contestant.cache));
        }

        print_line({
            { "kind",           "start" },
            { "schema_version", SCHEMA_VERSION },
            { "n_documents",    opts.files.size() },
            { "n_chunks",       chunks.size() },
            { "n_tokens",       n_tokens },
            { "skip_chunks",    opts.skip_chunks },
            { "n_vocab",        n_vocab },
            { "n_ctx",          opts.n_ctx },
            { "score_from",     opts.score_from },
            { "every",          opts.every },
            { "n_ubatch",       opts.n_ubatch },
            { "n_threads",      opts.n_threads },
            { "n_jobs",         opts.n_jobs },
            { "baseline",       cache_json(opts.baseline) },
            { "policies",       policies },
        });
    }

    static void print_baseline(const chunk & chunk, const std::vector<double> & nll) {
        print_line({
            { "kind",      "baseline" },
            { "document",  chunk.document },
            { "chunk",     chunk.index },
            { "positions", chunk.positions },
            { "nll",       nll },
        });
    }

    static void print_failure(const contestant & contestant) {
        print_line({ { "kind", "failed" }, { "policy", contestant.index }, { "what", contestant.failure } });
    }

    static void print_policy(const chunk & chunk, contestant & contestant) {
        if (!contestant.failure.empty()) {
            print_failure(contestant);
            return;
        }

        json kl = json::array(), same_top = json::array(), nll = json::array();
        for (const auto & score : contestant.scores) {
            contestant.sums.add(score);
            kl      .push_back(score.kl);
            same_top.push_back(score.same_top);
            nll     .push_back(score.nll_policy);
        }
        print_line({
            { "kind",     "chunk" },
            { "policy",   contestant.index },
            { "document", chunk.document },
            { "chunk",    chunk.index },
            { "kl",       kl },
            { "same_top", same_top },
            { "nll",      nll },
        });
    }

    void print_end() const {
        json policies = json::array();
        for (const auto & contestant : contestants) {
            policies.push_back(sums_json(contestant.sums));
        }
        print_line({ { "kind", "end" }, { "policies", policies } });
    }
};

static void run(int argc, char ** argv, library_log & log) {
    options opts = parse_options(argc, argv);
    if (opts.help) {
        print_out(usage_text());
        return;
    }

    log.start(opts.verbose);
    ggml_backend_load_all();
    llama_backend_init();
    // a backend that is not there is no reason for a failure later on
    log.take_error();

    measurement(std::move(opts), log).run();
}

int main(int argc, char ** argv) {
    library_log log;
    return run_program(log, run, argc, argv);
}
