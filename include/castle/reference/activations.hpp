// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <castle/types.hpp>

// The activations of the textbook forms, to be mapped over Eigen expressions: stable at both ends, infinities included.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

struct Sigmoid {
    template <ComputeScalar T>
    T operator()(T x) const {
        const T e = std::exp(-std::abs(x));
        return (x < 0 ? e : T(1)) / (T(1) + e);
    }
};

struct Silu {
    template <ComputeScalar T>
    T operator()(T x) const {
        return (std::max)(x, std::numeric_limits<T>::lowest()) * Sigmoid{}(x);
    }
};

// What of s^U is subtracted in eq. 7.
struct LookaheadTerm {
    bool silu;

    template <ComputeScalar T>
    T operator()(T x) const {
        return silu ? Silu{}(x) : x;
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
