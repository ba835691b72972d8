// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <castle/cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

template <Scalar T>
auto because_of(const UqKvCache<T>& cache, const HeadInput<T>& head) {
    return [&] {
        return text("for ", head.causal.q.rows(), " tokens (the rows of head.causal.q) and a cache of d ",
                    cache.shape().d, ", dv ", cache.shape().dv);
    };
}

template <Scalar T>
void check_extend(const UqKvCache<T>& cache, const HeadInput<T>& head) {
    check_head("extend", head, head.causal.q.rows(), cache.shape(), because_of(cache, head));
}

}  // namespace detail

/// Puts the `m >= 0` tokens of `head` onto the cache and writes their outputs `o_t` (eqs. 5 to 8 and 13) to `out`,
/// `[m, dv]`. Row `i` sees the tokens of the cache and the rows up to `i`. One token is a step of decoding, all tokens
/// on an empty cache are the parallel form, anything between is chunked prefill: the bits of the outputs and of
/// `cache.lookahead_keys()` are the same however the tokens are cut into calls.
///
/// `O(m (size + m) (4 d + dv))` time. Allocates nothing for a single token within the cache's capacity, unless it
/// has to copy what the cache shares with a fork. Logits of any finite size give finite outputs as long as the products
/// `scale q^C . v^U` of tokens within a block, and the sum of the values' sizes over the tokens, are finite as well.
/// `out` must not overlap the input, which is not checked. Throws std::invalid_argument if a shape does not fit and
/// std::bad_alloc if memory runs out; the tokens in the cache are as they were then.
template <Scalar T>
void extend(UqKvCache<T>& cache, const std::type_identity_t<HeadInput<T>>& head,
            std::type_identity_t<MatrixView<T>> out) {
    detail::check_extend(cache, head);
    detail::check_shape("extend", "", "out", out, head.causal.q.rows(), cache.shape().dv,
                        detail::because_of(cache, head));
    detail::extend_head(detail::CacheAccess::state(cache), head, out, detail::CacheAccess::executor(cache));
}

/// As above, but allocates the outputs, `[m, dv]`, and returns them.
template <Scalar T>
Matrix<T> extend(UqKvCache<T>& cache, const std::type_identity_t<HeadInput<T>>& head) {
    detail::check_extend(cache, head);
    Matrix<T> out(head.causal.q.rows(), cache.shape().dv);
    extend(cache, head, out);
    return out;
}

}  // namespace CASTLE_ABI
}  // namespace castle
