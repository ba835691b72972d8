// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/detail/simd/packet_math.hpp>

#include "support/generators.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The activations of the kernels against long double, over the whole range.
namespace {

using castle::Index;
using namespace support;
namespace detail = castle::detail;

using Wide = long double;

template <class T>
using Unsigned = std::conditional_t<std::same_as<T, float>, std::uint32_t, std::uint64_t>;

template <class T>
class PacketMath : public ::testing::Test {
  protected:
    using S = detail::Simd<T>;
    using Limits = std::numeric_limits<T>;

    // f of packets, on any number of numbers.
    template <class F>
    static std::vector<T> map(std::vector<T> x, const F& f) {
        const std::size_t size = x.size();
        x.resize((size + S::width - 1) / S::width * S::width, T(0));
        for (std::size_t i = 0; i < x.size(); i += S::width) S::store(x.data() + i, f(S::load(x.data() + i)));
        x.resize(size);
        return x;
    }
    static std::vector<T> exp_nonpositive(const std::vector<T>& x) {
        return map(x, [](auto p) { return detail::exp_nonpositive<T>(p); });
    }
    static std::vector<T> sigmoid(const std::vector<T>& x) {
        return map(x, [](auto p) { return detail::sigmoid<T>(p); });
    }
    // What is subtracted from a score of 0.
    static std::vector<T> silu(const std::vector<T>& x) {
        return map(x, [](auto p) { return S::negate(detail::SiluTerm<T>(p).subtracted_from(S::zero())); });
    }
    static std::vector<T> silu_derivative(const std::vector<T>& x) {
        return map(x, [](auto p) { return detail::SiluTerm<T>(p).derivative(); });
    }
    static T exp_nonpositive1(T x) { return exp_nonpositive({x}).front(); }
    static T sigmoid1(T x) { return sigmoid({x}).front(); }
    static T silu1(T x) { return silu({x}).front(); }
    static T silu_derivative1(T x) { return silu_derivative({x}).front(); }

    // The distance of the numbers of T around x.
    static Wide ulp(Wide x) {
        const Wide size = std::max<Wide>(std::abs(x), Limits::min());
        return std::ldexp(Wide(Limits::epsilon()), std::ilogb(size));
    }

    // Finite numbers of every size and both signs, evenly by their bits; and evenly through [-2000, 2000], where the
    // functions change.
    static std::vector<T> sweep() {
        std::vector<T> x;
        const auto largest = std::bit_cast<Unsigned<T>>(Limits::max());
        const Unsigned<T> step = largest / 100003;
        for (Unsigned<T> bits = 0; bits < largest; bits += std::min<Unsigned<T>>(step, largest - bits)) {
            x.push_back(std::bit_cast<T>(bits));
            x.push_back(-std::bit_cast<T>(bits));
        }
        Random random(1);
        for (int i = -400000; i <= 400000; ++i) x.push_back(static_cast<T>((i + random.uniform()) / 200));
        for (const T end : {lowest(), overflow()}) {
            T below = end, above = end;
            for (int i = 0; i < 1000; ++i) {
                x.push_back(below = std::nextafter(below, -Limits::infinity()));
                x.push_back(above = std::nextafter(above, Limits::infinity()));
            }
        }
        return x;
    }

    // Where exp leaves the normal numbers.
    static T lowest() { return static_cast<T>(std::log(Wide(Limits::min()))); }
    static T overflow() { return static_cast<T>(std::log(Wide(Limits::max()))); }
};

TYPED_TEST_SUITE(PacketMath, support::Scalars);

TYPED_TEST(PacketMath, ExpIsWithinOneAndAHalfUlpDownToTheNormalNumbers) {
    using T = TypeParam;
    std::vector<T> x = this->sweep();
    std::erase_if(x, [](T number) { return number > 0; });
    const std::vector<T> y = this->exp_nonpositive(x);
    Wide worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        const Wide exact = std::exp(Wide(x[i]));
        if (exact < smallest_normal<T>) {
            ASSERT_TRUE(y[i] >= 0 && y[i] <= smallest_normal<T>) << "of " << x[i] << " is " << y[i];
        } else {
            const Wide error = std::abs(y[i] - exact) / this->ulp(exact);
            ASSERT_TRUE(error <= exp_ulps) << "of " << x[i] << " is " << y[i] << ", off by " << error << " ulp";
            worst = std::max(worst, error);
        }
    }
    this->RecordProperty("ulp", std::to_string(static_cast<double>(worst)));
}

TYPED_TEST(PacketMath, SigmoidIsWithinItsRoundings) {
    using T = TypeParam;
    const std::vector<T> x = this->sweep();
    const std::vector<T> y = this->sigmoid(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const Wide exact = 1 / (1 + std::exp(-Wide(x[i])));
        // Where exp overflows the result is 0, and is smaller than the smallest normal number.
        const Wide bound = gamma<T>(sigmoid_roundings) * exact + (exact < smallest_normal<T> ? smallest_normal<T> : 0);
        ASSERT_TRUE(std::abs(y[i] - exact) <= bound) << "of " << x[i] << " is " << y[i];
        ASSERT_TRUE(y[i] >= 0 && y[i] <= 1) << "of " << x[i] << " is " << y[i];
    }
}

TYPED_TEST(PacketMath, SiluIsWithinItsRoundings) {
    using T = TypeParam;
    const std::vector<T> x = this->sweep();
    const std::vector<T> y = this->silu(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const Wide exact = x[i] / (1 + std::exp(-Wide(x[i])));
        const Wide underflow = x[i] <= -this->overflow() + 1 ? activation_underflow<T> : denormal<T>;
        const Wide bound = gamma<T>(sigmoid_roundings) * std::abs(exact) + underflow;
        ASSERT_TRUE(std::abs(y[i] - exact) <= bound) << "of " << x[i] << " is " << y[i];
    }
}

TYPED_TEST(PacketMath, TheDerivativeOfSiluIsWithinItsRoundings) {
    using T = TypeParam;
    const std::vector<T> x = this->sweep();
    const std::vector<T> y = this->silu_derivative(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const Wide number = x[i];
        const Wide sigmoid = 1 / (1 + std::exp(-number)), opposite = 1 / (1 + std::exp(number));
        const Wide exact = sigmoid * (1 + number * opposite);
        // The sum cancels near -1.28, so it is off by roundings of its terms.
        const Wide size = sigmoid * (1 + std::abs(number) * opposite);
        const Wide underflow = number <= -this->overflow() + 1 ? activation_underflow<T> : denormal<T>;
        ASSERT_TRUE(std::abs(y[i] - exact) <= gamma<T>(silu_derivative_roundings) * size + underflow)
            << "of " << x[i] << " is " << y[i] << " but must be " << exact;
    }
}

// A score less SiLU is rounded once, so however large it is, the term costs no more.
TYPED_TEST(PacketMath, ASubtractedTermIsWithinItsRoundings) {
    using T = TypeParam;
    using Packets = detail::Simd<T>;
    for (const T score : {T(0), T(1), T(-30), T(1e6)}) {
        const std::vector<T> x = this->sweep();
        const std::vector<T> y =
            this->map(x, [&](auto p) { return detail::SiluTerm<T>(p).subtracted_from(Packets::set(score)); });
        const std::vector<T> plain =
            this->map(x, [&](auto p) { return detail::PlainTerm<T>{p}.subtracted_from(Packets::set(score)); });
        for (std::size_t i = 0; i < x.size(); ++i) {
            const Wide silu = x[i] / (1 + std::exp(-Wide(x[i])));
            const Wide underflow = x[i] <= -this->overflow() + 1 ? activation_underflow<T> : denormal<T>;
            const Wide bound = gamma<T>(sigmoid_roundings) * std::abs(silu) +
                               unit_roundoff<T> * std::abs(score - silu) * Wide(1.001) + underflow;
            ASSERT_TRUE(std::abs(y[i] - (score - silu)) <= bound) << "of " << x[i] << " is " << y[i];
            ASSERT_TRUE(same_bits(plain[i], T(score - x[i])));
        }
    }
}

// Programs may trap overflow; none of it is meant to happen.
TYPED_TEST(PacketMath, NothingOverflows) {
    using T = TypeParam;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    std::vector<T> x = this->sweep();
    std::erase_if(x, [](T number) { return std::abs(number) > T(1e30); });
    x.push_back(infinity);
    x.push_back(-infinity);
    std::vector<T> nonpositive = x;
    for (T& number : nonpositive) number = -std::abs(number);
    std::feclearexcept(FE_ALL_EXCEPT);
    this->exp_nonpositive(nonpositive);
    this->sigmoid(x);
    this->silu(x);
    this->silu_derivative(x);
    EXPECT_FALSE(std::fetestexcept(FE_OVERFLOW | FE_DIVBYZERO | FE_INVALID));
}

TYPED_TEST(PacketMath, EndsAreExact) {
    using T = TypeParam;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    EXPECT_EQ(this->exp_nonpositive1(T(0)), T(1));
    EXPECT_EQ(this->exp_nonpositive1(-T(0)), T(1));
    EXPECT_TRUE(same_bits(this->exp_nonpositive1(-infinity), T(0)));
    EXPECT_TRUE(same_bits(this->exp_nonpositive1(std::numeric_limits<T>::lowest()), T(0)));

    EXPECT_EQ(this->sigmoid1(T(0)), T(0.5));
    EXPECT_EQ(this->sigmoid1(infinity), T(1));
    EXPECT_EQ(this->sigmoid1(-infinity), T(0));

    EXPECT_EQ(this->silu1(T(0)), T(0));
    EXPECT_EQ(this->silu1(infinity), infinity);
    EXPECT_EQ(this->silu1(-infinity), T(0));
    EXPECT_EQ(this->silu1(std::numeric_limits<T>::max()), std::numeric_limits<T>::max());

    EXPECT_EQ(this->silu_derivative1(T(0)), T(0.5));
    EXPECT_EQ(this->silu_derivative1(infinity), T(1));
    EXPECT_EQ(this->silu_derivative1(-infinity), T(0));
    EXPECT_EQ(this->silu_derivative1(std::numeric_limits<T>::max()), T(1));
    EXPECT_EQ(this->silu_derivative1(std::numeric_limits<T>::lowest()), T(0));
}

TYPED_TEST(PacketMath, ExpIsZeroWhereNoSubnormalNumberIsNear) {
    using T = TypeParam;
    const T below = static_cast<T>(std::log(Wide(std::numeric_limits<T>::denorm_min()))) - 1;
    for (T x = below; x > 2 * below; x -= T(0.37)) {
        ASSERT_TRUE(same_bits(this->exp_nonpositive1(x), T(0))) << "of " << x;
    }
}

TYPED_TEST(PacketMath, NanStaysNan) {
    using T = TypeParam;
    for (const T nan : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN(), sentinel<T>()}) {
        EXPECT_TRUE(std::isnan(this->exp_nonpositive1(nan)));
        EXPECT_TRUE(std::isnan(this->sigmoid1(nan)));
        EXPECT_TRUE(std::isnan(this->silu1(nan)));
        EXPECT_TRUE(std::isnan(this->silu_derivative1(nan)));
    }
}

TYPED_TEST(PacketMath, LanesDoNotDependOnEachOther) {
    using T = TypeParam;
    constexpr int width = detail::Simd<T>::width;
    Random random(2);
    const std::vector<T> rest = {T(0), T(-1000), T(1000), std::numeric_limits<T>::quiet_NaN(), T(0.5)};
    for (int i = 0; i < 1000; ++i) {
        const T x = static_cast<T>(40 * random.normal());
        std::vector<T> lanes(width);
        for (T& lane : lanes) lane = random.pick(rest);
        const auto place = static_cast<std::size_t>(random.integer(0, width - 1));
        lanes[place] = x;
        if (x <= 0) {
            ASSERT_TRUE(same_bits(this->exp_nonpositive(lanes)[place], this->exp_nonpositive1(x))) << "of " << x;
        }
        ASSERT_TRUE(same_bits(this->sigmoid(lanes)[place], this->sigmoid1(x))) << "of " << x;
        ASSERT_TRUE(same_bits(this->silu(lanes)[place], this->silu1(x))) << "of " << x;
        ASSERT_TRUE(same_bits(this->silu_derivative(lanes)[place], this->silu_derivative1(x))) << "of " << x;
    }
}

}  // namespace
