// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// sum_k a[k] b[k], k < n: a chain of fused multiply-adds for each lane of a packet, and then the sum of the lanes.
template <Scalar A, Scalar B>
Compute<A> dot(const A* a, const B* b, Index n) {
    using T = Compute<A>;
    using S = Simd<T>;
    const Index whole = round_down(n, S::width);
    auto sum = S::zero();
    for (Index k = 0; k < whole; k += S::width) sum = S::fma(S::load(a + k), S::load(b + k), sum);
    if (whole < n) {
        T rest_a[S::width] = {};
        T rest_b[S::width] = {};
        for (Index k = whole; k < n; ++k) {
            rest_a[k - whole] = widened(a[k]);
            rest_b[k - whole] = widened(b[k]);
        }
        sum = S::fma(S::load(rest_a), S::load(rest_b), sum);
    }
    return S::sum(sum);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
