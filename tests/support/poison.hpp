// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include <gtest/gtest.h>

#include "support/generators.hpp"
#include "support/tolerances.hpp"

namespace support {

/// A result with a bad element in the input against the one without: where reaches(i, j) says so it is NaN, if the bad
/// element was, and everywhere else nothing has changed.
template <class T, class Reaches>
void expect_poison(const Matrix<T>& clean, const Matrix<T>& poisoned, bool is_nan, const Reaches& reaches) {
    for (Index i = 0; i < clean.rows(); ++i) {
        for (Index j = 0; j < clean.cols(); ++j) {
            if (!reaches(i, j)) {
                ASSERT_TRUE(same_bits(clean(i, j), poisoned(i, j)))
                    << "(" << i << ", " << j << ") does not depend on the poison but went from " << clean(i, j)
                    << " to " << poisoned(i, j);
            } else if (is_nan) {
                ASSERT_TRUE(std::isnan(poisoned(i, j)))
                    << "(" << i << ", " << j << ") hides the poison: it is " << poisoned(i, j);
            }
        }
    }
}

}  // namespace support
