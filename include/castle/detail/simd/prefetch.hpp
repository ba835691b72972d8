// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/scalar.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Asks for elements [first, first + count) ahead of their use, where the processor sees no pattern of its own: in short
// pieces of rows that lie far apart.
template <Scalar T>
EIGEN_ALWAYS_INLINE void prefetch(const T* first, Index count) {
    for (Index i = 0; i < count; i += cache_line / Index(sizeof(T))) Eigen::internal::prefetch(first + i);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
