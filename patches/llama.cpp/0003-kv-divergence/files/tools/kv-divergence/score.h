#pragma once

#include <cstdint>

// How far two predictions of one token are apart. Natural logarithms.
struct token_score {
    double  kl;           // Kullback-Leibler divergence of the policy's distribution from the baseline's, nats
    bool    same_top;     // both hold the same token to be the most likely
    double  nll_baseline; // negative log probability of the token that follows
    double  nll_policy;

    double delta_p() const; // probability of the token that follows, policy minus baseline

    // all of it is a number; a cache can be coarse enough that it is not
    bool finite() const;
};

// Negative log probability of the token that follows in the text; row: the logits of all n_vocab tokens.
double score_row(const float * row, int32_t n_vocab, int32_t next);

// The two rows hold the logits of all n_vocab tokens. Where a row is not finite neither is the score.
token_score score_rows(const float * baseline, const float * policy, int32_t n_vocab, int32_t next);

// What a run comes to; means over all tokens that were added.
class score_sums {
public:
    void add(const token_score & score);

    int64_t count() const { return n; }

    double mean_kl() const;
    double same_top() const; // share
    double delta_p_rms() const;
    double ppl_baseline() const;
    double ppl_policy() const;

private:
    int64_t n      = 0;
    int64_t n_same = 0;

    double kl           = 0.0;
    double delta_p2     = 0.0;
    double nll_baseline = 0.0;
    double nll_policy   = 0.0;
};
