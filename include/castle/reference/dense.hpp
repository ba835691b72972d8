// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <string_view>
#include <vector>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/reference/activations.hpp>

// Theorem 1 as it is printed (eqs. 11 and 12), every matrix in between there to be looked at. `O(L^3)` time and
// `O(L^2)` memory a head. `options.executor` is not used. Every function throws std::invalid_argument if shapes or
// options do not fit.
//
// Without a shape they take one head, whose sizes are those of the views. With one they take heads side by side and
// return a matrix for each query head or, for what belongs to the key-value heads, for each of these.
//
// A masked position is left out of its sum rather than multiplied by zero, so that nothing in a later token, a NaN
// included, reaches an earlier row.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The sizes of a lone head, if shapes and options fit.
template <Scalar T>
Shape checked_head(std::string_view where, const Input<T>& input, const Options& options) {
    const Shape shape = own_shape(where, input);
    checked_kind(where, shape, input, options);
    return shape;
}

// of_head(input) for `count` heads, query heads or the first of each group.
template <Scalar T, class OfHead>
std::vector<Matrix<T>> of_each_head(std::string_view where, const Shape& shape, const Input<T>& input,
                                    const Options& options, Index count, const OfHead& of_head) {
    checked_kind(where, shape, input, options);
    std::vector<Matrix<T>> all;
    all.reserve(std::size_t(count));
    for (Index h = 0; h < count; ++h) all.push_back(of_head(input.head(shape, h * (shape.heads / count))));
    return all;
}

}  // namespace detail

namespace dense {

/// `sigmoid(scale Q^U K^U^T + M^U)`, `[L, L]`: row `s`, column `j` is how far token `s` absorbs token `j`; exactly 0
/// unless `s < j <= s + W` (eqs. 3 and 9).
template <Scalar T>
[[nodiscard]] Matrix<T> gates(const Input<T>& input, const Options& options = {}) {
    const Shape shape = detail::checked_head("dense::gates", input, options);
    const Index length = input.causal.q.rows();
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));
    const auto qu = input.lookahead.q.map(), ku = input.lookahead.k.map();

    Matrix<T> g = Matrix<T>::Zero(length, length);
    for (Index s = 0; s < length; ++s) {
        const Index absorbed = (std::min)(length - 1 - s, options.lookahead_window);
        if (absorbed == 0) continue;
        g.row(s).segment(s + 1, absorbed) =
            (scale * (qu.row(s) * ku.middleRows(s + 1, absorbed).transpose())).unaryExpr(detail::Sigmoid{});
    }
    return g;
}

/// The lookahead keys `U^t` after `t` tokens, `[t, d]` (eq. 4). Throws std::invalid_argument also if `t` is not within
/// `[0, L]`.
template <Scalar T>
[[nodiscard]] Matrix<T> lookahead_keys(const Input<T>& input, Index t, const Options& options = {}) {
    const Shape shape = detail::checked_head("dense::lookahead_keys", input, options);
    const Index length = input.causal.q.rows();
    if (t < 0 || t > length) {
        detail::fail("dense::lookahead_keys", "t is ", t, " but must be within [0, ", length,
                     "], the rows of input.causal.q ", detail::extents_of(input.causal.q));
    }
    const Matrix<T> g = gates(input, options);
    Matrix<T> u = Matrix<T>::Zero(t, shape.d);
    for (Index s = 0; s < t; ++s) {
        const Index absorbed = (std::min)(t - 1 - s, options.lookahead_window);
        if (absorbed == 0) continue;
        u.row(s) = g.row(s).segment(s + 1, absorbed) * input.lookahead.v.map().middleRows(s + 1, absorbed);
    }
    return u;
}

/// `S^U`, `[L, L]`: row `t` is `scale q^C_t U^t^T`, 0 above the diagonal (eq. 11).
template <Scalar T>
[[nodiscard]] Matrix<T> lookahead_scores(const Input<T>& input, const Options& options = {}) {
    const Matrix<T> g = gates(input, options);
    const Index length = g.rows();
    Matrix<T> scores = Matrix<T>::Zero(length, length);
    if (options.lookahead_window == 0) return scores;
    const T scale = static_cast<T>(detail::scale_for(options, input.causal.q.cols()));
    const Matrix<T> products = scale * (input.causal.q.map() * input.lookahead.v.map().transpose());

    for (Index t = 0; t < length; ++t) {
        for (Index s = 0; s < t; ++s) {
            const Index absorbed = (std::min)(t - s, options.lookahead_window);
            scores(t, s) = products.row(t).segment(s + 1, absorbed).dot(g.row(s).segment(s + 1, absorbed));
        }
    }
    return scores;
}

/// `S^C = scale Q^C K^C^T + M^C`, `[L, L]`: minus infinity above the diagonal (eq. 5).
template <Scalar T>
[[nodiscard]] Matrix<T> causal_scores(const Input<T>& input, const Options& options = {}) {
    const Shape shape = detail::checked_head("dense::causal_scores", input, options);
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));
    Matrix<T> scores = scale * (input.causal.q.map() * input.causal.k.map().transpose());
    scores.template triangularView<Eigen::StrictlyUpper>().setConstant(-std::numeric_limits<T>::infinity());
    return scores;
}

/// `S^C - SiLU(S^U)`, `[L, L]`: what the softmax is taken of, minus infinity above the diagonal (eq. 7). What the
/// options leave out is missing.
template <Scalar T>
[[nodiscard]] Matrix<T> scores(const Input<T>& input, const Options& options = {}) {
    Matrix<T> result = causal_scores(input, options);
    if (!options.causal_keys) result.template triangularView<Eigen::Lower>().setZero();
    result -= lookahead_scores(input, options).unaryExpr(detail::LookaheadTerm{options.silu});
    return result;
}

/// `row_softmax(S^C - SiLU(S^U))`, `[L, L]`: exactly 0 above the diagonal (eq. 12).
template <Scalar T>
[[nodiscard]] Matrix<T> weights(const Input<T>& input, const Options& options = {}) {
    Matrix<T> p = scores(input, options);
    for (Index t = 0; t < p.rows(); ++t) {
        auto row = p.row(t).head(t + 1);
        row = (row.array() - row.maxCoeff()).exp();
        row /= row.sum();
    }
    p.template triangularView<Eigen::StrictlyUpper>().setZero();
    return p;
}

/// `O`, `[L, dv]` (eq. 12).
template <Scalar T>
[[nodiscard]] Matrix<T> output(const Input<T>& input, const Options& options = {}) {
    const Matrix<T> p = weights(input, options);
    Matrix<T> o(p.rows(), input.causal.v.cols());
    for (Index t = 0; t < p.rows(); ++t) {
        o.row(t) = p.row(t).head(t + 1) * input.causal.v.map().topRows(t + 1);
    }
    return o;
}

/// Heads side by side: the gates and lookahead keys of every key-value head.
template <Scalar T>
[[nodiscard]] std::vector<Matrix<T>> gates(const Shape& shape, const Input<T>& input, const Options& options = {}) {
    return detail::of_each_head("dense::gates", shape, input, options, shape.kv_heads,
                                [&](const Input<T>& head) { return gates(head, options); });
}
template <Scalar T>
[[nodiscard]] std::vector<Matrix<T>> lookahead_keys(const Shape& shape, const Input<T>& input, Index t,
                                                    const Options& options = {}) {
    return detail::of_each_head("dense::lookahead_keys", shape, input, options, shape.kv_heads,
                                [&](const Input<T>& head) { return lookahead_keys(head, t, options); });
}

/// Heads side by side: the scores and weights of every query head.
template <Scalar T>
[[nodiscard]] std::vector<Matrix<T>> lookahead_scores(const Shape& shape, const Input<T>& input,
                                                      const Options& options = {}) {
    return detail::of_each_head("dense::lookahead_scores", shape, input, options, shape.heads,
                                [&](const Input<T>& head) { return lookahead_scores(head, options); });
}
template <Scalar T>
[[nodiscard]] std::vector<Matrix<T>> causal_scores(const Shape& shape, const Input<T>& input,
                                                   const Options& options = {}) {
    return detail::of_each_head("dense::causal_scores", shape, input, options, shape.heads,
                                [&](const Input<T>& head) { return causal_scores(head, options); });
}
template <Scalar T>
[[nodiscard]] std::vector<Matrix<T>> scores(const Shape& shape, const Input<T>& input, const Options& options = {}) {
    return detail::of_each_head("dense::scores", shape, input, options, shape.heads,
                                [&](const Input<T>& head) { return scores(head, options); });
}
template <Scalar T>
[[nodiscard]] std::vector<Matrix<T>> weights(const Shape& shape, const Input<T>& input, const Options& options = {}) {
    return detail::of_each_head("dense::weights", shape, input, options, shape.heads,
                                [&](const Input<T>& head) { return weights(head, options); });
}

/// Heads side by side: `O`, `[L, heads dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> output(const Shape& shape, const Input<T>& input, const Options& options = {}) {
    const std::vector<Matrix<T>> of_heads =
        detail::of_each_head("dense::output", shape, input, options, shape.heads,
                             [&](const Input<T>& head) { return output(head, options); });
    Matrix<T> o(input.causal.q.rows(), shape.heads * shape.dv);
    for (Index h = 0; h < shape.heads; ++h) o.middleCols(h * shape.dv, shape.dv) = of_heads[std::size_t(h)];
    return o;
}

}  // namespace dense
}  // namespace CASTLE_ABI
}  // namespace castle
