// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/methods/causal_graph.hpp>

#include "support/message.hpp"
#include "support/scalars.hpp"

// What comes of gradients, by hand.
namespace {

using castle::Index;
using castle::Matrix;
using namespace castle::methods;
using support::message;

// Two causes, two effects, lags 1 and 2.
CausalScores small_scores() {
    CausalScores scores(2, 2, 1, 2);
    scores(0, 0, 1) = 0.5;
    scores(0, 0, 2) = 0.7;
    scores(1, 0, 1) = 0.2;
    scores(1, 0, 2) = 0.2;
    scores(1, 1, 2) = 0.1;
    return scores;
}

TEST(CausalScoresOf, AreMeanSizesOfGradients) {
    // Of two windows and two effects, in the order in which they are asked for.
    const std::vector<Matrix<float>> gradients = {
        (Matrix<float>(2, 3) << 1, -2, 0, 4, 0, 0).finished(), (Matrix<float>(2, 3) << -3, 2, 0, 0, 1, 0).finished(),
        (Matrix<float>(2, 3) << 0, 0, 5, 0, 0, 0).finished(), (Matrix<float>(2, 3) << 0, 0, -5, 0, 0, 8).finished()};
    std::vector<std::pair<Index, Index>> asked;
    const auto gradient_of = [&](Index effect, Index window) {
        asked.emplace_back(effect, window);
        return gradients[std::size_t(2 * effect + window)];
    };
    const CausalScores absolute = causal_scores(3, 2, 0, 1, 2, gradient_of);
    EXPECT_EQ(asked, (std::vector<std::pair<Index, Index>>{{0, 0}, {0, 1}, {1, 0}, {1, 1}}));
    EXPECT_EQ(absolute(0, 0, 0), 2);
    EXPECT_EQ(absolute(0, 0, 1), 2);
    EXPECT_EQ(absolute(1, 0, 0), 2);
    EXPECT_EQ(absolute(1, 0, 1), 0.5);
    EXPECT_EQ(absolute(2, 1, 0), 5);
    EXPECT_EQ(absolute(2, 1, 1), 4);
    EXPECT_EQ(absolute(2, 0, 0), 0);
    const CausalScores squared = causal_scores(3, 2, 0, 1, 2, gradient_of, GradientSize::squared);
    EXPECT_EQ(squared(0, 0, 0), 5);
    EXPECT_EQ(squared(0, 0, 1), 8);
    EXPECT_EQ(squared(2, 1, 0), 25);
    EXPECT_EQ(squared(2, 1, 1), 32);
}

TEST(CausalScoresOf, HaveTheLagOfTheLargest) {
    const CausalScores scores = small_scores();
    EXPECT_EQ(scores.link(0, 0), (CausalLink{.cause = 0, .effect = 0, .lag = 2, .strength = 0.7}));
    EXPECT_EQ(scores.link(1, 0), (CausalLink{.cause = 1, .effect = 0, .lag = 1, .strength = 0.2}));  // of equal ones
    EXPECT_EQ(scores.link(0, 1), (CausalLink{.cause = 0, .effect = 1, .lag = 1, .strength = 0}));
    const CausalScores second = scores.causes_from(1, 1);
    EXPECT_EQ(second.causes(), 1);
    EXPECT_EQ(second(0, 1, 2), 0.1);
    EXPECT_EQ(second(0, 0, 1), 0.2);
}

TEST(CausalScoresOf, HaveMeans) {
    CausalScores other = small_scores();
    other(0, 0, 1) = 1.5;
    other(1, 1, 2) = 0;
    const std::vector<CausalScores> all = {small_scores(), other};
    const CausalScores mean = mean_scores(all);
    EXPECT_EQ(mean.link(0, 0), (CausalLink{.cause = 0, .effect = 0, .lag = 1, .strength = 1}));
    EXPECT_EQ(mean(0, 0, 2), 0.7);
    EXPECT_EQ(mean(1, 1, 2), 0.05);
    EXPECT_EQ(mean(1, 0, 2), 0.2);
}

TEST(CausalLinks, AreAboveAThreshold) {
    const CausalScores scores = small_scores();
    EXPECT_EQ(links_above(scores, 0.15), (std::vector<CausalLink>{{0, 0, 2, 0.7}, {1, 0, 1, 0.2}}));
    EXPECT_EQ(links_above(scores, 0.2), (std::vector<CausalLink>{{0, 0, 2, 0.7}}));  // not those that equal it
    EXPECT_EQ(links_above(scores, 0).size(), 3U);
    EXPECT_TRUE(links_above(scores, 1).empty());
}

TEST(CausalLinks, AreTheStrongestOfEachEffect) {
    const CausalScores scores = small_scores();
    EXPECT_EQ(strongest_links(scores, 1), (std::vector<CausalLink>{{0, 0, 2, 0.7}, {1, 1, 2, 0.1}}));
    // The second cause of effect 1 has a score of 0.
    EXPECT_EQ(strongest_links(scores, 5), (std::vector<CausalLink>{{0, 0, 2, 0.7}, {1, 0, 1, 0.2}, {1, 1, 2, 0.1}}));
    EXPECT_TRUE(strongest_links(scores, 0).empty());
    CausalScores equal(3, 1, 1, 1);
    for (Index cause = 0; cause < 3; ++cause) equal(cause, 0, 1) = 0.5;
    EXPECT_EQ(strongest_links(equal, 2), (std::vector<CausalLink>{{0, 0, 1, 0.5}, {1, 0, 1, 0.5}}));
}

// Logarithms with mean 2 and deviation 1; 97.5 % of a normal distribution are below 1.959963984540054.
TEST(NullThreshold, IsAQuantileOfTheLogNormal) {
    const std::vector<double> null = {std::exp(1.0), std::exp(2.0), 0.0, std::exp(3.0)};
    EXPECT_NEAR(std::log(null_threshold(null, 1, 0.025)), 2 + 1.959963984540054, 1e-12);
    EXPECT_NEAR(std::log(null_threshold(null, 4, 0.1)), 2 + 1.959963984540054, 1e-12);
    EXPECT_NEAR(std::log(null_threshold(null, 1, 0.5)), 2, 1e-12);
    EXPECT_NEAR(std::log(null_threshold(null, 1, 0.975)), 2 - 1.959963984540054, 1e-12);
    EXPECT_NEAR(std::log(null_threshold(null, 100, 1e-8)), 2 + 6.361340902404056, 1e-9);  // 1e-10
}

// Where nothing is real, one graph in twenty has a link; what is real is found.
TEST(LinksAgainstNull, AreFalseAsRarelyAsSaid) {
    std::mt19937_64 bits(5);
    std::normal_distribution<double> normal;
    constexpr Index n = 12, graphs = 2000;
    Index with_links = 0;
    for (Index graph = 0; graph < graphs; ++graph) {
        CausalScores scores(n, n, 1, 1), null(n, n, 1, 1);
        for (Index i = 0; i < n; ++i) {
            for (Index j = 0; j < n; ++j) {
                scores(i, j, 1) = std::exp(normal(bits) - 4);
                null(i, j, 1) = std::exp(normal(bits) - 4);
            }
        }
        with_links += links_against_null(scores, strengths_of(null)).empty() ? 0 : 1;
        scores(3, 5, 1) = 2;
        const std::vector<CausalLink> links = links_against_null(scores, strengths_of(null));
        EXPECT_TRUE(std::ranges::any_of(links, [](const CausalLink& l) { return l.cause == 3 && l.effect == 5; }));
    }
    // 5 % of 2000, give or take four deviations, and what 144 strengths leave uncertain of their deviation.
    EXPECT_GT(with_links, 60);
    EXPECT_LT(with_links, 180);
}

template <class T>
class ShuffledInTime : public ::testing::Test {};
TYPED_TEST_SUITE(ShuffledInTime, support::Scalars);

TYPED_TEST(ShuffledInTime, KeepsASeriesButNotItsPlace) {
    using T = TypeParam;
    for (const Index times : {10, 57, 1000}) {
        Matrix<T> series(times, 4);
        for (Index t = 0; t < times; ++t) {
            for (Index j = 0; j < 4; ++j) series(t, j) = T(t + 10000 * j);
        }
        std::set<Index> moves;
        for (std::uint64_t seed = 1; seed < 40; ++seed) {
            const Matrix<T> shuffled = shuffled_in_time(series, seed);
            ASSERT_EQ(shuffled.rows(), times);
            ASSERT_EQ(shuffled.cols(), 4);
            for (Index j = 0; j < 4; ++j) {
                const Index moved = Index(shuffled(0, j)) - 10000 * j;
                moves.insert(moved);
                EXPECT_GE(moved, times / 10);
                EXPECT_LE(moved, times - times / 10);
                for (Index t = 0; t < times; ++t) ASSERT_EQ(shuffled(t, j), series((t + moved) % times, j));
            }
        }
        EXPECT_GT(moves.size(), times > 10 ? 20U : 5U);
    }
    const Matrix<T> series = Matrix<T>::Random(30, 2);
    EXPECT_EQ(shuffled_in_time(series, 3), shuffled_in_time(series, 3));
    EXPECT_NE(shuffled_in_time(series, 3), shuffled_in_time(series, 4));
}

TEST(GraphMatchOf, CountsByHand) {
    const std::vector<CausalLink> truth = {{0, 0, 1, 0}, {0, 1, 2, 0}, {1, 1, 1, 0}, {2, 1, 1, 0}};
    const std::vector<CausalLink> found = {{0, 0, 1, 0.5}, {0, 1, 1, 0.4}, {1, 0, 1, 0.3}};
    const GraphMatch match = match_graphs(found, truth);
    EXPECT_EQ(match.right, 2);
    EXPECT_EQ(match.surplus, 1);
    EXPECT_EQ(match.missed, 2);
    EXPECT_EQ(match.right_lags, 1);
    EXPECT_DOUBLE_EQ(match.precision(), 2.0 / 3);
    EXPECT_DOUBLE_EQ(match.recall(), 0.5);
    EXPECT_DOUBLE_EQ(match.f1(), 4.0 / 7);
    EXPECT_DOUBLE_EQ(match.lags(), 0.5);

    EXPECT_EQ(match_graphs({}, truth).f1(), 0);
    EXPECT_EQ(match_graphs({}, truth).precision(), 1);
    EXPECT_EQ(match_graphs(found, {}).recall(), 1);
    EXPECT_EQ(match_graphs({}, {}).f1(), 1);
    EXPECT_EQ(match_graphs(truth, truth).f1(), 1);
    EXPECT_EQ(match_graphs(truth, truth).lags(), 1);
}

TEST(CausalGraph, RejectsWhatDoesNotFit) {
    const auto says = [](const auto& f) { return message<std::invalid_argument>(f); };
    EXPECT_EQ(says([] { CausalScores(0, 1, 1, 1); }),
              "castle::methods::CausalScores: causes is 0 but must be at least 1");
    EXPECT_EQ(says([] { CausalScores(1, -1, 1, 1); }),
              "castle::methods::CausalScores: effects is -1 but must be at least 1");
    EXPECT_EQ(says([] { CausalScores(1, 1, -1, 1); }),
              "castle::methods::CausalScores: first_lag is -1 but must be at least 0");
    EXPECT_EQ(says([] { CausalScores(1, 1, 2, 1); }),
              "castle::methods::CausalScores: last_lag is 1 but must be at least 2");
    EXPECT_EQ(
        says([] { CausalScores(Index(1) << 40, Index(1) << 40, 1, 1); }),
        "castle::methods::CausalScores: causes, effects and lags are 1099511627776, 1099511627776 and 1 but their "
        "product must not exceed 1099511627776");
    EXPECT_EQ(says([] { small_scores().causes_from(1, 2); }),
              "castle::methods::CausalScores::causes_from: first is 1 and count is 2 but scores has 2 causes");
    EXPECT_EQ(says([] { mean_scores({}); }),
              "castle::methods::mean_scores: the size of all is 0 but must be at least 1");
    const std::vector<CausalScores> unlike = {small_scores(), CausalScores(2, 2, 1, 3)};
    EXPECT_EQ(says([&] { mean_scores(unlike); }),
              "castle::methods::mean_scores: all[1] has 2 causes, 2 effects and lags 1 to 3 but all[0] has 2, 2 and 1 "
              "to 2");
    const auto gradient_of = [](Index, Index) { return Matrix<double>::Zero(1, 2).eval(); };
    EXPECT_EQ(says([&] { causal_scores(2, 2, 1, 2, 1, gradient_of); }),
              "castle::methods::causal_scores: gradient_of(0, 0) is [1, 2] but must be [2, 2], as lags and causes");
    EXPECT_EQ(says([&] { causal_scores(2, 2, 1, 1, 0, gradient_of); }),
              "castle::methods::causal_scores: windows is 0 but must be at least 1");
    EXPECT_EQ(says([] { strongest_links(small_scores(), -1); }),
              "castle::methods::strongest_links: most is -1 but must be at least 0");
    const std::vector<double> null = {1.0, 0.0, 2.0}, short_null = {1.0, 0.0};
    for (const double level : {0.0, 1.0, -0.1, std::numeric_limits<double>::quiet_NaN()}) {
        EXPECT_NE(says([&] { null_threshold(null, 1, level); }).find("but must be above 0 and below 1"),
                  std::string::npos);
    }
    EXPECT_EQ(says([&] { null_threshold(null, 0, 0.05); }),
              "castle::methods::null_threshold: links is 0 but must be at least 1");
    EXPECT_EQ(says([&] { null_threshold(short_null, 1, 0.05); }),
              "castle::methods::null_threshold: null has 1 strengths above 0 but must have at least 2");
    EXPECT_EQ(says([] { shuffled_in_time(Matrix<float>::Zero(9, 1).eval(), 1); }),
              "castle::methods::shuffled_in_time: the rows of series is 9 but must be at least 10");
    const std::vector<CausalLink> twice = {{0, 1, 1, 0.5}, {0, 1, 2, 0.5}};
    EXPECT_EQ(says([&] { match_graphs(twice, {}); }),
              "castle::methods::match_graphs: found has the link from 0 to 1 more than once");
    EXPECT_EQ(says([&] { match_graphs({}, twice); }),
              "castle::methods::match_graphs: truth has the link from 0 to 1 more than once");
}

}  // namespace
