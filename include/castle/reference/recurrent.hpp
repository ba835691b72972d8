// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <type_traits>

#include <castle/detail/check/checks.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/reference/activations.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// CASTLE as it is defined, one token at a time (eqs. 13 and 5 to 8): writes the outputs, `[L, dv]`, to `out`.
///
/// This is the form to read with the paper open; `O(L^2 d)` time, but none of it tuned. `options.executor` is not used.
/// `out` must not overlap the input.
/// Throws std::invalid_argument if shapes or options do not fit.
template <Scalar T>
void recurrent(const HeadInput<T>& head, std::type_identity_t<MatrixView<T>> out, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("recurrent", head, options);
    const Index length = head.causal.q.rows();
    detail::check_shape("recurrent", "", "out", out, length, shape.dv, detail::because_of(head));
    using Column = Eigen::Matrix<T, Eigen::Dynamic, 1>;
    const auto qc = head.causal.q.map(), kc = head.causal.k.map(), vc = head.causal.v.map();
    const auto qu = head.lookahead.q.map(), ku = head.lookahead.k.map(), vu = head.lookahead.v.map();
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));

    Matrix<T> u = Matrix<T>::Zero(length, shape.d);  // rows up to t: U^t
    for (Index t = 0; t < length; ++t) {
        // Eqs. 13 and 9: the tokens that absorb token t, at most a window of them.
        const Index absorbing = (std::min)(t, options.lookahead_window);
        const Column gates =
            (scale * (qu.middleRows(t - absorbing, absorbing) * ku.row(t).transpose())).unaryExpr(detail::Sigmoid{});
        u.middleRows(t - absorbing, absorbing) += gates * vu.row(t);

        const Column causal_scores = scale * (kc.topRows(t + 1) * qc.row(t).transpose());    // eq. 5
        const Column lookahead_scores = scale * (u.topRows(t + 1) * qc.row(t).transpose());  // eq. 6
        Column scores = -lookahead_scores.unaryExpr(detail::LookaheadTerm{options.silu});    // eq. 7
        if (options.causal_keys) scores += causal_scores;
        const Column weights = (scores.array() - scores.maxCoeff()).exp();
        out.map().row(t) = weights.transpose() * vc.topRows(t + 1) / weights.sum();  // eq. 8
    }
}

/// As above; returns the outputs, `[L, dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> recurrent(const HeadInput<T>& head, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("recurrent", head, options);
    Matrix<T> out(head.causal.q.rows(), shape.dv);
    recurrent(head, out, options);
    return out;
}

}  // namespace CASTLE_ABI
}  // namespace castle
