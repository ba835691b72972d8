// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <castle/extend.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// CASTLE over a whole sequence, parallel over its tokens, not over threads (Theorems 1 and 2): writes `O` of eq. 12,
/// `[L, dv]`, to `out`.
///
/// It runs in the calling thread unless `options.executor` supplies threads. It is bitwise identical to `extend` of all
/// `L` tokens onto an empty cache: `O(L^2 d)` time, `O(L d)` memory beside the input and the output. `out` must
/// not overlap the input. Throws std::invalid_argument if shapes or options do not fit, and std::bad_alloc if memory
/// runs out.
template <Scalar T>
void parallel(const HeadInput<T>& head, std::type_identity_t<MatrixView<T>> out, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("parallel", head, options);
    const Index rows = head.causal.q.rows();
    detail::check_shape("parallel", "", "out", out, rows, shape.dv, detail::because_of(head));
    UqKvCache<T> cache(shape, options, /*rollback=*/0);
    extend(cache, head, out);
}

/// As above; returns the outputs, `[L, dv]`.
template <Scalar T>
[[nodiscard]] Matrix<T> parallel(const HeadInput<T>& head, const Options& options = {}) {
    const HeadShape shape = detail::checked_shape("parallel", head, options);
    Matrix<T> out(head.causal.q.rows(), shape.dv);
    parallel(head, out, options);
    return out;
}

}  // namespace CASTLE_ABI
}  // namespace castle
