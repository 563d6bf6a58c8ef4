#include "score.h"

#include <algorithm>
#include <cmath>

double token_score::delta_p() const {
    return std::exp(-nll_policy) - std::exp(-nll_baseline);
}

bool token_score::finite() const {
    return std::isfinite(nll_baseline) && std::isfinite(nll_policy) && std::isfinite(kl);
}

double score_row(const float * row, int32_t n_vocab, int32_t next) {
    const float * top = std::max_element(row, row + n_vocab);

    double sum = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        sum += std::exp((double) row[i] - *top);
    }

    return std::log(sum) - ((double) row[next] - *top);
}

token_score score_rows(const float * baseline, const float * policy, int32_t n_vocab, int32_t next) {
    const float * top_b = std::max_element(baseline, baseline + n_vocab);
    const float * top_p = std::max_element(policy,   policy   + n_vocab);

    // softmax of both rows at once; logits are taken relative to the largest, so nothing overflows
    double sum_b = 0.0;
    double sum_p = 0.0;
    double diff  = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        const double b = (double) baseline[i] - *top_b;
        const double p = (double) policy[i]   - *top_p;
        const double e = std::exp(b);

        sum_b += e;
        sum_p += std::exp(p);
        // a token that the baseline rules out adds nothing, also where its logit is -inf
        diff  += e == 0.0 ? 0.0 : e*(b - p);
    }

    const double log_b = std::log(sum_b);
    const double log_p = std::log(sum_p);

    token_score res;
    // never negative but for rounding; a NaN stays one
    const double kl  = diff/sum_b + log_p - log_b;
    res.kl           = kl < 0.0 ? 0.0 : kl;
    res.same_top     = top_b - baseline == top_p - policy;
    res.nll_baseline = log_b - ((double) baseline[next] - *top_b);
    res.nll_policy   = log_p - ((double) policy[next]   - *top_p);
    return res;
}

void score_sums::add(const token_score & score) {
    ++n;
    n_same       += score.same_top;
    kl           += score.kl;
    delta_p2     += score.delta_p()*score.delta_p();
    nll_baseline += score.nll_baseline;
    nll_policy   += score.nll_policy;
}

double score_sums::mean_kl() const {
    return kl/n;
}

double score_sums::same_top() const {
    return (double) n_same/n;
}

double score_sums::delta_p_rms() const {
    return std::sqrt(delta_p2/n);
}

double score_sums::ppl_baseline() const {
    return std::exp(nll_baseline/n);
}

double score_sums::ppl_policy() const {
    return std::exp(nll_policy/n);
}
