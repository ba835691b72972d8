// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/input.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"

namespace support {

/// That a gradient's element is the central difference of loss() in `element`, which it reads.
template <class Loss>
void expect_slope(double& element, double slope, const Loss& loss, const std::string& name) {
    constexpr double h = 1e-5;
    const double before = element;
    element = before + h;
    const double above = loss();
    element = before - h;
    const double below = loss();
    element = before;
    ASSERT_NEAR(slope, (above - below) / (2 * h), 1e-7) << name;
}

/// The same of every element of the causal inputs and, if there is any, of what is lookahead.
template <class Loss>
void expect_slopes(Head<double>& x, const castle::Gradient<double>& g, bool has_lookahead, const Loss& loss) {
    const std::vector<const castle::Matrix<double>*> gradients = {&g.causal.q,    &g.causal.k,    &g.causal.v,
                                                                  &g.lookahead.q, &g.lookahead.k, &g.lookahead.v};
    for (std::size_t m = 0; m < (has_lookahead ? 6U : 3U); ++m) {
        castle::Matrix<double>& input = *x.all()[m];
        ASSERT_EQ(gradients[m]->rows(), input.rows());
        for (castle::Index i = 0; i < input.size(); ++i) {
            expect_slope(input.data()[i], gradients[m]->data()[i], loss, describe(input_names[m], ", element ", i));
            if (::testing::Test::HasFatalFailure()) return;
        }
    }
}

}  // namespace support
