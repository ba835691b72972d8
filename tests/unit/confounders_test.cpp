// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/methods/confounders.hpp>

#include "support/message.hpp"

// LeaF's equations on numbers worked out by hand.
namespace {

using castle::Index;
using castle::Matrix;
using castle::methods::TokenSpan;
using support::message;
namespace methods = castle::methods;
using Flags = std::vector<bool>;

TEST(Confounders, NormsAreThoseOfRows) {
    const Matrix<float> g = (Matrix<float>(3, 2) << 3, 4, 0, 0, -5e30f, 12e30f).finished();
    const std::vector<double> norms = methods::gradient_norms(g);
    EXPECT_EQ(norms[0], 5);
    EXPECT_EQ(norms[1], 0);
    EXPECT_NEAR(norms[2] / 13e30, 1, 1e-6);
}

TEST(Confounders, DifferencesAreNormalisedTwice) {
    // Normalised: 0, 1, 0.5, 0.25 and 1, 0, 0.5, 0.5; differences -1, 1, 0, -0.25.
    const std::vector<double> teacher = {2, 6, 4, 3}, student = {8, 0, 4, 4};
    EXPECT_EQ(methods::gradient_difference(teacher, student), (std::vector<double>{0, 1, 0.5, 0.375}));
    EXPECT_EQ(methods::gradient_difference(teacher, teacher), (std::vector<double>{0, 0, 0, 0}));
    EXPECT_EQ(methods::min_max_normalised(std::vector<double>{}), std::vector<double>{});
}

TEST(Confounders, AreWhereTheDifferenceIsSmall) {
    const std::vector<double> difference = {0, 1, 0.1, 0.05, 0.05, 0.3};
    EXPECT_EQ(methods::confounders_by_threshold(difference, 0.05), (Flags{true, false, false, true, true, false}));
    EXPECT_EQ(methods::confounders_by_threshold(difference, 0), (Flags{true, false, false, false, false, false}));
    EXPECT_EQ(methods::confounders_by_quantile(difference, 0.34), (Flags{true, false, false, true, false, false}));
    EXPECT_EQ(methods::confounders_by_quantile(difference, 0.5), (Flags{true, false, false, true, true, false}));
    EXPECT_EQ(methods::confounders_by_quantile(difference, 0.1), Flags(6, false));
}

TEST(Confounders, SpansAreRuns) {
    EXPECT_EQ(methods::spans_of({true, false, true, true, false, true}),
              (std::vector<TokenSpan>{{0, 1}, {2, 4}, {5, 6}}));
    EXPECT_EQ(methods::spans_of({}), std::vector<TokenSpan>{});
    EXPECT_EQ(methods::spans_of(Flags(3, true)), (std::vector<TokenSpan>{{0, 3}}));
    EXPECT_EQ(methods::spans_of(Flags(3, false)), std::vector<TokenSpan>{});
}

TEST(Confounders, CounterfactualsGoWithoutThem) {
    const std::vector<int> tokens = {10, 11, 12, 13, 14};
    const std::vector<TokenSpan> spans = {{1, 3}, {4, 5}};
    const std::span<const TokenSpan> all(spans);
    EXPECT_EQ(methods::without<int>(tokens, all.first(1)), (std::vector<int>{10, 13, 14}));
    EXPECT_EQ(methods::without<int>(tokens, all), (std::vector<int>{10, 13}));
    EXPECT_EQ(methods::without<int>(tokens, {}), tokens);
}

TEST(Confounders, RejectWhatDoesNotFit) {
    const std::vector<double> two = {0, 1}, three = {0, 1, 2};
    EXPECT_EQ(message<std::invalid_argument>([&] { methods::gradient_difference(two, three); }),
              "castle::methods::gradient_difference: teacher has 2 tokens but student has 3");
    EXPECT_EQ(message<std::invalid_argument>([&] { methods::confounders_by_threshold(two, 1.5); }),
              "castle::methods::confounders_by_threshold: threshold is 1.5 but must be within [0, 1]");
    EXPECT_EQ(message<std::invalid_argument>([&] { methods::confounders_by_quantile(two, 0.6); }),
              "castle::methods::confounders_by_quantile: quantile is 0.6 but must be within [0, 0.5]");
    const std::vector<TokenSpan> beyond = {{1, 3}};
    EXPECT_EQ(message<std::invalid_argument>([&] { methods::without<double>(two, beyond); }),
              "castle::methods::without: a span is [1, 3) but there are 2 tokens");
}

}  // namespace
