// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <iterator>

#include <castle/detail/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// exp for packets: with n = round(x / ln 2) and r = x - n ln 2, so that |r| <= ln(2) / 2, e^x = 2^n e^r and
// e^r = 1 + r + r^2 q(r). The coefficients of q, highest first, interpolate (e^r - 1 - r) / r^2 at the Chebyshev nodes
// of that interval; the relative error of e^r that they leave is given beside them.
//
// Sums and products bring NaN through; where a bound is put on x, it stands second, so that max and min do too.
template <Scalar T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    static constexpr float lowest = -88.0f;       // n is -127 and 2^n, as it is made here, 0
    static constexpr float highest = 88.722839f;  // ln of the largest number; n is 128 and 2^n infinite
    static constexpr float log2_e = 1.44269504088896341f;
    static constexpr float ln2_high = 0.693145751953125f;  // 15 significant bits: n * ln2_high is exact
    static constexpr float ln2_low = 1.42860682030941723e-6f;
    static constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: numbers of this size have no fraction bits
    static constexpr float exponent_bias = 127.0f;
    // 1.1e-8
    static constexpr float q[] = {0.00139261943f, 0.00836318767f, 0.04166655455f, 0.16666576937f, 0.5f};
};

template <>
struct ExpConstants<double> {
    static constexpr double lowest = -746.0;  // n is -1076 and 2^n 0
    static constexpr double highest = 709.78271289338397;
    static constexpr double log2_e = 1.44269504088896341;
    static constexpr double ln2_high = 0.693147180369123816490;  // 32 significant bits
    static constexpr double ln2_low = 1.90821492927058770002e-10;
    static constexpr double rounder = 6755399441055744.0;  // 1.5 * 2^52
    // 1.7e-17
    static constexpr double q[] = {
        2.51003994254519854e-8,  2.76201065595141668e-7, 2.75572684307070998e-6, 0.000024801521257866648,
        0.000198412698630724699, 0.00138888889172382326, 0.00833333333333005806, 0.0416666666666240788,
        0.166666666666666675,    0.500000000000000102,
    };
};

// e^x, or e^-x where Sign is -1, is significand * power, for x (-x) between the two ends.
template <Scalar T>
struct Exponential {
    typename Simd<T>::Packet significand;
    typename Simd<T>::Packet power;
};

template <Scalar T, int Sign = 1>
EIGEN_ALWAYS_INLINE Exponential<T> exponential(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    using C = ExpConstants<T>;
    constexpr T sign = Sign;

    typename S::Packet n, power;
    if constexpr (S::has_exponent_shift) {
        const auto biased = S::fma(x, S::set(sign * C::log2_e), S::set(C::rounder + C::exponent_bias));
        n = S::sub(biased, S::set(C::rounder + C::exponent_bias));
        power = S::shift_into_exponent(biased);
    } else {
        n = S::sub(S::fma(x, S::set(sign * C::log2_e), S::set(C::rounder)), S::set(C::rounder));
        power = S::power_of_two(n);
    }
    // sign r, and so every other coefficient changes its sign with it.
    const auto r = S::fma(n, S::set(-sign * C::ln2_low), S::fma(n, S::set(-sign * C::ln2_high), x));
    constexpr int terms = int(std::size(C::q));
    auto e_r = S::set(terms % 2 == 0 ? sign * C::q[0] : C::q[0]);
    unroll<terms - 1>([&](auto i) CASTLE_INLINE_LAMBDA {
        constexpr int next = constant<decltype(i)> + 1;
        constexpr int degree = terms - next + 1;
        e_r = S::fma(e_r, r, S::set(degree % 2 == 0 ? C::q[next] : sign * C::q[next]));
    });
    e_r = S::fma(e_r, r, S::set(sign));
    e_r = S::fma(e_r, r, S::set(1));
    return {e_r, power};
}

// e^x for x <= 0, within 1.5 ulp where the result is normal, and a number between 0 and the smallest normal one where
// it is not; NaN for NaN.
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet exp_nonpositive(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    const auto e = exponential<T>(S::larger(x, S::set(ExpConstants<T>::lowest)));
    return S::mul(e.significand, e.power);
}

// numerator / (1 + e^-x) for x >= -highest, where the exponential overflows to infinity on purpose.
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet times_sigmoid(typename Simd<T>::Packet numerator,
                                                           typename Simd<T>::Packet x) {
    using S = Simd<T>;
    const auto e = exponential<T, -1>(S::smaller(x, S::set(-ExpConstants<T>::lowest)));
    return S::div(numerator, S::fma(e.significand, e.power, S::set(1)));
}

// 1 / (1 + e^-x)
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet sigmoid(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    return times_sigmoid<T>(S::set(1), S::larger(x, S::set(-ExpConstants<T>::highest)));
}

// x sigmoid(x); an infinitely negative x gives -0 as it should, and not the NaN of infinity / infinity.
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet silu(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    const auto bounded = S::larger(x, S::set(-ExpConstants<T>::highest));
    return times_sigmoid<T>(bounded, bounded);
}

template <Scalar T>
struct WithDerivative {
    typename Simd<T>::Packet value;
    typename Simd<T>::Packet derivative;
};

// SiLU(x) = x sigmoid(x) and SiLU'(x) = sigmoid(x) (1 + x sigmoid(-x)), where sigmoid(-x) = e^-x sigmoid(x).
template <Scalar T>
EIGEN_ALWAYS_INLINE WithDerivative<T> silu_and_derivative(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    // At the lower bound the exponential is still finite, and both results are as good as 0; at the upper it is 0.
    constexpr T bound = -ExpConstants<T>::lowest - 1;
    const auto from_below = S::larger(x, S::set(-bound));
    const auto bounded = S::smaller(from_below, S::set(bound));
    const auto e = exponential<T, -1>(bounded);
    const auto power = S::mul(e.significand, e.power);
    const auto sigmoid = S::div(S::set(1), S::add(power, S::set(1)));
    const auto other = S::mul(power, sigmoid);
    return {S::mul(from_below, sigmoid), S::mul(sigmoid, S::fma(bounded, other, S::set(1)))};
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
