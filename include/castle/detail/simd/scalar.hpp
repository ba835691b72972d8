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

/// 16-bit scalars for inputs, outputs, caches and weights: half the bytes. They are storage types; everything is
/// computed in `float`.
using bfloat16 = Eigen::bfloat16;
using half = Eigen::half;

/// The scalars that the library computes in.
template <class T>
concept ComputeScalar = std::same_as<T, float> || std::same_as<T, double>;

/// The scalars that it reads and writes.
template <class T>
concept Scalar = ComputeScalar<T> || std::same_as<T, bfloat16> || std::same_as<T, half>;

/// The scalar that elements of T are computed in: `float` for 16-bit scalars, otherwise T.
template <Scalar T>
using Compute = std::conditional_t<std::same_as<T, double>, double, float>;

namespace detail {
using namespace castle::base;
static_assert(sizeof(Eigen::Index) != sizeof(Index) || std::is_same_v<Eigen::Index, Index>);
}  // namespace detail

}  // namespace CASTLE_ABI
}  // namespace castle
