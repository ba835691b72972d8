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

void take_larger(Error& a, Error b) {
    a.rms = std::max(a.rms, b.rms);
    a.largest = std::max(a.largest, b.largest);
}

void expect_precision(std::uint64_t seed, const std::vector<Sizes>& all_sizes, const std::vector<Index>& windows) {
    Error outputs, keys;  // as multiples of the plain evaluation's
    for (const Sizes sizes : all_sizes) {
        for (const Index window : windows) {
            SCOPED_TRACE(describe("seed ", ++seed, ", ", sizes, ", window ", window));
            Random random(seed);
            const Head<float> head = random_head<float>(random, sizes);
            const oracle::Settings settings = oracle::standard_settings(sizes.d, window);
            const oracle::Result<double> exact = oracle::evaluate(oracle_head<double>(head), settings);
            const oracle::Result<float> plain = oracle::evaluate(oracle_head<float>(head), settings);
            const Outcome<float> run = run_at_once(head.input(), {.lookahead_window = window});
            Error times_plain;
            EXPECT_TRUE(as_precise_as_plain(exact.output, plain.output, run.output, &times_plain));
            take_larger(outputs, times_plain);
            EXPECT_TRUE(
                as_precise_as_plain(exact.lookahead_keys, plain.lookahead_keys, run.lookahead_keys, &times_plain));
            take_larger(keys, times_plain);
        }
    }
    ::testing::Test::RecordProperty("outputs_rms_times_plain", std::to_string(outputs.rms));
    ::testing::Test::RecordProperty("outputs_largest_times_plain", std::to_string(outputs.largest));
    ::testing::Test::RecordProperty("lookahead_keys_rms_times_plain", std::to_string(keys.rms));
    ::testing::Test::RecordProperty("lookahead_keys_largest_times_plain", std::to_string(keys.largest));
}

TEST(Precision, OfFloatIsWithinTwiceThatOfAPlainEvaluation) {
    expect_precision(
        900,
        {{1, 1, 1}, {2, 3, 1}, {20, 16, 16}, {33, 64, 8}, {100, 32, 32}, {130, 128, 16}, {257, 8, 8}, {515, 32, 4}},
        {0, 1, 50, castle::unlimited});
}

TEST(Precision, OfFloatOverAThousandTokensIsWithinTwiceThatOfAPlainEvaluation) {
    expect_precision(950, {{1000, 16, 16}, {1000, 64, 16}}, {128, castle::unlimited});
}

}  // namespace
