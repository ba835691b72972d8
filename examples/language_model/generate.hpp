// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "model.hpp"

namespace language_model {

/// A byte drawn with the probabilities softmax(logits / temperature); the most probable one where that is 0.
inline char draw(const Eigen::RowVectorXf& logits, double temperature, std::mt19937_64& random) {
    Index best = 0;
    const float largest = logits.maxCoeff(&best);
    if (temperature == 0) return static_cast<char>(best);
    const Eigen::RowVectorXd weights = ((logits.array() - largest).cast<double>() / temperature).exp();
    double left = static_cast<double>(random() >> 11) * 0x1p-53 * weights.sum();
    for (Index i = 0; i < weights.size(); ++i) {
        left -= weights(i);
        if (left < 0) return static_cast<char>(i);
    }
    return static_cast<char>(best);
}

/// What came of the caches, and at how many places a pass over everything at once finds the same byte the most
/// probable: products of one row round differently from those of many, so a byte that is as good within that counts.
struct Written {
    std::string bytes;
    Index same = 0;
};

/// Writes `count` bytes on from a prompt through the caches: take(byte) gets each as it comes.
template <class Take>
Written write_on(const Model& model, const std::string& prompt, Index count, double temperature, std::uint64_t seed,
                 const Take& take) {
    std::mt19937_64 random(seed);
    auto caches = model.make_caches();
    for (auto& cache : caches) cache.reserve(Index(prompt.size()) + count);
    Written written;
    std::vector<Index> best(std::size_t(count), 0);
    Eigen::RowVectorXf next = model.logits(prompt, caches).bottomRows(1);
    for (Index i = 0; i < count; ++i) {
        if (i > 0) next = model.logits(std::string_view(&written.bytes.back(), 1), caches).row(0);
        next.maxCoeff(&best[std::size_t(i)]);
        written.bytes += draw(next, temperature, random);
        take(written.bytes.back());
    }
    const Matrix at_once = model.logits(prompt + written.bytes);
    for (Index i = 0; i < count; ++i) {
        const auto row = at_once.row(Index(prompt.size()) - 1 + i);
        const float rounding = 1e-4F * row.cwiseAbs().maxCoeff();
        if (row.maxCoeff() - row(best[std::size_t(i)]) <= rounding) ++written.same;
    }
    return written;
}

}  // namespace language_model
