// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>
#include <vector>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/reference/activations.hpp>
#include <castle/reference/seen.hpp>
#include <castle/wide_input.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

// One query head, whose shapes have been checked.
template <ComputeScalar T>
void recurrent_head(const Input<T>& input, MatrixView<T> out, const Options& options, const Mask& mask) {
    using Column = Eigen::Matrix<T, Eigen::Dynamic, 1>;
    const auto qc = input.causal.q.map(), kc = input.causal.k.map(), vc = input.causal.v.map();
    const auto qu = input.lookahead.q.map(), ku = input.lookahead.k.map(), vu = input.lookahead.v.map();
    const Index length = qc.rows(), d = qc.cols();
    const T scale = static_cast<T>(scale_for(options, d));

    Matrix<T> u = Matrix<T>::Zero(length, d);  // U^t; keys after t have absorbed nothing
    for (Index t = 0; t < length; ++t) {
        // Eqs. 13 and 9: the keys that absorb token t.
        for (Index s = 0; s < t; ++s) {
            if (!absorbs(mask, options.lookahead_window, s, t, length)) continue;
            u.row(s) += Sigmoid{}(scale * qu.row(s).dot(ku.row(t))) * vu.row(t);
        }
        const std::vector<Index> seen = seen_keys(mask, t, length);
        Column scores(Index(seen.size()));
        for (Index i = 0; i < scores.size(); ++i) {
            const Index s = seen[std::size_t(i)];
            const T causal_score = scale * kc.row(s).dot(qc.row(t));    // eq. 5
            const T lookahead_score = scale * u.row(s).dot(qc.row(t));  // eq. 6
            T x = options.causal_keys ? causal_score : T(0);            // eq. 7
            if (options.lookahead_window > 0) x -= LookaheadTerm{options.silu}(lookahead_score);
            scores(i) = score_of(options.terms, t > s ? t - s : s - t, x);
        }
        softmax<T>(options.terms, scores);
        out.map().row(t).setZero();
        for (Index i = 0; i < scores.size(); ++i)
            out.map().row(t) += scores(i) * vc.row(seen[std::size_t(i)]);  // eq. 8
    }
}

}  // namespace detail

/// CASTLE as it is defined, one token at a time (eqs. 13 and 5 to 8): writes the outputs, `[L, heads dv]`, to `out`.
///
/// This is the form to read with the paper open; `O(L^2 d)` time a head, but none of it tuned. `options.executor` is
/// not used. `out` must not overlap the input. Throws std::invalid_argument if shapes, options or the mask do not fit.
template <Scalar T>
void recurrent(const Shape& shape, const Input<T>& input, std::type_identity_t<MatrixView<T>> out,
               const Options& options = {}, const Mask& mask = {}) {
    detail::check_whole("recurrent", shape, input, options, mask);
    detail::call_of_whole("recurrent", shape, input).check_out("out", out);
    if constexpr (!ComputeScalar<T>) {
        const WideInput<T> wide(input);
        Matrix<Compute<T>> wide_out(out.rows(), out.cols());
        recurrent(shape, wide.input(), wide_out, options, mask);
        detail::copy_elements<Compute<T>, T>(wide_out, out);
    } else {
        for (Index h = 0; h < shape.heads; ++h) {
            detail::recurrent_head(input.head(shape, h), out.middle_cols(h * shape.dv, shape.dv),
                                   detail::options_of_head(options, shape, h), mask);
        }
    }
}

/// As above; returns the outputs, `[L, heads dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> recurrent(const Shape& shape, const Input<T>& input, const Options& options = {},
                                  const Mask& mask = {}) {
    detail::checked_kind("recurrent", shape, input, options);
    Matrix<T> out(input.causal.q.rows(), shape.heads * shape.dv);
    recurrent(shape, input, out, options, mask);
    return out;
}

/// The same for one head, whose sizes are those of the views.
template <Scalar T>
void recurrent(const Input<T>& input, std::type_identity_t<MatrixView<T>> out, const Options& options = {},
               const Mask& mask = {}) {
    recurrent(detail::own_shape("recurrent", input), input, out, options, mask);
}
template <Scalar T>
[[nodiscard]] Matrix<T> recurrent(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    return recurrent(detail::own_shape("recurrent", input), input, options, mask);
}

}  // namespace CASTLE_ABI
}  // namespace castle
