// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <iterator>
#include <limits>

#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// exp for packets: with n = round(x / ln 2) and r = x - n ln 2, so that |r| <= ln(2) / 2, e^x = 2^n e^r and
// e^r = 1 + r + r^2 q(r). The coefficients of q, highest first, interpolate (e^r - 1 - r) / r^2 at the Chebyshev nodes
// of that interval; the relative error of e^r that they leave is given beside them.
//
// NaNs propagate. A bound is the second argument of larger and smaller, so that they propagate NaN too.
template <ComputeScalar T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    // Where 2^n, as it is made here, is 0: n is -127 if the exponent is shifted into place, and otherwise -151.
    static constexpr float lowest = Simd<float>::has_exponent_shift ? -88.0f : -105.0f;
    static constexpr float highest = 88.37f;       // n is 127, the last for which 2^n is finite
    static constexpr float overflow = 88.722839f;  // n is 128 and 2^n, as it is made here, infinite
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
    static constexpr double lowest = -746.0;   // n is -1076 and 2^n 0
    static constexpr double highest = 709.43;  // n is 1023
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

// e^x, or e^-x where Sign is -1, is significand * power, for x (-x) between the two ends; the significand is 1 + rest.
template <ComputeScalar T>
struct Exponential {
    using Packet = typename Simd<T>::Packet;

    Packet significand;
    Packet power;
    Packet rest;

    EIGEN_ALWAYS_INLINE Packet value() const { return Simd<T>::mul(significand, power); }
    // e^x - 1 without what a difference of the two would lose.
    EIGEN_ALWAYS_INLINE Packet minus_one() const {
        return Simd<T>::fma(rest, power, Simd<T>::sub(power, Simd<T>::set(1)));
    }
};

template <ComputeScalar T, int Sign = 1>
EIGEN_ALWAYS_INLINE Exponential<T> exponential(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    using C = ExpConstants<T>;
    constexpr T sign = Sign;

    // The opaque sums must round. A compiler that reassociates them, and not all announce it, would cancel the rounding
    // in n, or lose the low part of ln 2.
    typename S::Packet n, power;
    if constexpr (S::has_exponent_shift) {
        const auto biased = S::opaque(S::fma(x, S::set(sign * C::log2_e), S::set(C::rounder + C::exponent_bias)));
        n = S::sub(biased, S::set(C::rounder + C::exponent_bias));
        power = S::shift_into_exponent(biased);
    } else {
        n = S::sub(S::opaque(S::fma(x, S::set(sign * C::log2_e), S::set(C::rounder))), S::set(C::rounder));
        power = S::power_of_two(n);
    }
    // sign r, and so every other coefficient changes its sign with it.
    const auto r = S::fma(n, S::set(-sign * C::ln2_low), S::opaque(S::fma(n, S::set(-sign * C::ln2_high), x)));
    constexpr int terms = int(std::size(C::q));
    auto e_r = S::set(terms % 2 == 0 ? sign * C::q[0] : C::q[0]);
    unroll<terms - 1>([&](auto i) CASTLE_INLINE_LAMBDA {
        constexpr int next = constant<decltype(i)> + 1;
        constexpr int degree = terms - next + 1;
        e_r = S::fma(e_r, r, S::set(degree % 2 == 0 ? C::q[next] : sign * C::q[next]));
    });
    e_r = S::fma(e_r, r, S::set(sign));
    return {S::fma(e_r, r, S::set(1)), power, S::mul(e_r, r)};
}

// e^x for x <= 0, within 1.5 ulp where the result is normal, and a number between 0 and the smallest normal one where
// it is not; NaN for NaN. Its two factors are for sums, which take them as one multiply-add: a product that is added
// may be rounded or not, as the compiler likes.
template <ComputeScalar T>
EIGEN_ALWAYS_INLINE Exponential<T> exp_nonpositive_parts(typename Simd<T>::Packet x) {
    using S = Simd<T>;
    return exponential<T>(S::larger(x, S::set(ExpConstants<T>::lowest)));
}
template <ComputeScalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet exp_nonpositive(typename Simd<T>::Packet x) {
    return exp_nonpositive_parts<T>(x).value();
}

// sigmoid(x) = 1 / (1 + e^-x), and what it is made of. No arithmetic here raises FE_OVERFLOW, which programs may trap:
// with the exponent shifted into place 2^n becomes infinite without any, and the sigmoid 0; otherwise e^-x stays
// finite, and the sigmoid is set to 0 beyond.
template <ComputeScalar T>
class SigmoidParts {
    using S = Simd<T>;
    using C = ExpConstants<T>;
    using Packet = typename S::Packet;

  public:
    EIGEN_ALWAYS_INLINE explicit SigmoidParts(Packet x)
        : bounded_(S::larger(x, S::set(lower_bound()))),
          exponential_(exponential<T, -1>(bounded_above())),
          sigmoid_(S::div(S::set(1), S::fma(exponential_.significand, exponential_.power, S::set(1)))) {
        if constexpr (!S::has_exponent_shift) {
            sigmoid_ = S::select(S::less(x, S::set(lower_bound())), S::zero(), sigmoid_);
        }
    }

    EIGEN_ALWAYS_INLINE Packet sigmoid() const { return sigmoid_; }
    // sigmoid(-x) = e^-x sigmoid(x), or 0 where sigmoid(x) is 0.
    EIGEN_ALWAYS_INLINE Packet opposite() const {
        return S::mul(S::smaller(exponential_.value(), S::set((std::numeric_limits<T>::max)())), sigmoid_);
    }
    // x, but no less than where the sigmoid becomes 0, and no more than where e^-x does. The products of both with an
    // infinite x are thus not NaN.
    EIGEN_ALWAYS_INLINE Packet bounded_below() const { return bounded_; }
    EIGEN_ALWAYS_INLINE Packet bounded_above() const { return S::smaller(bounded_, S::set(-C::lowest)); }

  private:
    static constexpr T lower_bound() {
        if constexpr (S::has_exponent_shift) {
            return -C::overflow;
        } else {
            return -C::highest;
        }
    }

    Packet bounded_;
    Exponential<T> exponential_;
    Packet sigmoid_;
};

template <ComputeScalar T>
EIGEN_ALWAYS_INLINE typename Simd<T>::Packet sigmoid(typename Simd<T>::Packet x) {
    return SigmoidParts<T>(x).sigmoid();
}

// What a lookahead score x subtracts from a score, and its derivative.
template <ComputeScalar T>
struct NoTerm {
    using Packet = typename Simd<T>::Packet;

    EIGEN_ALWAYS_INLINE Packet subtracted_from(Packet score) const { return score; }
    EIGEN_ALWAYS_INLINE Packet derivative() const { return Simd<T>::zero(); }
};

template <ComputeScalar T>
struct PlainTerm {
    using Packet = typename Simd<T>::Packet;

    EIGEN_ALWAYS_INLINE Packet subtracted_from(Packet score) const { return Simd<T>::sub(score, x); }
    EIGEN_ALWAYS_INLINE Packet derivative() const { return Simd<T>::set(1); }

    Packet x;
};

// SiLU(x) = x sigmoid(x) and SiLU'(x) = sigmoid(x) (1 + x sigmoid(-x)).
template <ComputeScalar T>
class SiluTerm {
    using S = Simd<T>;
    using Packet = typename S::Packet;

  public:
    EIGEN_ALWAYS_INLINE explicit SiluTerm(Packet x) : parts_(x) {}

    EIGEN_ALWAYS_INLINE Packet subtracted_from(Packet score) const {
        return S::fma(S::negate(parts_.bounded_below()), parts_.sigmoid(), score);
    }
    EIGEN_ALWAYS_INLINE Packet derivative() const {
        return S::mul(parts_.sigmoid(), S::fma(parts_.bounded_above(), parts_.opposite(), S::set(1)));
    }

  private:
    SigmoidParts<T> parts_;
};

// cap tanh(x / cap) and its derivative. With e = e^(2 x / cap), tanh is (e - 1) / (e + 1), where e - 1 is known without
// cancellation, and its derivative e (2 / (e + 1))^2.
template <ComputeScalar T>
class SoftCap {
    using S = Simd<T>;
    using C = ExpConstants<T>;
    using Packet = typename S::Packet;

  public:
    EIGEN_ALWAYS_INLINE SoftCap(Packet x, T cap)
        : exponential_(exponential<T>(
              S::smaller(S::larger(S::mul(x, S::set(T(2) / cap)), S::set(C::lowest)), S::set(C::highest)))),
          minus_one_(exponential_.minus_one()),
          cap_(cap) {}

    EIGEN_ALWAYS_INLINE Packet value() const {
        // Whoever goes on with a sum does not get a product.
        return S::opaque(S::mul(S::set(cap_), S::div(minus_one_, S::add(minus_one_, S::set(2)))));
    }
    EIGEN_ALWAYS_INLINE Packet derivative() const {
        const Packet part = S::div(S::set(2), S::add(minus_one_, S::set(2)));
        return S::mul(S::mul(exponential_.value(), part), part);
    }

  private:
    Exponential<T> exponential_;
    Packet minus_one_;
    T cap_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
