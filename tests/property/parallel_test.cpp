// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <concepts>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The blocked forms against the definition. Row t of the definition depends on the first t tokens only, so one
// evaluation of the longest sequence is the expectation for every shorter one.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Parallel : public ::testing::Test {};
TYPED_TEST_SUITE(Parallel, support::Scalars);

// A tolerance above this much of the largest value would let mistakes pass; among denormal values it is a number of
// denormal steps.
template <class T>
double most_useful_bound(const Head<T>& head) {
    return 0.1 * static_cast<double>(head.vc.cwiseAbs().maxCoeff()) +
           10 * static_cast<double>(head.vc.rows()) * denormal<T>;
}

template <class T>
struct Expectation {
    Expectation(const Head<T>& head, const oracle::Settings& settings) {
        const oracle::Head<double> in_double = oracle_head(head);
        exact = oracle::evaluate(in_double, settings);
        bounds = error_bounds<T>(in_double, settings, exact);
        EXPECT_LT(largest(bounds.output), most_useful_bound(head)) << "the tolerance says nothing";
    }

    oracle::Result<double> exact;
    oracle::Result<double> bounds;
};

template <class T>
void expect_output(const Expectation<T>& expected, const Head<T>& head, Index length, const castle::Options& options) {
    EXPECT_TRUE(within(run_parallel(head.first_tokens(length), options), expected.exact.output, expected.bounds.output))
        << "at length " << length;
}

TYPED_TEST(Parallel, MatchesOracleForEveryLengthUpTo130) {
    using T = TypeParam;
    constexpr Index longest = 130;
    for (const Index window : {Index(0), Index(1), Index(2), Index(31), Index(32), Index(33), Index(63), Index(64),
                               Index(65), longest, castle::unlimited}) {
        constexpr std::uint64_t seed = 31;
        Random random(seed);
        const Sizes sizes{.length = longest, .d = 6, .dv = 5};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
        const Head<T> head = random_head<T>(random, sizes);
        const Expectation<T> expected(head, oracle::standard_settings(sizes.d, window));
        for (Index length = 0; length <= longest; ++length) {
            expect_output(expected, head, length, {.lookahead_window = window});
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Parallel, MatchesOracleForEveryWindowUpTo130) {
    using T = TypeParam;
    constexpr std::uint64_t seed = 32;
    for (Index window = 0; window <= 130; ++window) {
        Random random(seed + static_cast<std::uint64_t>(window));
        const Sizes sizes{.length = 130, .d = 4, .dv = 3};
        SCOPED_TRACE(describe("seed ", seed + static_cast<std::uint64_t>(window), ", ", sizes, ", window ", window));
        const Head<T> head = random_head<T>(random, sizes);
        expect_output(Expectation<T>(head, oracle::standard_settings(sizes.d, window)), head, sizes.length,
                      {.lookahead_window = window});
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Parallel, MatchesOracleWithoutPartsOfTheScores) {
    using T = TypeParam;
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        Random random(33);
        const Sizes sizes{.length = 130, .d = 6, .dv = 5};
        const Head<T> head = random_head<T>(random, sizes);
        for (const castle::Options& options : partial_scores(window)) {
            SCOPED_TRACE(describe("window ", window, ", SiLU ", options.silu, ", causal keys ", options.causal_keys));
            const Expectation<T> expected(head, oracle_settings(sizes.d, options));
            for (const Index length : {1, 2, 33, 64, 100, 130}) expect_output(expected, head, length, options);
        }
    }
}

TYPED_TEST(Parallel, MatchesOracleForAwkwardSizesOfQueriesAndValues) {
    using T = TypeParam;
    constexpr Index longest = 130;
    const std::vector<std::array<Index, 2>> shapes = {{1, 1},   {2, 3},   {3, 130},  {5, 7},   {7, 8},     {15, 1},
                                                      {16, 17}, {31, 33}, {33, 16},  {47, 20}, {63, 64},   {65, 9},
                                                      {64, 65}, {100, 1}, {127, 32}, {1, 129}, {128, 127}, {130, 129}};
    const std::vector<Index> windows = {castle::unlimited, 0, 1, 32, 65, 100};
    std::uint64_t seed = 40;
    for (const auto& [d, dv] : shapes) {
        Random random(++seed);
        const Sizes sizes{.length = longest, .d = d, .dv = dv};
        const Index window = windows[seed % windows.size()];
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
        const Head<T> head = random_head<T>(random, sizes, 0.5);
        const Expectation<T> expected(head, oracle::standard_settings(d, window));
        for (Index length = 1; length <= longest; length += random.integer(1, 12)) {
            expect_output(expected, head, length, {.lookahead_window = window});
            if (this->HasFailure()) return;
        }
        expect_output(expected, head, longest, {.lookahead_window = window});
    }
}

TYPED_TEST(Parallel, MatchesOracleForEveryWidthUpTo130) {
    using T = TypeParam;
    for (Index width = 1; width <= 130; ++width) {
        const std::uint64_t seed = 100 + static_cast<std::uint64_t>(width);
        Random random(seed);
        const Sizes sizes{.length = 40, .d = width, .dv = 131 - width};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes));
        const Head<T> head = random_head<T>(random, sizes);
        expect_output(Expectation<T>(head, oracle::standard_settings(width)), head, sizes.length, {});
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Parallel, MatchesOracleAroundSpanBoundaries) {
    using T = TypeParam;
    for (const Index window : {Index(1), Index(40), castle::unlimited}) {
        constexpr std::uint64_t seed = 61;
        Random random(seed);
        const Sizes sizes{.length = 1026, .d = 3, .dv = 2};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
        const Head<T> head = random_head<T>(random, sizes, 0.05);
        const Expectation<T> expected(head, oracle::standard_settings(sizes.d, window));
        for (const Index length : {127, 128, 129, 510, 511, 512, 513, 514, 515, 1023, 1024, 1025, 1026}) {
            expect_output(expected, head, length, {.lookahead_window = window});
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Parallel, MatchesOracleForEveryFill) {
    // Only double has the digits for a bound that says something about logits of 1000.
    using T = TypeParam;
    for (const Fill fill : all_fills) {
        if (fill == Fill::logits_1000 && std::same_as<T, float>) continue;
        for (const Index window : {Index(0), Index(7), castle::unlimited}) {
            constexpr std::uint64_t seed = 71;
            Random random(seed);
            const Sizes sizes{.length = 80, .d = 5, .dv = 4};
            SCOPED_TRACE(describe(fill, ", seed ", seed, ", ", sizes, ", window ", window));
            Head<T> head = filled_head<T>(fill, random, sizes);
            if (std::same_as<T, float>) head.vu *= T(1) / 16;
            const Expectation<T> expected(head, oracle::standard_settings(sizes.d, window));
            expect_output(expected, head, sizes.length, {.lookahead_window = window});
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Parallel, MatchesOracleForEveryScale) {
    using T = TypeParam;
    for (const double scale : {0.0, 1e-3, 0.125, 1.0, -0.5, 1.7}) {
        constexpr std::uint64_t seed = 81;
        Random random(seed);
        const Sizes sizes{.length = 75, .d = 4, .dv = 3};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", scale ", scale));
        const Head<T> head = random_head<T>(random, sizes);
        const Expectation<T> expected(head, {.scale = scale, .window = 20});
        expect_output(expected, head, sizes.length, {.scale = scale, .lookahead_window = 20});
    }
}

TYPED_TEST(Parallel, LookaheadKeysMatchOracleForEveryLengthUpTo130) {
    using T = TypeParam;
    for (const Index window : {Index(1), Index(2), Index(31), Index(33), Index(64), castle::unlimited}) {
        constexpr std::uint64_t seed = 91;
        Random random(seed);
        const Sizes sizes{.length = 130, .d = 7, .dv = 1};
        const Head<T> head = random_head<T>(random, sizes);
        const oracle::Head<double> in_double = oracle_head(head);
        const oracle::Settings settings = oracle::standard_settings(sizes.d, window);
        const oracle::Rows<double> bounds =
            error_bounds<T>(in_double, settings, oracle::evaluate(in_double, settings)).lookahead_keys;
        castle::UqKvCache<T> cache(shape_of(head), {.lookahead_window = window});
        for (Index length = 1; length <= sizes.length; ++length) {
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window, ", length ", length));
            castle::extend(cache, head.input().tokens(length - 1, 1));
            // The bounds of the longest sequence hold for its beginnings, which are sums of fewer terms.
            EXPECT_TRUE(within(cache.lookahead_keys(), oracle::lookahead_keys(in_double, settings, length), bounds));
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Parallel, CausalAttentionMatchesOracle) {
    using T = TypeParam;
    std::uint64_t seed = 200;
    for (const Sizes sizes : {Sizes{1, 1, 1}, Sizes{33, 5, 130}, Sizes{130, 64, 17}, Sizes{520, 3, 2}}) {
        for (const double scale : {1 / std::sqrt(static_cast<double>(sizes.d)), 0.3}) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", scale ", scale));
            const Head<T> head = random_head<T>(random, sizes);
            const oracle::Head<double> in_double = oracle_head(head);
            const oracle::Settings settings{.scale = scale, .window = 0};
            const oracle::Rows<double> bounds =
                error_bounds<T>(in_double, settings, oracle::evaluate(in_double, settings)).output;
            const auto exact = oracle::causal_attention(in_double.qc, in_double.kc, in_double.vc, scale);
            EXPECT_TRUE(within(castle::causal_attention(head.qc, head.kc, head.vc, {.scale = scale}), exact, bounds));
            EXPECT_TRUE(
                within(run_parallel(head.causal_input(), {.scale = scale, .lookahead_window = 0}), exact, bounds));
        }
    }
}

}  // namespace
