// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// sum_k a[k] b[k], k < n: a chain of fused multiply-adds for each lane of a packet, and then the sum of the lanes.
template <Scalar T>
T dot(const T* a, const T* b, Index n) {
    using S = Simd<T>;
    const Index whole = round_down(n, S::width);
    auto sum = S::zero();
    for (Index k = 0; k < whole; k += S::width) sum = S::fma(S::load(a + k), S::load(b + k), sum);
    if (whole < n) {
        T rest_a[S::width] = {};
        T rest_b[S::width] = {};
        std::copy(a + whole, a + n, rest_a);
        std::copy(b + whole, b + n, rest_b);
        sum = S::fma(S::load(rest_a), S::load(rest_b), sum);
    }
    return S::sum(sum);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
