// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The textbook forms, every quantity by name, against the definition and against the blocked form.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Textbook : public ::testing::Test {};
TYPED_TEST_SUITE(Textbook, support::Scalars);

const std::vector<Sizes> all_sizes = {{1, 1, 1},  {2, 1, 3},   {3, 4, 2},  {17, 5, 9},   {32, 16, 1},
                                      {33, 3, 4}, {47, 64, 7}, {65, 2, 2}, {70, 130, 33}};
const std::vector<Index> all_windows = {0, 1, 2, 16, 31, 64, castle::unlimited};

// Runs `check(head, exact, bounds, options)` for all sizes and windows, for some of them also without parts of the
// scores.
template <class T, class Check>
void for_cases(const Check& check) {
    std::uint64_t seed = 300;
    for (const Sizes sizes : all_sizes) {
        for (const Index window : all_windows) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
            const Head<T> head = random_head<T>(random, sizes);
            const oracle::Head<double> in_double = oracle_head(head);
            std::vector<castle::Options> all_options = {{.lookahead_window = window}};
            if (window == 16 || window == castle::unlimited) {
                for (const castle::Options& options : partial_scores(window)) all_options.push_back(options);
            }
            for (const castle::Options& options : all_options) {
                SCOPED_TRACE(describe("SiLU ", options.silu, ", causal keys ", options.causal_keys));
                const oracle::Settings settings = oracle_settings(sizes.d, options);
                const oracle::Result<double> exact = oracle::evaluate(in_double, settings);
                check(head, exact, error_bounds<T>(in_double, settings, exact), options);
                if (::testing::Test::HasFailure()) return;
            }
        }
    }
}

TYPED_TEST(Textbook, RecurrentMatchesOracle) {
    using T = TypeParam;
    for_cases<T>([](const auto& head, const auto& exact, const auto& bounds, const auto& options) {
        EXPECT_TRUE(within(run_recurrent(head.input(), options), exact.output, bounds.output));
    });
}

TYPED_TEST(Textbook, DenseMatchesOracleInEveryQuantity) {
    using T = TypeParam;
    for_cases<T>([](const auto& h, const auto& exact, const auto& bounds, const auto& options) {
        const castle::Input<T> head = h.input();
        EXPECT_TRUE(within(castle::dense::gates(head, options), exact.gates, bounds.gates));
        EXPECT_TRUE(within(castle::dense::causal_scores(head, options), exact.causal_scores, bounds.causal_scores,
                           Part::on_and_below_diagonal));
        EXPECT_TRUE(within(castle::dense::lookahead_scores(head, options), exact.lookahead_scores,
                           bounds.lookahead_scores, Part::on_and_below_diagonal));
        EXPECT_TRUE(
            within(castle::dense::scores(head, options), exact.scores, bounds.scores, Part::on_and_below_diagonal));
        EXPECT_TRUE(
            within(castle::dense::weights(head, options), exact.weights, bounds.weights, Part::on_and_below_diagonal));
        EXPECT_TRUE(within(castle::dense::output(head, options), exact.output, bounds.output));
    });
}

TYPED_TEST(Textbook, DenseLookaheadKeysMatchOracleAfterEveryToken) {
    using T = TypeParam;
    constexpr std::uint64_t seed = 500;
    for (const Index window : all_windows) {
        Random random(seed);
        const Sizes sizes{.length = 40, .d = 6, .dv = 1};
        const Head<T> head = random_head<T>(random, sizes);
        const oracle::Head<double> in_double = oracle_head(head);
        const oracle::Settings settings = oracle::standard_settings(sizes.d, window);
        const oracle::Rows<double> bounds =
            error_bounds<T>(in_double, settings, oracle::evaluate(in_double, settings)).lookahead_keys;
        for (Index t = 0; t <= sizes.length; ++t) {
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window, ", t ", t));
            const Matrix<T> u = castle::dense::lookahead_keys(head.input(), t, {.lookahead_window = window});
            ASSERT_EQ(u.rows(), t);
            ASSERT_EQ(u.cols(), sizes.d);
            EXPECT_TRUE(within(u, oracle::lookahead_keys(in_double, settings, t), bounds));
        }
        if (this->HasFailure()) return;
    }
}

// What a mask leaves out is an exact zero, or an exact minus infinity, not something near it.
TYPED_TEST(Textbook, DenseMasksExactly) {
    using T = TypeParam;
    for_cases<T>([](const auto& h, const auto&, const auto&, const castle::Options& options) {
        const castle::Input<T> head = h.input();
        const oracle::Settings settings = oracle::standard_settings(1, options.lookahead_window);
        const Matrix<T> gates = castle::dense::gates(head, options);
        const Matrix<T> causal_scores = castle::dense::causal_scores(head, options);
        const Matrix<T> lookahead_scores = castle::dense::lookahead_scores(head, options);
        const Matrix<T> scores = castle::dense::scores(head, options);
        const Matrix<T> weights = castle::dense::weights(head, options);
        for (Index i = 0; i < gates.rows(); ++i) {
            for (Index j = 0; j < gates.rows(); ++j) {
                SCOPED_TRACE(describe("(", i, ", ", j, ")"));
                if (settings.absorbs(i, j)) {
                    ASSERT_GT(gates(i, j), T(0));
                } else {
                    ASSERT_EQ(gates(i, j), T(0));
                }
                if (j > i) {
                    ASSERT_EQ(causal_scores(i, j), -std::numeric_limits<T>::infinity());
                    ASSERT_EQ(lookahead_scores(i, j), T(0));
                    ASSERT_EQ(scores(i, j), -std::numeric_limits<T>::infinity());
                    ASSERT_EQ(weights(i, j), T(0));
                } else {
                    ASSERT_TRUE(std::isfinite(scores(i, j)));
                }
            }
        }
    });
}

// Lookahead inputs that are not there are as good as any.
TYPED_TEST(Textbook, OfAWindowOfZeroTakesNoLookaheadInput) {
    using T = TypeParam;
    Random random(560);
    const Head<T> head = random_head<T>(random, {.length = 47, .d = 5, .dv = 4});
    const castle::Input<T> with = head.input(), without = head.causal_input();
    const castle::Options options{.lookahead_window = 0};
    EXPECT_TRUE(same_bits(run_recurrent(with, options), run_recurrent(without, options)));
    EXPECT_TRUE(same_bits(castle::dense::gates(with, options), castle::dense::gates(without, options)));
    EXPECT_TRUE(same_bits(castle::dense::lookahead_keys(with, 40, options),
                          castle::dense::lookahead_keys(without, 40, options)));
    EXPECT_TRUE(
        same_bits(castle::dense::lookahead_scores(with, options), castle::dense::lookahead_scores(without, options)));
    EXPECT_TRUE(same_bits(castle::dense::causal_scores(with, options), castle::dense::causal_scores(without, options)));
    EXPECT_TRUE(same_bits(castle::dense::scores(with, options), castle::dense::scores(without, options)));
    EXPECT_TRUE(same_bits(castle::dense::weights(with, options), castle::dense::weights(without, options)));
    EXPECT_TRUE(same_bits(castle::dense::output(with, options), castle::dense::output(without, options)));
}

TYPED_TEST(Textbook, AgreesWithTheBlockedForm) {
    using T = TypeParam;
    for_cases<T>([](const auto& h, const auto&, auto bounds, const auto& options) {
        // Two computations, each within the bounds of the exact result.
        for (Index i = 0; i < bounds.output.rows(); ++i) {
            for (Index c = 0; c < bounds.output.cols(); ++c) bounds.output(i, c) *= 2;
        }
        const Matrix<T> blocked = run_parallel(h.input(), options);
        EXPECT_TRUE(within(blocked, oracle_rows<double>(run_recurrent(h.input(), options)), bounds.output));
        EXPECT_TRUE(within(blocked, oracle_rows<double>(castle::dense::output(h.input(), options)), bounds.output));
    });
}

TYPED_TEST(Textbook, TakesTheScale) {
    using T = TypeParam;
    constexpr std::uint64_t seed = 600;
    for (const double scale : {0.0, -0.5, 0.9}) {
        Random random(seed);
        const Sizes sizes{.length = 30, .d = 4, .dv = 3};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", scale ", scale));
        const Head<T> head = random_head<T>(random, sizes);
        const oracle::Head<double> in_double = oracle_head(head);
        const oracle::Settings settings{.scale = scale, .window = 9};
        const oracle::Result<double> exact = oracle::evaluate(in_double, settings);
        const oracle::Rows<double> bounds = error_bounds<T>(in_double, settings, exact).output;
        const castle::Options options{.scale = scale, .lookahead_window = 9};
        EXPECT_TRUE(within(run_recurrent(head.input(), options), exact.output, bounds));
        EXPECT_TRUE(within(castle::dense::output(head.input(), options), exact.output, bounds));
    }
}

// The oracle keeps the sums of eq. 4 from token to token; they are those that it begins anew.
TEST(Oracle, LookaheadKeysOfTheWholeRunAreThoseOfTheFormula) {
    for (const Index window : all_windows) {
        Random random(700);
        const oracle::Head<double> head = oracle_head(random_head<double>(random, {.length = 40, .d = 3, .dv = 1}));
        const oracle::Settings settings = oracle::standard_settings(3, window);
        const oracle::Rows<double> whole = oracle::evaluate(head, settings).lookahead_keys;
        const oracle::Rows<double> formula = oracle::lookahead_keys(head, settings, 40);
        for (Index s = 0; s < 40; ++s) {
            for (Index k = 0; k < 3; ++k) ASSERT_DOUBLE_EQ(whole(s, k), formula(s, k)) << "window " << window;
        }
    }
}

}  // namespace
