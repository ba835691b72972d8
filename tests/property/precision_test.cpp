// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/tolerances.hpp"

// What single precision costs: the blocked form against a plain evaluation of the same formulas in float, both measured
// against the exact result.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

// The library's error is at most this many times that of the plain evaluation, plus what the rounding of the exact
// result alone may cost: an ulp of the largest number for the largest error, half an ulp of the root mean square for
// that of the errors.
constexpr double most_times_plain = 2;

struct Ratio {
    double rms = 0;
    double largest = 0;

    void take_larger(Ratio other) {
        rms = std::max(rms, other.rms);
        largest = std::max(largest, other.largest);
    }
};

// How many times the plain evaluation's error the library's was, where it was above that floor.
Ratio expect_as_precise_as_plain(const oracle::Rows<double>& exact, const oracle::Rows<float>& plain,
                                 const Matrix<float>& ours) {
    const Error size = error_against(exact, [](Index, Index) { return 0.0; });
    const Error floor{.rms = unit_roundoff<float> * size.rms, .largest = 2 * unit_roundoff<float> * size.largest};
    const Error allowed = error_against(exact, plain);
    const Error error = error_against(exact, ours);
    EXPECT_TRUE(error.rms <= most_times_plain * allowed.rms + floor.rms) << error.rms << ", plain " << allowed.rms;
    EXPECT_TRUE(error.largest <= most_times_plain * allowed.largest + floor.largest)
        << error.largest << ", plain " << allowed.largest;
    return {.rms = error.rms <= floor.rms ? 0 : error.rms / allowed.rms,
            .largest = error.largest <= floor.largest ? 0 : error.largest / allowed.largest};
}

void expect_precision(std::uint64_t seed, const std::vector<Sizes>& all_sizes, const std::vector<Index>& windows) {
    Ratio outputs, keys;
    for (const Sizes sizes : all_sizes) {
        for (const Index window : windows) {
            SCOPED_TRACE(describe("seed ", ++seed, ", ", sizes, ", window ", window));
            Random random(seed);
            const Head<float> head = random_head<float>(random, sizes);
            const oracle::Settings settings = oracle::standard_settings(sizes.d, window);
            const oracle::Result<double> exact = oracle::evaluate(oracle_head<double>(head), settings);
            const oracle::Result<float> plain = oracle::evaluate(oracle_head<float>(head), settings);
            const Outcome<float> run = run_at_once(head.input(), {.lookahead_window = window});
            outputs.take_larger(expect_as_precise_as_plain(exact.output, plain.output, run.output));
            keys.take_larger(
                expect_as_precise_as_plain(exact.lookahead_keys, plain.lookahead_keys, run.lookahead_keys));
        }
    }
    ::testing::Test::RecordProperty("outputs_rms_times_plain", std::to_string(outputs.rms));
    ::testing::Test::RecordProperty("outputs_largest_times_plain", std::to_string(outputs.largest));
    ::testing::Test::RecordProperty("lookahead_keys_rms_times_plain", std::to_string(keys.rms));
    ::testing::Test::RecordProperty("lookahead_keys_largest_times_plain", std::to_string(keys.largest));
}

TEST(Precision, OfFloatIsWithinTwiceThatOfAPlainEvaluation) {
    expect_precision(900,
                     {{1, 1, 1},
                      {2, 3, 1},
                      {20, 16, 16},
                      {33, 64, 8},
                      {100, 32, 32},
                      {130, 128, 16},
                      {257, 8, 8},
                      {515, 32, 4}},
                     {0, 1, 50, castle::unlimited});
}

TEST(Precision, OfFloatOverAThousandTokensIsWithinTwiceThatOfAPlainEvaluation) {
    expect_precision(950, {{1000, 16, 16}, {1000, 64, 16}}, {128, castle::unlimited});
}

}  // namespace
