// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// What the paper says in words, and small cases that a pencil can follow.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class PaperFacts : public ::testing::Test {};
TYPED_TEST_SUITE(PaperFacts, support::Scalars);

TYPED_TEST(PaperFacts, NewestLookaheadKeyIsZero) {
    using T = TypeParam;
    Random random(1);
    const Head<T> head = random_head<T>(random, {.length = 100, .d = 7, .dv = 3});
    castle::UqKvCache<T> cache(shape_of(head));
    for (Index t = 0; t < 100; ++t) {
        castle::extend(cache, head.input().tokens(t, 1));
        const Matrix<T> u = cache.lookahead_keys();
        ASSERT_EQ(u.rows(), t + 1);
        EXPECT_TRUE((u.row(t).array() == T(0)).all()) << "after token " << t;
        // The one before has absorbed a token, through a gate that is never 0.
        if (t > 0) {
            EXPECT_TRUE((u.row(t - 1).array() != T(0)).all()) << "after token " << t;
        }
        EXPECT_TRUE((castle::dense::lookahead_keys(head.input(), t + 1).row(t).array() == T(0)).all());
    }
}

TYPED_TEST(PaperFacts, FirstOutputIsTheFirstValue) {
    using T = TypeParam;
    for (const Fill fill : all_fills) {
        SCOPED_TRACE(describe(fill));
        Random random(2);
        const Head<T> head = filled_head<T>(fill, random, {.length = 40, .d = 7, .dv = 5});
        // Its weight is exactly 1.
        EXPECT_EQ(run_parallel(head.input()).row(0), head.vc.row(0));
        EXPECT_EQ(run_recurrent(head.input()).row(0), head.vc.row(0));
        EXPECT_EQ(castle::dense::output(head.input()).row(0), head.vc.row(0));
        EXPECT_EQ(castle::causal_attention(head.qc, head.kc, head.vc).row(0), head.vc.row(0));
        EXPECT_EQ(run_parallel(head.first_tokens(1)).row(0), head.vc.row(0));
    }
}

// The newest token has no lookahead key yet, so that its own score is the causal one.
TYPED_TEST(PaperFacts, OwnScoreOfEveryTokenIsItsCausalScore) {
    using T = TypeParam;
    Random random(3);
    const Head<T> head = random_head<T>(random, {.length = 30, .d = 4, .dv = 3});
    const Matrix<T> lookahead = castle::dense::lookahead_scores(head.input());
    const Matrix<T> causal = castle::dense::causal_scores(head.input());
    const Matrix<T> both = castle::dense::scores(head.input());
    for (Index t = 0; t < 30; ++t) {
        EXPECT_EQ(lookahead(t, t), T(0));
        EXPECT_EQ(both(t, t), causal(t, t));
    }
}

TYPED_TEST(PaperFacts, WindowOfZeroIsStandardCausalAttention) {
    using T = TypeParam;
    Random random(4);
    const Head<T> head = random_head<T>(random, {.length = 130, .d = 5, .dv = 4});
    const castle::Options options{.lookahead_window = 0};
    const Matrix<T> causal = castle::causal_attention(head.qc, head.kc, head.vc);
    EXPECT_TRUE(same_bits(run_parallel(head.input(), options), causal));
    const oracle::Head<double> in_double = oracle_head(head);
    const oracle::Settings settings = oracle::standard_settings(5, 0);
    const auto exact = oracle::causal_attention(in_double.qc, in_double.kc, in_double.vc, settings.scale);
    const auto bounds = error_bounds<T>(in_double, settings, oracle::evaluate(in_double, settings)).output;
    EXPECT_TRUE(within(causal, exact, bounds));
    EXPECT_TRUE(within(run_recurrent(head.input(), options), exact, bounds));
    EXPECT_TRUE(within(castle::dense::output(head.input(), options), exact, bounds));
    EXPECT_TRUE((castle::dense::gates(head.input(), options).array() == T(0)).all());
}

TYPED_TEST(PaperFacts, WeightsAreADistributionOverTheTokensSoFar) {
    using T = TypeParam;
    Random random(5);
    const Matrix<T> p = castle::dense::weights(random_head<T>(random, {.length = 50, .d = 6, .dv = 1}).input());
    for (Index t = 0; t < 50; ++t) {
        double sum = 0;
        for (Index s = 0; s < 50; ++s) {
            EXPECT_TRUE(s <= t ? p(t, s) > 0 && p(t, s) <= 1 : p(t, s) == 0) << "(" << t << ", " << s << ")";
            sum += double(p(t, s));
        }
        // Each weight was divided by the rounded sum of all.
        EXPECT_TRUE(std::abs(sum - 1) <= gamma<T>(double(t + 2))) << "row " << t << ": " << sum;
    }
}

// Two tokens, d = 1, every number written out. All lookahead products are 0, so that the gate is a half: u_1 = v^U_2
// / 2.
TYPED_TEST(PaperFacts, TwoTokensByHand) {
    using T = TypeParam;
    Head<T> head({.length = 2, .d = 1, .dv = 1});
    head.qc << T(5), T(2);
    head.kc << T(0.5), T(-0.25);
    head.vc << T(10), T(20);
    head.qu.setZero();
    head.ku << T(3), T(4);
    head.vu << T(7), T(3);
    // The second token: s^C = (1, -1/2), s^U = (2 * 3/2, 0), scores = (1 - SiLU(3), -1/2).
    const double silu = 3 / (1 + std::exp(-3.0));
    const double first = 1 / (1 + std::exp(-0.5 - (1 - silu)));
    const double expected = 10 * first + 20 * (1 - first);
    // A dozen operations on numbers below 20.
    const double bound = 20 * gamma<T>(40);
    EXPECT_TRUE(std::abs(double(run_parallel(head.input())(1, 0)) - expected) <= bound);
    EXPECT_TRUE(std::abs(double(run_recurrent(head.input())(1, 0)) - expected) <= bound);
    EXPECT_TRUE(std::abs(double(castle::dense::output(head.input())(1, 0)) - expected) <= bound);
    EXPECT_EQ(castle::dense::gates(head.input())(0, 1), T(0.5));
    EXPECT_EQ(castle::dense::lookahead_keys(head.input(), 2)(0, 0), T(1.5));
    EXPECT_EQ(castle::dense::lookahead_scores(head.input())(1, 0), T(3));

    const Outcome<T> run = run_at_once(head.input());
    EXPECT_EQ(run.lookahead_keys(0, 0), T(1.5));
}

// A gate that is shut takes in nothing of what follows; one that is open takes in all of it.
TYPED_TEST(PaperFacts, GatesShutAndOpen) {
    using T = TypeParam;
    Random random(6);
    Head<T> head = random_head<T>(random, {.length = 70, .d = 3, .dv = 2});
    head.qu.setConstant(T(100));
    head.ku.setConstant(T(-100));
    EXPECT_TRUE(same_bits(run_parallel(head.input()), run_parallel(head.input(), {.lookahead_window = 0})));
    head.ku.setConstant(T(100));
    head.vu.setOnes();
    const Matrix<T> u = run_at_once(head.input()).lookahead_keys;
    for (Index s = 0; s < 70; ++s) EXPECT_TRUE((u.row(s).array() == T(69 - s)).all()) << "row " << s;
    const Matrix<T> windowed = run_at_once(head.input(), {.lookahead_window = 20}).lookahead_keys;
    for (Index s = 0; s < 70; ++s) EXPECT_TRUE((windowed.row(s).array() == T(std::min<Index>(69 - s, 20))).all());
}

}  // namespace
