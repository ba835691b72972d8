// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <type_traits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/abi.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Sizes and positions. Signed, as in Eigen, so that differences of positions are safe.
using Index = base::Index;

/// The scalars that the library computes in.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double>;

namespace detail {
using namespace castle::base;
static_assert(sizeof(Eigen::Index) != sizeof(Index) || std::is_same_v<Eigen::Index, Index>);
}  // namespace detail

}  // namespace CASTLE_ABI
}  // namespace castle
