// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <iterator>
#include <limits>

#include <castle/detail/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// exp for packets: with n = round(x / ln 2) and r = x - n ln 2, so that |r| <= ln(2) / 2, e^x = 2^n e^r and
// e^r = 1 + r + r^2 q(r). The coefficients of q, highest first, interpolate (e^r - 1 - r) / r^2 at the Chebyshev nodes
// of that interval; the relative error of e^r that they leave is given beside them.
template <Scalar T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    static constexpr float lowest = -87.336540f;  // ln of the smallest normal number; below, the result is 0
    static constexpr float highest = 88.722839f;  // ln of the largest number
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
    static constexpr double lowest = -708.39641853226408;
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

// e^x, within 1.5 ulp where the result is normal; 0 where it would be subnormal or smaller, infinity
// from 88.4 (float) on, NaN for NaN.
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet exp(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    using C = ExpConstants<T>;
    // Only n is clamped: a NaN, which the clamp may swallow, stays in r.
    const auto clamped = S::min(S::max(x, S::set(C::lowest)), S::set(C::highest));

    typename S::Packet n, power;
    if constexpr (S::has_exponent_shift) {
        const auto biased = S::fma(clamped, S::set(C::log2_e), S::set(C::rounder + C::exponent_bias));
        n = S::sub(biased, S::set(C::rounder + C::exponent_bias));
        power = S::shift_into_exponent(biased);
    } else {
        n = S::sub(S::fma(clamped, S::set(C::log2_e), S::set(C::rounder)), S::set(C::rounder));
    }
    const auto r = S::fma(n, S::set(-C::ln2_low), S::fma(n, S::set(-C::ln2_high), x));

    auto q = S::set(C::q[0]);
    for (std::size_t i = 1; i < std::size(C::q); ++i) q = S::fma(q, r, S::set(C::q[i]));
    const auto e_r = S::add(S::set(1), S::fma(S::mul(r, r), q, r));

    typename S::Packet result;
    if constexpr (S::has_exponent_shift) {
        result = S::mul(e_r, power);
    } else {
        result = S::scale_by_power_of_two(e_r, n);
    }
    return S::select(S::less(x, S::set(C::lowest)), S::zero(), result);
}

// 1 / (1 + e^-x): exp overflows to infinity on purpose where the result is 0.
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet sigmoid(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    return S::div(S::set(1), S::add(S::set(1), exp<T>(S::negate(x))));
}

// x sigmoid(x); an infinitely negative x gives -0 as it should, and not the NaN of infinity / infinity.
template <Scalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet silu(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    return S::div(S::max(x, S::set(std::numeric_limits<T>::lowest())), S::add(S::set(1), exp<T>(S::negate(x))));
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
