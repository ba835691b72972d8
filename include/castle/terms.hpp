// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <castle/detail/check/message.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// What makes a score of the value `x = s^C - SiLU(s^U)` of a row `t` and a key `s`, beside the mask:
///
///     score = factor[distance] c tanh(x / c) + bias[distance],    distance = |t - s|
///
/// Each part is left out unless given. Decay, ALiBi and learned relative positions are all tables over the distance;
/// see castle::tables. All but the cap are differentiable; see TermsGradientView.
struct ScoreTerms {
    /// Row `h` is that of query head `h`, or the only row that of all heads; column `k` belongs to distance `k`. Tables
    /// have to reach as far as the longest distance between a row and a key that it sees. `[1 or heads, distances]`.
    Matrix<double> factor = {};
    Matrix<double> bias = {};

    /// `c` of the soft cap, above 0.
    std::optional<double> soft_cap = std::nullopt;

    /// Of each query head a logit that takes part in the softmax and has no value: a row's weights sum to less than 1.
    std::vector<double> sinks = {};

    bool has_tables() const { return factor.size() > 0 || bias.size() > 0; }
    /// Whether it is more than the plain score.
    bool has_any() const { return has_tables() || soft_cap.has_value() || !sinks.empty(); }
    /// Distances that all tables have.
    Index distances() const {
        if (factor.size() == 0) return bias.cols();
        return bias.size() == 0 ? factor.cols() : (std::min)(factor.cols(), bias.cols());
    }

    bool operator==(const ScoreTerms& other) const {
        const auto same = [](const Matrix<double>& a, const Matrix<double>& b) {
            return a.rows() == b.rows() && a.cols() == b.cols() && (a.array() == b.array()).all();
        };
        return same(factor, other.factor) && same(bias, other.bias) && soft_cap == other.soft_cap &&
               sinks == other.sinks;
    }
};

/// Where gradients of score terms go: views in the shapes of the tables, `[1 or heads, distances]`, and of the sinks,
/// `[1, heads]`. What is not wanted is left empty.
template <ComputeScalar T>
struct TermsGradientView {
    MatrixView<T> factor = {};
    MatrixView<T> bias = {};
    MatrixView<T> sinks = {};

    bool has_any() const { return factor.rows() > 0 || bias.rows() > 0 || sinks.rows() > 0; }
};

/// Ready tables for ScoreTerms.
namespace tables {

/// `exp(-gamma k)` for distances `k` below `distances`: a factor that lets logits fade, or whose logarithm, as a bias,
/// lets weights fade. One row for each of `gammas`. Throws std::invalid_argument if `distances` is below 1.
inline Matrix<double> decay(std::span<const double> gammas, Index distances) {
    detail::check_size("tables::decay", "distances", distances, 1);
    Matrix<double> table(Index(gammas.size()), distances);
    for (Index h = 0; h < table.rows(); ++h) {
        for (Index k = 0; k < distances; ++k) table(h, k) = std::exp(-gammas[std::size_t(h)] * double(k));
    }
    return table;
}

/// `-slope k` for distances `k` below `distances`, as a bias: one row for each of `slopes`. Throws as `decay`.
inline Matrix<double> linear(std::span<const double> slopes, Index distances) {
    detail::check_size("tables::linear", "distances", distances, 1);
    Matrix<double> table(Index(slopes.size()), distances);
    for (Index h = 0; h < table.rows(); ++h) {
        for (Index k = 0; k < distances; ++k) table(h, k) = -slopes[std::size_t(h)] * double(k);
    }
    return table;
}

/// The slopes of ALiBi (arXiv:2108.12409): for `heads` a power of two `2^(-8 (h + 1) / heads)`; otherwise those of the
/// power of two below, and then every other one of the power above. Throws std::invalid_argument if `heads` is below 1.
inline std::vector<double> alibi_slopes(Index heads) {
    detail::check_size("tables::alibi_slopes", "heads", heads, 1);
    Index power = 1;
    while (2 * power <= heads) power *= 2;
    std::vector<double> slopes;
    for (Index h = 0; h < power; ++h) slopes.push_back(std::exp2(-8.0 * double(h + 1) / double(power)));
    for (Index h = 0; Index(slopes.size()) < heads; h += 2) {
        slopes.push_back(std::exp2(-8.0 * double(h + 1) / double(2 * power)));
    }
    return slopes;
}

/// The bias of ALiBi, `[heads, distances]`.
inline Matrix<double> alibi(Index heads, Index distances) { return linear(alibi_slopes(heads), distances); }

}  // namespace tables
}  // namespace CASTLE_ABI
}  // namespace castle
