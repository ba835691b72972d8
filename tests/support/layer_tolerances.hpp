// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include <gtest/gtest.h>
#include <Eigen/Core>

#include "support/tolerances.hpp"

namespace support {

/// Rotation of `x` with `pair` at a position: the angle is off by a few roundings in double of at most `position`,
/// cosine and sine round to T, and a product and a multiply-add follow.
template <class T>
double rotation_bound(double position, T x, T pair) {
    const double size = std::abs(static_cast<double>(x)) + std::abs(static_cast<double>(pair));
    return (gamma<T>(4) + 8 * unit_roundoff<double> * (position + 1)) * size;
}

/// a b + c as the kernels do it: in one rounding where the instruction set has that.
template <class T>
T multiply_add(T a, T b, T c) {
#if defined(EIGEN_VECTORIZE_FMA) || defined(EIGEN_VECTORIZE_NEON)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

/// How much larger than that of a plain evaluation in the same precision the library's error may be.
inline constexpr double error_factor = 2;

/// Whether the error of `actual` against the exact result, root mean square and largest, is at most error_factor times
/// that of a plain evaluation, with one ulp of the largest number as the floor.
template <class T>
::testing::AssertionResult as_right_as(const Rows<long double>& exact, const Matrix<T>& actual, const Rows<T>& plain) {
    long double size = 0, rms[2] = {}, largest[2] = {};
    for (Index i = 0; i < exact.rows(); ++i) {
        for (Index j = 0; j < exact.cols(); ++j) {
            size = std::max(size, std::abs(exact(i, j)));
            const long double errors[2] = {std::abs(actual(i, j) - exact(i, j)), std::abs(plain(i, j) - exact(i, j))};
            for (std::size_t k = 0; k < 2; ++k) {
                rms[k] += errors[k] * errors[k];
                if (!(errors[k] <= largest[k])) largest[k] = errors[k];  // a NaN gets through to the end
            }
        }
    }
    const long double numbers = static_cast<long double>(exact.rows() * exact.cols());
    for (long double& r : rms) r = std::sqrt(r / numbers);
    const long double ulp = 2 * unit_roundoff<T> * size;
    if (rms[0] <= error_factor * rms[1] + ulp && largest[0] <= error_factor * largest[1] + ulp) {
        return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << "error " << rms[0] << " rms, " << largest[0]
                                         << " at most; of a plain evaluation " << rms[1] << " and " << largest[1];
}

}  // namespace support
