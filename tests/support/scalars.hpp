// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <type_traits>

#include <gtest/gtest.h>

#include <castle/types.hpp>

namespace support {

/// The scalars that typed tests run for. Code for sanitizers takes long to compile, and what they look for is written
/// once for both scalars; there it is the one with the longer packets. Some tests are there once more for 16-bit
/// scalars.
#if defined(CASTLE_TEST_SIXTEEN_BITS) && defined(CASTLE_TEST_FLOAT_ONLY)
using Scalars = ::testing::Types<castle::bfloat16>;
#elif defined(CASTLE_TEST_SIXTEEN_BITS)
using Scalars = ::testing::Types<castle::bfloat16, castle::half>;
#elif defined(CASTLE_TEST_FLOAT_ONLY)
using Scalars = ::testing::Types<float>;
#else
using Scalars = ::testing::Types<float, double>;
#endif

/// What says exactly what is right for T.
template <class T>
using Exact = std::conditional_t<std::same_as<T, float>, double, long double>;

}  // namespace support
