// SPDX-License-Identifier: Apache-2.0
#include <cstddef>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradients.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

// As backward.hpp states it, against double precision.
TEST(BackwardPrecision, OfFloatIsAsStatedOverThousandsOfTokens) {
    constexpr Index d = 16;
    for (const Index length : {1000, 8192}) {
        for (const Index window : {Index(128), castle::unlimited}) {
            SCOPED_TRACE(describe(length, " tokens, window ", window));
            Random random(2790);
            Head<float> head = random_head<float>(random, {length, d, d});
            fill_normal(random, head.vu);
            Matrix<float> d_out(length, d);
            fill_normal(random, d_out);
            const castle::Gradient<float> g = run_backward(head.input(), d_out, {.lookahead_window = window});
            Head<double> exact({0, d, d});
            for (std::size_t m = 0; m < 6; ++m) *exact.all()[m] = head.all()[m]->cast<double>();
            const castle::Gradient<double> e =
                run_backward(exact.input(), Matrix<double>(d_out.cast<double>()), {.lookahead_window = window});
            const double bound = precision_bound<float>(length, window);
            for (std::size_t m = 0; m < 6; ++m) {
                const Matrix<double> error = all_of(g)[m]->cast<double>() - *all_of(e)[m];
                EXPECT_LE(error.norm(), bound * all_of(e)[m]->norm()) << input_names[m];
                EXPECT_LE(error.cwiseAbs().maxCoeff(), 4 * bound * all_of(e)[m]->cwiseAbs().maxCoeff())
                    << input_names[m];
            }
        }
    }
}

}  // namespace
