// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <type_traits>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/reference/activations.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

// One query head, whose shapes have been checked.
template <Scalar T>
void recurrent_head(const Input<T>& input, MatrixView<T> out, const Options& options) {
    using Column = Eigen::Matrix<T, Eigen::Dynamic, 1>;
    const auto qc = input.causal.q.map(), kc = input.causal.k.map(), vc = input.causal.v.map();
    const auto qu = input.lookahead.q.map(), ku = input.lookahead.k.map(), vu = input.lookahead.v.map();
    const Index length = qc.rows(), d = qc.cols();
    const T scale = static_cast<T>(scale_for(options, d));

    Matrix<T> u = Matrix<T>::Zero(length, d);  // rows up to t: U^t
    for (Index t = 0; t < length; ++t) {
        // Eqs. 13 and 9: the tokens that absorb token t, at most a window of them.
        const Index absorbing = (std::min)(t, options.lookahead_window);
        if (absorbing > 0) {
            const Column gates =
                (scale * (qu.middleRows(t - absorbing, absorbing) * ku.row(t).transpose())).unaryExpr(Sigmoid{});
            u.middleRows(t - absorbing, absorbing) += gates * vu.row(t);
        }

        const Column causal_scores = scale * (kc.topRows(t + 1) * qc.row(t).transpose());    // eq. 5
        const Column lookahead_scores = scale * (u.topRows(t + 1) * qc.row(t).transpose());  // eq. 6
        Column scores = -lookahead_scores.unaryExpr(LookaheadTerm{options.silu});            // eq. 7
        if (options.causal_keys) scores += causal_scores;
        const Column weights = (scores.array() - scores.maxCoeff()).exp();
        out.map().row(t) = weights.transpose() * vc.topRows(t + 1) / weights.sum();  // eq. 8
    }
}

}  // namespace detail

/// CASTLE as it is defined, one token at a time (eqs. 13 and 5 to 8): writes the outputs, `[L, heads dv]`, to `out`.
///
/// This is the form to read with the paper open; `O(L^2 d)` time a head, but none of it tuned. `options.executor` is
/// not used. `out` must not overlap the input. Throws std::invalid_argument if shapes or options do not fit.
template <Scalar T>
void recurrent(const Shape& shape, const Input<T>& input, std::type_identity_t<MatrixView<T>> out,
               const Options& options = {}) {
    detail::checked_kind("recurrent", shape, input, options);
    detail::call_of_whole("recurrent", shape, input).check_out("out", out);
    for (Index h = 0; h < shape.heads; ++h) {
        detail::recurrent_head(input.head(shape, h), out.middle_cols(h * shape.dv, shape.dv), options);
    }
}

/// As above; returns the outputs, `[L, heads dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> recurrent(const Shape& shape, const Input<T>& input, const Options& options = {}) {
    detail::checked_kind("recurrent", shape, input, options);
    Matrix<T> out(input.causal.q.rows(), shape.heads * shape.dv);
    recurrent(shape, input, out, options);
    return out;
}

/// The same for one head, whose sizes are those of the views.
template <Scalar T>
void recurrent(const Input<T>& input, std::type_identity_t<MatrixView<T>> out, const Options& options = {}) {
    recurrent(detail::own_shape("recurrent", input), input, out, options);
}
template <Scalar T>
[[nodiscard]] Matrix<T> recurrent(const Input<T>& input, const Options& options = {}) {
    return recurrent(detail::own_shape("recurrent", input), input, options);
}

}  // namespace CASTLE_ABI
}  // namespace castle
