// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include <castle/detail/check/checks.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/reference/activations.hpp>

// Theorem 1 as it is printed (eqs. 11 and 12), every matrix in between there to be looked at. `O(L^3)` time and
// `O(L^2)` memory. `options.executor` is not used. Every function throws std::invalid_argument if shapes or options do
// not fit.
//
// A masked position is left out of its sum rather than multiplied by zero, so that nothing in a later token, a NaN
// included, reaches an earlier row.
namespace castle {
inline namespace CASTLE_ABI {
namespace dense {

/// `sigmoid(scale Q^U K^U^T + M^U)`, `[L, L]`: row `s`, column `j` is how far token `s` absorbs token `j`; exactly 0
/// unless `s < j <= s + W` (eqs. 3 and 9).
template <Scalar T>
[[nodiscard]] Matrix<T> gates(const HeadInput<T>& head, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("dense::gates", head, options);
    const Index length = head.causal.q.rows();
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));
    const auto qu = head.lookahead.q.map(), ku = head.lookahead.k.map();

    Matrix<T> g = Matrix<T>::Zero(length, length);
    for (Index s = 0; s < length; ++s) {
        const Index absorbed = (std::min)(length - 1 - s, options.lookahead_window);
        g.row(s).segment(s + 1, absorbed) =
            (scale * (qu.row(s) * ku.middleRows(s + 1, absorbed).transpose())).unaryExpr(detail::Sigmoid{});
    }
    return g;
}

/// The lookahead keys `U^t` after `t` tokens, `[t, d]` (eq. 4). Throws std::invalid_argument also if `t` is not within
/// `[0, L]`.
template <Scalar T>
[[nodiscard]] Matrix<T> lookahead_keys(const HeadInput<T>& head, Index t, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("dense::lookahead_keys", head, options);
    const Index length = head.causal.q.rows();
    if (t < 0 || t > length) {
        detail::fail("dense::lookahead_keys", "t is ", t, " but must be within [0, ", length,
                     "], the rows of head.causal.q ", detail::as_shape(head.causal.q));
    }
    const Matrix<T> g = gates(head, options);
    Matrix<T> u(t, shape.d);
    for (Index s = 0; s < t; ++s) {
        const Index absorbed = (std::min)(t - 1 - s, options.lookahead_window);
        u.row(s) = g.row(s).segment(s + 1, absorbed) * head.lookahead.v.map().middleRows(s + 1, absorbed);
    }
    return u;
}

/// `S^U`, `[L, L]`: row `t` is `scale q^C_t U^t^T`, 0 above the diagonal (eq. 11).
template <Scalar T>
[[nodiscard]] Matrix<T> lookahead_scores(const HeadInput<T>& head, const Options& options = {}) {
    const Matrix<T> g = gates(head, options);
    const Index length = g.rows();
    const T scale = static_cast<T>(detail::scale_for(options, head.causal.q.cols()));
    const Matrix<T> products = scale * (head.causal.q.map() * head.lookahead.v.map().transpose());

    Matrix<T> scores = Matrix<T>::Zero(length, length);
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
[[nodiscard]] Matrix<T> causal_scores(const HeadInput<T>& head, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("dense::causal_scores", head, options);
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));
    Matrix<T> scores = scale * (head.causal.q.map() * head.causal.k.map().transpose());
    scores.template triangularView<Eigen::StrictlyUpper>().setConstant(-std::numeric_limits<T>::infinity());
    return scores;
}

/// `S^C - SiLU(S^U)`, `[L, L]`: what the softmax is taken of, minus infinity above the diagonal (eq. 7). What the
/// options leave out is missing.
template <Scalar T>
[[nodiscard]] Matrix<T> scores(const HeadInput<T>& head, const Options& options = {}) {
    Matrix<T> result = causal_scores(head, options);
    if (!options.causal_keys) result.template triangularView<Eigen::Lower>().setZero();
    result -= lookahead_scores(head, options).unaryExpr(detail::LookaheadTerm{options.silu});
    return result;
}

/// `row_softmax(S^C - SiLU(S^U))`, `[L, L]`: exactly 0 above the diagonal (eq. 12).
template <Scalar T>
[[nodiscard]] Matrix<T> weights(const HeadInput<T>& head, const Options& options = {}) {
    Matrix<T> p = scores(head, options);
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
[[nodiscard]] Matrix<T> output(const HeadInput<T>& head, const Options& options = {}) {
    const Matrix<T> p = weights(head, options);
    Matrix<T> o(p.rows(), head.causal.v.cols());
    for (Index t = 0; t < p.rows(); ++t) {
        o.row(t) = p.row(t).head(t + 1) * head.causal.v.map().topRows(t + 1);
    }
    return o;
}

}  // namespace dense
}  // namespace CASTLE_ABI
}  // namespace castle
