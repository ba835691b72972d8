// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <type_traits>

#include <castle/cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Puts one token onto each of `caches`, which may hold texts of different lengths: row `i` of `head` goes onto cache
/// `i`, and its output to row `i` of `out`, `[caches, dv]`. The work is shared over the threads of `executor`, and the
/// bits are those of `extend` on every cache alone. Allocates nothing within what has been reserved.
///
/// Throws std::invalid_argument if a cache is missing, or there twice, or a shape does not fit, and std::bad_alloc if
/// memory runs out; the tokens in the caches are as they were then. `out` must not overlap the input.
template <Scalar T>
void extend(std::type_identity_t<std::span<UqKvCache<T>* const>> caches, const HeadInput<T>& head,
            std::type_identity_t<MatrixView<T>> out, const Executor& executor = {}) {
    const Index count = Index(caches.size());
    detail::check_batch("extend", caches);
    if (count == 0) {
        const auto because = [] { return std::string("for no caches"); };
        detail::check_shape("extend", "", "out", out, 0, out.cols(), because);
        detail::check_head("extend", head, 0, {.d = head.causal.q.cols(), .dv = head.causal.v.cols()}, because);
        return;
    }
    for (const UqKvCache<T>* cache : caches) {
        const auto because = [&] {
            return detail::text("for ", count, " caches, one of which has d ", cache->shape().d, ", dv ",
                                cache->shape().dv);
        };
        detail::check_head("extend", head, count, cache->shape(), because);
        detail::check_shape("extend", "", "out", out, count, cache->shape().dv, because);
    }
    detail::extend_by_one_each<T>(
        count, [&](Index i) -> auto& { return detail::CacheAccess::state(*caches[std::size_t(i)]); },
        [](Index i) { return i; }, [&](Index) -> auto& { return head; },
        [&](Index) { return detail::OutputRows<T>{.out = out}; }, executor);
}

}  // namespace CASTLE_ABI
}  // namespace castle
