// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/differences.hpp"
#include "support/generators.hpp"
#include "support/gradient_oracle.hpp"
#include "support/gradients.hpp"

// Central differences: of the definition, which is what the other tests trust, and of the library by itself.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

const std::vector<Sizes> small_sizes = {{1, 2, 3}, {2, 1, 1}, {7, 3, 2}, {9, 4, 5}, {12, 5, 4}};
const std::vector<Index> windows = {0, 1, 3, castle::unlimited};

constexpr double step = difference_step;
constexpr double tolerance = 1e-8;

TEST(GradientOracle, MatchesCentralDifferencesOfTheDefinitionInEveryElement) {
    std::uint64_t seed = 2000;
    for (const Sizes sizes : small_sizes) {
        for (const Index window : windows) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
            Head<double> head = random_head<double>(random, sizes);
            Matrix<double> d_out(sizes.length, sizes.dv);
            fill_normal(random, d_out);
            // One window each for scores that lack a part.
            const oracle::Settings settings =
                oracle_settings(sizes.d, {.lookahead_window = window, .silu = window != 1, .causal_keys = window != 3});
            const oracle::Gradient<double> g =
                oracle::backward(oracle_head(head), oracle_rows<double>(d_out), settings);
            const auto loss = [&] {
                const oracle::Rows<double> out = oracle::evaluate(oracle_head(head), settings).output;
                double sum = 0;
                for (Index i = 0; i < out.rows(); ++i) {
                    for (Index j = 0; j < out.cols(); ++j) sum += out(i, j) * d_out(i, j);
                }
                return sum;
            };
            for (std::size_t m = 0; m < 6; ++m) {
                Matrix<double>& x = *head.all()[m];
                for (Index i = 0; i < x.size(); ++i) {
                    const double before = x.data()[i];
                    x.data()[i] = before + step;
                    const double above = loss();
                    x.data()[i] = before - step;
                    const double below = loss();
                    x.data()[i] = before;
                    ASSERT_NEAR((above - below) / (2 * step), (*all_of(g)[m])(i / x.cols(), i % x.cols()), tolerance)
                        << input_names[m] << ", element " << i;
                }
            }
        }
    }
}

// In random directions, so that sequences of several spans are within reach.
void expect_central_differences(std::uint64_t seed, Index length, const castle::Shape& shape, Index window) {
    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", ", words_of(shape), ", window ", window));
    Random random(seed);
    const Head<double> head = random_heads<double>(random, length, shape, 0.1);
    Matrix<double> d_out(length, shape.heads * shape.dv);
    fill_normal(random, d_out);
    const castle::Options options{.lookahead_window = window};
    const castle::Gradient<double> g = run_backward(shape, head.input(), d_out, options);
    for (std::size_t m = 0; m < 6; ++m) {
        Head<double> moved = head;
        const Slopes slopes = slopes_along(
            random, *all_of(g)[m],
            [&] { return castle::parallel(shape, moved.input(), options).cwiseProduct(d_out).sum(); },
            [&](const Matrix<double>& by) { *moved.all()[m] += by; });
        EXPECT_NEAR(slopes.by_differences, slopes.by_gradient, 1e-7) << input_names[m];
    }
}

TEST(Backward, MatchesCentralDifferencesOfParallel) {
    std::uint64_t seed = 2100;
    for (const Sizes sizes : {Sizes{33, 4, 3}, Sizes{129, 8, 8}, Sizes{700, 5, 6}}) {
        for (const Index window : {Index(0), Index(1), Index(70), castle::unlimited}) {
            expect_central_differences(++seed, sizes.length, {.d = sizes.d, .dv = sizes.dv}, window);
        }
    }
}

TEST(Backward, MatchesCentralDifferencesOfParallelWithGroupedQueries) {
    std::uint64_t seed = 2150;
    for (const castle::Shape& shape : {castle::Shape{.d = 4, .dv = 3, .heads = 4, .kv_heads = 2},
                                       castle::Shape{.d = 5, .dv = 6, .heads = 4, .kv_heads = 1}}) {
        for (const Index window : {Index(0), Index(1), Index(70), castle::unlimited}) {
            expect_central_differences(++seed, 129, shape, window);
        }
    }
}

}  // namespace
