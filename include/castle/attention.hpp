// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <concepts>
#include <type_traits>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/forward/whole_sequence.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/options.hpp>
#include <castle/output.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// CASTLE over a whole sequence, parallel over its tokens, not over threads (Theorems 1 and 2): writes `O` of eq. 12,
/// `[L, heads dv]`, to `out`. With a lookahead window of 0 it is standard causal attention.
///
/// It runs in the calling thread unless `options.executor` supplies threads. It is bitwise identical to `extend` of all
/// `L` tokens onto an empty cache: `O(L^2 d)` time a head, `O(L d)` memory beside the input and the output. `out` must
/// not overlap the input. Throws std::invalid_argument if shapes or options do not fit, and std::bad_alloc if memory
/// runs out.
template <Scalar T>
void parallel(const Shape& shape, const Input<T>& input, std::type_identity_t<MatrixView<T>> out,
              const Options& options = {}, const Masks& mask = {}) {
    parallel(shape, input, Output<T>{.out = out}, options, mask);
}

/// The same with all that an Output has. Under a mask of documents each is run as a sequence of its own, and bitwise
/// equal to it; under other masks it is bitwise identical to `extend` with that mask. Throws, too, if the mask does not
/// fit, see `extend`, or its documents do not come to `L` tokens.
///
/// Cross-attention: with a lookahead window of 0 and a mask, `input.causal.k` and `v` may be those of another sequence,
/// of `n` rows. Rows are then the queries' positions and keys those of the other sequence; `masks::full()` shows every
/// row all `n` keys.
template <Scalar T>
void parallel(const Shape& shape, const Input<T>& input, const std::type_identity_t<Output<T>>& output,
              const Options& options = {}, const Masks& mask = {}) {
    const detail::AttentionKind kind = detail::checked_kind("parallel", shape, input, options, mask);
    const Index rows = input.causal.q.rows();
    const detail::WholeSequence whole("parallel", rows, mask, output.mass_over,
                                      detail::cross_keys(input, kind.has_lookahead(), mask));
    detail::call_of_whole("parallel", shape, input).check_output("", output, 1);
    whole.check_sights("parallel", kind.terms.get());
    detail::append_whole<T>(kind, whole, input, detail::output_rows(output), options.executor);
}

/// As above; returns the outputs, `[L, heads dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> parallel(const Shape& shape, const Input<T>& input, const Options& options = {},
                                 const Masks& mask = {}) {
    detail::checked_kind("parallel", shape, input, options, mask);
    Matrix<T> out(input.causal.q.rows(), shape.heads * shape.dv);
    parallel(shape, input, out, options, mask);
    return out;
}

/// The same for one head, whose sizes are those of the views.
template <Scalar T>
void parallel(const Input<T>& input, std::type_identity_t<MatrixView<T>> out, const Options& options = {},
              const Masks& mask = {}) {
    parallel(detail::own_shape("parallel", input), input, out, options, mask);
}
template <Scalar T>
[[nodiscard]] Matrix<T> parallel(const Input<T>& input, const Options& options = {}, const Masks& mask = {}) {
    return parallel(detail::own_shape("parallel", input), input, options, mask);
}

/// Standard causal attention of one head over a whole sequence, the short way in: returns `softmax(scale q k^T + mask)
/// v`, `[L, dv]`, of `q, k`, `[L, d]`, and `v`, `[L, dv]`: matrices or views of one scalar. It is `parallel` with a
/// lookahead window of 0, whatever the window of `options`; to write into a view of yours, or for many heads, call
/// that. Throws std::invalid_argument if shapes or options do not fit.
template <class Q, class K, class V, Scalar T = typename Q::value_type>
requires std::convertible_to<const Q&, ConstMatrixView<T>> && std::convertible_to<const K&, ConstMatrixView<T>> &&
    std::convertible_to<const V&, ConstMatrixView<T>>
[[nodiscard]] Matrix<T> causal_attention(const Q& q, const K& k, const V& v, Options options = {}) {
    options.lookahead_window = 0;
    const Input<T> input{.causal = {.q = q, .k = k, .v = v}};
    const Shape shape = detail::own_shape("causal_attention", input, "");
    const detail::Call call{.where = "causal_attention",
                            .rows = input.causal.q.rows(),
                            .rows_of = "the rows of q",
                            .object = "a head",
                            .shape = shape};
    call.check_argument("", "q", input.causal.q, shape.d);
    call.check_argument("", "k", input.causal.k, shape.d);
    call.check_argument("", "v", input.causal.v, shape.dv);
    return parallel(shape, input, options);
}

// Instead of "no matching function", as at the views.
template <class Q, class K, class V, detail::ScalarOfColumnMajor<Q, K, V> T = typename Q::value_type,
          class Needed = detail::row_major_matrix>
void causal_attention(const Q&, const K&, const V&, const Options& = {}) = delete;

}  // namespace CASTLE_ABI
}  // namespace castle
