// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>

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

/// NaN in whatever a product a b, of n terms each, does not count, as counts(i, k, j) says: an element of b that counts
/// in no row, and one of a that counts in no column.
template <class A, class B, class Counts>
void poison_uncounted(const Counts& counts, Index n, Matrix<A>& a, Matrix<B>& b) {
    for (Index k = 0; k < n; ++k) {
        for (Index j = 0; j < b.cols(); ++j) {
            bool any = false;
            for (Index i = 0; i < a.rows(); ++i) any = any || counts(i, k, j);
            if (!any) b(k, j) = std::numeric_limits<B>::quiet_NaN();
        }
        for (Index i = 0; i < a.rows(); ++i) {
            bool any = false;
            for (Index j = 0; j < b.cols(); ++j) any = any || counts(i, k, j);
            if (!any) a(i, k) = std::numeric_limits<A>::quiet_NaN();
        }
    }
}

}  // namespace support
