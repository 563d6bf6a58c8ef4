#pragma once

#include "ggml.h"
#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

// What attention makes of products of queries and keys.
class attention_softmax {
public:
    explicit attention_softmax(const ggml_tensor * attention)
        : n_kv(attention->src[1]->ne[1]), n_tokens(attention->src[0]->ne[1]), n_head(attention->src[0]->ne[2]) {
        memcpy(params, attention->op_params, sizeof(params));

        const ggml_tensor * given = attention->src[3];
        if (!given) {
            throw std::runtime_error("attention without a mask; the cache of this model is of another kind");
        }
        n_mask = given->ne[2];
        mask.resize(n_mask*n_tokens*n_kv);
        std::vector<ggml_fp16_t> row(n_kv);
        for (int64_t i = 0; i < n_mask*n_tokens; ++i) {
            ggml_backend_tensor_get(given, row.data(), i/n_tokens*given->nb[2] + i%n_tokens*given->nb[1], n_kv*sizeof(ggml_fp16_t));
            ggml_fp16_to_fp32_row(row.data(), mask.data() + i*n_kv, n_kv);
        }

        const ggml_tensor * sinks = attention->src[4];
        if (sinks) {
            sink.resize(n_head);
            ggml_backend_tensor_get(sinks, sink.data(), 0, n_head*sizeof(float));
        }
    }

    // Turns the products of one query with all keys into how far the output of attention moves towards the value of each key
    // for an error of their product: its probability, times the slope of the logit where logits are capped. 0 where the
    // query does not see the key, whatever the product is.
    void shares(std::vector<float> & x, int64_t token, int64_t head) const {
        const float   scale   = params[0];
        const float   softcap = params[2];
        const float   steep   = alibi_slope(head);
        const float * bias    = mask.data() + (head % n_mask*n_tokens + token)*n_kv;

        std::vector<float> slope(softcap == 0.0f ? 0 : n_kv);
        for (size_t j = 0; j < slope.size(); ++j) {
            const float capped = tanhf(x[j]*scale/softcap);
            slope[j] = 1.0f - capped*capped;
            x[j]     = softcap*capped/scale;
        }

        for (int64_t j = 0; j < n_kv; ++j) {
            x[j] = bias[j] == -INFINITY ? -INFINITY : x[j]*scale + steep*bias[j];
        }
        const float first   = sink.empty() ? -INFINITY : sink[head];
        const float largest = std::max(first, *std::max_element(x.begin(), x.end()));

        double sum = expf(first - largest);
        for (float & logit : x) {
            logit = expf(logit - largest);
            sum  += logit;
        }
        for (float & p : x) {
            p /= (float) sum;
        }
        for (size_t j = 0; j < slope.size(); ++j) {
            x[j] = bias[j] == -INFINITY ? 0.0f : x[j]*slope[j];
        }
    }

private:
    int64_t            n_kv, n_tokens, n_head;
    float              params[3]; // scale, max_bias, logit_softcap
    int64_t            n_mask;    // heads that have a mask of their own
    std::vector<float> mask;      // [n_mask][n_tokens][n_kv]
    std::vector<float> sink;      // [n_head] or none

    float alibi_slope(int64_t head) const {
        const float max_bias = params[1];
        if (max_bias <= 0.0f) {
            return 1.0f;
        }
        const int64_t n_log2 = 1ll << (int64_t) std::floor(std::log2((double) n_head));
        return head < n_log2 ? powf(2.0f, -max_bias*(head + 1)/n_log2)
                             : powf(2.0f, -max_bias/2.0f*(2*(head - n_log2) + 1)/n_log2);
    }
};
