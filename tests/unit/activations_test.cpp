// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <castle/reference/activations.hpp>

#include "support/generators.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The activations of the textbook forms.
namespace {

using namespace support;
using castle::detail::Sigmoid;
using castle::detail::Silu;

template <class T>
class Activations : public ::testing::Test {};
TYPED_TEST_SUITE(Activations, support::Scalars);

TYPED_TEST(Activations, AreWithinTheirRoundings) {
    using T = TypeParam;
    using Wide = long double;
    Random random(1);
    for (int i = -100000; i <= 100000; ++i) {
        const T x = static_cast<T>((i + random.uniform()) / 100);
        const Wide sigmoid = 1 / (1 + std::exp(-Wide(x)));
        ASSERT_TRUE(std::abs(Sigmoid{}(x)-sigmoid) <= gamma<T>(sigmoid_roundings) * sigmoid + denormal<T>) << x;
        // A sigmoid among the denormals is off by one of their steps, which x multiplies.
        const Wide underflow = denormal<T> * (1 + std::abs(Wide(x)));
        ASSERT_TRUE(std::abs(Silu{}(x)-x * sigmoid) <= gamma<T>(silu_roundings) * std::abs(x * sigmoid) + underflow)
            << x;
    }
}

TYPED_TEST(Activations, EndsAreExact) {
    using T = TypeParam;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    EXPECT_EQ(Sigmoid{}(T(0)), T(0.5));
    EXPECT_EQ(Sigmoid{}(infinity), T(1));
    EXPECT_EQ(Sigmoid{}(-infinity), T(0));
    EXPECT_EQ(Silu{}(T(0)), T(0));
    EXPECT_EQ(Silu{}(infinity), infinity);
    EXPECT_EQ(Silu{}(-infinity), T(0));
    EXPECT_TRUE(std::isnan(Sigmoid{}(std::numeric_limits<T>::quiet_NaN())));
    EXPECT_TRUE(std::isnan(Silu{}(std::numeric_limits<T>::quiet_NaN())));
}

}  // namespace
