// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

// What the textbook forms share about masks and score terms: key by key.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The keys that a row sees, in order, of a whole sequence.
inline std::vector<Index> seen_keys(const Mask& mask, Index row, Index keys) {
    std::vector<Index> seen;
    for (Index key = 0; key < keys; ++key) {
        if (mask.sees(row, key, keys)) seen.push_back(key);
    }
    return seen;
}

// Whether key s absorbs token t: a later one, within the window, that sees it.
inline bool absorbs(const Mask& mask, Index window, Index s, Index t, Index keys) {
    return s < t && t - s <= window && mask.sees(t, s, keys);
}

// The score of x = s^C - SiLU(s^U) at a distance; of a lone head.
template <ComputeScalar T>
T score_of(const ScoreTerms& terms, Index distance, T x) {
    if (terms.soft_cap) {
        const T cap = static_cast<T>(*terms.soft_cap);
        x = cap * std::tanh(x / cap);
    }
    if (terms.factor.size() > 0) x *= static_cast<T>(terms.factor(0, distance));
    if (terms.bias.size() > 0) x += static_cast<T>(terms.bias(0, distance));
    return x;
}

// exp(score - largest) of a row's scores divided by their sum, in their place. A sink takes part in the sum.
template <ComputeScalar T, class Column>
void softmax(const ScoreTerms& terms, Column& scores) {
    if (scores.size() == 0) return;
    T largest = scores.maxCoeff();
    if (!terms.sinks.empty()) largest = (std::max)(largest, static_cast<T>(terms.sinks.front()));
    scores = (scores.array() - largest).exp();
    T sum = scores.sum();
    if (!terms.sinks.empty()) sum += std::exp(static_cast<T>(terms.sinks.front()) - largest);
    scores /= sum;
}

// The options of query head h as those of a lone head.
inline Options options_of_head(Options options, const Shape& shape, Index h) {
    ScoreTerms& terms = options.terms;
    for (Matrix<double>* table : {&terms.factor, &terms.bias}) {
        if (table->rows() > 1) *table = Matrix<double>(table->row(h));
    }
    if (!terms.sinks.empty()) terms.sinks = {terms.sinks[std::size_t(h)]};
    options.scale = scale_for(options, shape.d);
    return options;
}

// A call on a whole sequence, if shapes, options and the mask fit.
template <Scalar T>
void check_whole(std::string_view where, const Shape& shape, const Input<T>& input, const Options& options,
                 const Mask& mask) {
    checked_kind(where, shape, input, options);
    check_sight(where, &mask, &options.terms, 0, input.causal.q.rows(), nullptr);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
