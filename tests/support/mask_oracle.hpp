// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "support/oracle.hpp"

// The definition under any mask and with any score term, as plain loops in double: what a row sees and a key absorbs is
// asked pair by pair. Includes nothing of the library.
namespace oracle {

struct MaskedSettings {
    Settings base;
    std::function<bool(Index, Index)> sees;       // row, key
    std::function<bool(Index, Index)> mass_over;  // row, key
    std::vector<double> factor = {};              // by distance; empty for none
    std::vector<double> bias = {};
    std::optional<double> cap = std::nullopt;
    std::optional<double> sink = std::nullopt;
};

struct MaskedResult {
    Rows<double> lookahead_keys;  // after the last token
    Rows<double> weights;         // 0 where a row does not see a key
    Rows<double> output;
    std::vector<double> log_sum_exp;
    std::vector<double> mass;
};

inline MaskedResult evaluate(const Head<double>& head, const MaskedSettings& settings) {
    const Index length = head.length(), d = head.d();
    const double scale = settings.base.scale;
    MaskedResult r{.lookahead_keys = Rows<double>(length, d),
                   .weights = Rows<double>(length, length),
                   .output = Rows<double>(length, head.dv()),
                   .log_sum_exp = std::vector<double>(static_cast<std::size_t>(length)),
                   .mass = std::vector<double>(static_cast<std::size_t>(length))};
    Rows<double>& u = r.lookahead_keys;
    for (Index t = 0; t < length; ++t) {
        for (Index s = 0; s < t; ++s) {
            if (!settings.base.absorbs(s, t) || !settings.sees(t, s)) continue;
            const double gate = sigmoid(scale * dot(head.qu, s, head.ku, t));
            for (Index k = 0; k < d; ++k) u(s, k) += gate * head.vu(t, k);
        }
        std::vector<Index> seen;
        std::vector<double> scores;
        double largest = settings.sink.value_or(-std::numeric_limits<double>::infinity());
        for (Index s = 0; s < length; ++s) {
            if (!settings.sees(t, s)) continue;
            const double lookahead = s < t ? scale * dot(head.qc, t, u, s) : 0;
            double x = settings.base.causal_keys ? scale * dot(head.qc, t, head.kc, s) : 0;
            x -= settings.base.silu ? silu(lookahead) : lookahead;
            if (settings.cap) x = *settings.cap * std::tanh(x / *settings.cap);
            const std::size_t distance = static_cast<std::size_t>(std::abs(t - s));
            if (!settings.factor.empty()) x *= settings.factor[distance];
            if (!settings.bias.empty()) x += settings.bias[distance];
            seen.push_back(s);
            scores.push_back(x);
            largest = std::max(largest, x);
        }
        const std::size_t row = static_cast<std::size_t>(t);
        r.log_sum_exp[row] = -std::numeric_limits<double>::infinity();
        if (seen.empty() && !settings.sink) continue;
        double sum = settings.sink ? std::exp(*settings.sink - largest) : 0;
        for (const double x : scores) sum += std::exp(x - largest);
        r.log_sum_exp[row] = largest + std::log(sum);
        for (std::size_t i = 0; i < seen.size(); ++i) {
            const double weight = std::exp(scores[i] - largest) / sum;
            r.weights(t, seen[i]) = weight;
            for (Index c = 0; c < head.dv(); ++c) r.output(t, c) += weight * head.vc(seen[i], c);
            if (settings.mass_over && settings.mass_over(t, seen[i])) r.mass[row] += weight;
        }
    }
    return r;
}

}  // namespace oracle
