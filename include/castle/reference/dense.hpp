// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <string_view>
#include <vector>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/reference/activations.hpp>
#include <castle/reference/seen.hpp>

// Theorem 1 as it is printed (eqs. 11 and 12), every matrix in between there to be looked at. `O(L^3)` time and
// `O(L^2)` memory a head. `options.executor` is not used. Every function throws std::invalid_argument if shapes or
// options do not fit.
//
// Without a shape they take one head, whose sizes are those of the views. With one they take heads side by side and
// return a matrix for each query head or, for what belongs to the key-value heads, for each of these.
//
// A masked position is left out of its sum rather than multiplied by zero, so that nothing in a key that a row does not
// see, a NaN included, reaches it.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The sizes of a lone head, if shapes, options and the mask fit.
template <ComputeScalar T>
Shape checked_head(std::string_view where, const Input<T>& input, const Options& options, const Mask& mask) {
    const Shape shape = own_shape(where, input);
    check_whole(where, shape, input, options, mask);
    return shape;
}

// of_head(input, options) for `count` heads, query heads or the first of each group.
template <ComputeScalar T, class OfHead>
std::vector<Matrix<T>> of_each_head(std::string_view where, const Shape& shape, const Input<T>& input,
                                    const Options& options, const Mask& mask, Index count, const OfHead& of_head) {
    check_whole(where, shape, input, options, mask);
    std::vector<Matrix<T>> all;
    all.reserve(std::size_t(count));
    for (Index i = 0; i < count; ++i) {
        const Index h = i * (shape.heads / count);
        all.push_back(of_head(input.head(shape, h), options_of_head(options, shape, h)));
    }
    return all;
}

}  // namespace detail

namespace dense {

/// `sigmoid(scale Q^U K^U^T + M^U)`, `[L, L]`: row `s`, column `j` is how far token `s` absorbs token `j`; exactly 0
/// unless `s < j <= s + W` (eqs. 3 and 9) and the mask lets `j` see `s`.
template <ComputeScalar T>
[[nodiscard]] Matrix<T> gates(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    const Shape shape = detail::checked_head("dense::gates", input, options, mask);
    const Index length = input.causal.q.rows();
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));
    const auto qu = input.lookahead.q.map(), ku = input.lookahead.k.map();

    Matrix<T> g = Matrix<T>::Zero(length, length);
    for (Index s = 0; s < length; ++s) {
        for (Index j = s + 1; j < length; ++j) {
            if (!detail::absorbs(mask, options.lookahead_window, s, j, length)) continue;
            g(s, j) = detail::Sigmoid{}(scale * qu.row(s).dot(ku.row(j)));
        }
    }
    return g;
}

/// The lookahead keys `U^t` after `t` tokens, `[t, d]` (eq. 4). Throws std::invalid_argument also if `t` is not within
/// `[0, L]`.
template <ComputeScalar T>
[[nodiscard]] Matrix<T> lookahead_keys(const Input<T>& input, Index t, const Options& options = {},
                                       const Mask& mask = {}) {
    const Shape shape = detail::checked_head("dense::lookahead_keys", input, options, mask);
    const Index length = input.causal.q.rows();
    if (t < 0 || t > length) {
        detail::fail("dense::lookahead_keys", "t is ", t, " but must be within [0, ", length,
                     "], the rows of input.causal.q ", detail::extents_of(input.causal.q));
    }
    const Matrix<T> g = gates(input, options, mask);
    Matrix<T> u = Matrix<T>::Zero(t, shape.d);
    for (Index s = 0; s < t; ++s) {
        for (Index j = s + 1; j < t; ++j) {
            if (!detail::absorbs(mask, options.lookahead_window, s, j, length)) continue;
            u.row(s) += g(s, j) * input.lookahead.v.map().row(j);
        }
    }
    return u;
}

/// `S^U`, `[L, L]`: row `t` is `scale q^C_t U^t^T`, 0 above the diagonal and where the mask hides a key (eq. 11).
template <ComputeScalar T>
[[nodiscard]] Matrix<T> lookahead_scores(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    const Matrix<T> g = gates(input, options, mask);
    const Index length = g.rows();
    Matrix<T> scores = Matrix<T>::Zero(length, length);
    if (options.lookahead_window == 0) return scores;
    const T scale = static_cast<T>(detail::scale_for(options, input.causal.q.cols()));
    const Matrix<T> products = scale * (input.causal.q.map() * input.lookahead.v.map().transpose());

    for (Index t = 0; t < length; ++t) {
        for (Index s = 0; s < t; ++s) {
            if (!mask.sees(t, s, length)) continue;
            for (Index j = s + 1; j <= t; ++j) {
                if (!detail::absorbs(mask, options.lookahead_window, s, j, length)) continue;
                scores(t, s) += products(t, j) * g(s, j);
            }
        }
    }
    return scores;
}

/// `S^C = scale Q^C K^C^T + M^C`, `[L, L]`: minus infinity where the mask hides a key, above the diagonal if it is
/// causal (eq. 5).
template <ComputeScalar T>
[[nodiscard]] Matrix<T> causal_scores(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    const Shape shape = detail::checked_head("dense::causal_scores", input, options, mask);
    const T scale = static_cast<T>(detail::scale_for(options, shape.d));
    Matrix<T> scores = scale * (input.causal.q.map() * input.causal.k.map().transpose());
    for (Index t = 0; t < scores.rows(); ++t) {
        for (Index s = 0; s < scores.cols(); ++s) {
            if (!mask.sees(t, s, scores.cols())) scores(t, s) = -std::numeric_limits<T>::infinity();
        }
    }
    return scores;
}

/// `S^C - SiLU(S^U)`, `[L, L]`, and what score terms make of it: what the softmax is taken of, minus infinity where the
/// mask hides a key (eq. 7). What the options leave out is missing.
template <ComputeScalar T>
[[nodiscard]] Matrix<T> scores(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    Matrix<T> result = causal_scores(input, options, mask);
    const Matrix<T> lookahead = lookahead_scores(input, options, mask);
    for (Index t = 0; t < result.rows(); ++t) {
        for (const Index s : detail::seen_keys(mask, t, result.cols())) {
            const T x =
                (options.causal_keys ? result(t, s) : T(0)) - detail::LookaheadTerm{options.silu}(lookahead(t, s));
            result(t, s) = detail::score_of(options.terms, t > s ? t - s : s - t, x);
        }
    }
    return result;
}

/// `row_softmax(S^C - SiLU(S^U))`, `[L, L]`: exactly 0 where the mask hides a key (eq. 12). A row that sees none is 0.
template <ComputeScalar T>
[[nodiscard]] Matrix<T> weights(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    const Matrix<T> all = scores(input, options, mask);
    Matrix<T> p = Matrix<T>::Zero(all.rows(), all.cols());
    for (Index t = 0; t < p.rows(); ++t) {
        const std::vector<Index> seen = detail::seen_keys(mask, t, p.cols());
        Eigen::Matrix<T, Eigen::Dynamic, 1> row(Index(seen.size()));
        for (Index i = 0; i < row.size(); ++i) row(i) = all(t, seen[std::size_t(i)]);
        detail::softmax<T>(options.terms, row);
        for (Index i = 0; i < row.size(); ++i) p(t, seen[std::size_t(i)]) = row(i);
    }
    return p;
}

/// `O`, `[L, dv]` (eq. 12).
template <ComputeScalar T>
[[nodiscard]] Matrix<T> output(const Input<T>& input, const Options& options = {}, const Mask& mask = {}) {
    const Matrix<T> p = weights(input, options, mask);
    Matrix<T> o = Matrix<T>::Zero(p.rows(), input.causal.v.cols());
    for (Index t = 0; t < p.rows(); ++t) {
        for (const Index s : detail::seen_keys(mask, t, p.cols())) o.row(t) += p(t, s) * input.causal.v.map().row(s);
    }
    return o;
}

/// Heads side by side: the gates and lookahead keys of every key-value head.
template <ComputeScalar T>
[[nodiscard]] std::vector<Matrix<T>> gates(const Shape& shape, const Input<T>& input, const Options& options = {},
                                           const Mask& mask = {}) {
    return detail::of_each_head("dense::gates", shape, input, options, mask, shape.kv_heads,
                                [&](const Input<T>& head, const Options& own) { return gates(head, own, mask); });
}
template <ComputeScalar T>
[[nodiscard]] std::vector<Matrix<T>> lookahead_keys(const Shape& shape, const Input<T>& input, Index t,
                                                    const Options& options = {}, const Mask& mask = {}) {
    return detail::of_each_head(
        "dense::lookahead_keys", shape, input, options, mask, shape.kv_heads,
        [&](const Input<T>& head, const Options& own) { return lookahead_keys(head, t, own, mask); });
}

/// Heads side by side: the scores and weights of every query head.
template <ComputeScalar T>
[[nodiscard]] std::vector<Matrix<T>> lookahead_scores(const Shape& shape, const Input<T>& input,
                                                      const Options& options = {}, const Mask& mask = {}) {
    return detail::of_each_head(
        "dense::lookahead_scores", shape, input, options, mask, shape.heads,
        [&](const Input<T>& head, const Options& own) { return lookahead_scores(head, own, mask); });
}
template <ComputeScalar T>
[[nodiscard]] std::vector<Matrix<T>> causal_scores(const Shape& shape, const Input<T>& input,
                                                   const Options& options = {}, const Mask& mask = {}) {
    return detail::of_each_head(
        "dense::causal_scores", shape, input, options, mask, shape.heads,
        [&](const Input<T>& head, const Options& own) { return causal_scores(head, own, mask); });
}
template <ComputeScalar T>
[[nodiscard]] std::vector<Matrix<T>> scores(const Shape& shape, const Input<T>& input, const Options& options = {},
                                            const Mask& mask = {}) {
    return detail::of_each_head("dense::scores", shape, input, options, mask, shape.heads,
                                [&](const Input<T>& head, const Options& own) { return scores(head, own, mask); });
}
template <ComputeScalar T>
[[nodiscard]] std::vector<Matrix<T>> weights(const Shape& shape, const Input<T>& input, const Options& options = {},
                                             const Mask& mask = {}) {
    return detail::of_each_head("dense::weights", shape, input, options, mask, shape.heads,
                                [&](const Input<T>& head, const Options& own) { return weights(head, own, mask); });
}

/// Heads side by side: `O`, `[L, heads dv]`.
template <ComputeScalar T>
[[nodiscard]] Matrix<T> output(const Shape& shape, const Input<T>& input, const Options& options = {},
                               const Mask& mask = {}) {
    const std::vector<Matrix<T>> of_heads =
        detail::of_each_head("dense::output", shape, input, options, mask, shape.heads,
                             [&](const Input<T>& head, const Options& own) { return output(head, own, mask); });
    Matrix<T> o(input.causal.q.rows(), shape.heads * shape.dv);
    for (Index h = 0; h < shape.heads; ++h) o.middleCols(h * shape.dv, shape.dv) = of_heads[std::size_t(h)];
    return o;
}

}  // namespace dense
}  // namespace CASTLE_ABI
}  // namespace castle
