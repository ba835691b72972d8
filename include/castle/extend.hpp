// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <castle/cache.hpp>
#include <castle/detail/checks.hpp>
#include <castle/detail/extension.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Puts the `m >= 0` tokens of `head` onto the cache and writes their outputs `o_t` (eqs. 5 to 8 and 13) to `out`,
/// `[m, dv]`. Row `i` sees the tokens of the cache and the rows up to `i`. One token is a step of decoding, all tokens
/// on an empty cache are the parallel form, anything between is chunked prefill: the bits of the outputs and of
/// `cache.lookahead_keys()` are the same however the tokens are cut into calls.
///
/// `O(m (size + m) (4 d + dv))` time. Allocates nothing for a single token within the cache's capacity. `out` must
/// not overlap the input. Throws std::invalid_argument if a shape does not fit and std::bad_alloc if memory runs out;
/// the cache is as it was then.
template <Scalar T>
void extend(UqKvCache<T>& cache, const std::type_identity_t<HeadInput<T>>& head,
            std::type_identity_t<MatrixView<T>> out) {
    const HeadShape shape = cache.shape();
    const Index rows = head.causal.q.rows();
    const auto because = [&] {
        return detail::text("for ", rows, " tokens (the rows of head.causal.q ", detail::as_shape(head.causal.q),
                            ") and a cache of d ", shape.d, ", dv ", shape.dv);
    };
    detail::check_head("extend", head, rows, shape, because);
    detail::check_shape("extend", "", "out", out, rows, shape.dv, because);

    detail::extend_head(detail::CacheAccess::state(cache), head, out, detail::CacheAccess::executor(cache));
}

/// As above, but allocates the outputs, `[m, dv]`, and returns them.
template <Scalar T>
Matrix<T> extend(UqKvCache<T>& cache, const std::type_identity_t<HeadInput<T>>& head) {
    Matrix<T> out(head.causal.q.rows(), cache.shape().dv);
    extend(cache, head, out);
    return out;
}

}  // namespace CASTLE_ABI
}  // namespace castle
