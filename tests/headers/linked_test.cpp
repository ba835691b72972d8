// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "outputs.hpp"

TEST(LinkedProgram, UnitsWithTheSameFlagsGiveTheSameBits) {
    const Outputs one = baseline_outputs(), other = baseline_outputs_again();
    ASSERT_FALSE(one.empty());
    ASSERT_EQ(one.size(), other.size());
    EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)), 0);
}

TEST(LinkedProgram, UnitsForDifferentInstructionSetsAgreeToRounding) {
    const Outputs baseline = baseline_outputs(), native = native_outputs();
    ASSERT_FALSE(baseline.empty());
    ASSERT_EQ(baseline.size(), native.size());
    // Operands are at most 1 in size, so a lookahead key is a sum of up to L = 150 such terms, off by less than
    // L^2 epsilon; a score is off by sqrt(d) times that, and an output, a mean of values, by at most twice the score.
    constexpr float length = 150, d = 19;
    const float tolerance = 2 * std::sqrt(d) * length * length * std::numeric_limits<float>::epsilon();
    for (std::size_t i = 0; i < baseline.size(); ++i) {
        ASSERT_TRUE(std::abs(baseline[i] - native[i]) <= tolerance)
            << "number " << i << ": " << baseline[i] << " and " << native[i];
    }
}
