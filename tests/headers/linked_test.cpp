// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "outputs.hpp"
#include "support/oracle.hpp"

TEST(LinkedProgram, UnitsWithTheSameFlagsGiveTheSameBits) {
    const Outputs one = baseline_outputs(), other = baseline_outputs_again();
    ASSERT_FALSE(one.empty());
    ASSERT_EQ(one.size(), other.size());
    EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(float)), 0);
}

// Lookahead and causal attention and the lookahead keys by the definition, in double.
std::vector<double> definition() {
    constexpr oracle::Index length = Operands::length, d = Operands::d, dv = Operands::dv;
    const auto projection = [](oracle::Index cols, float phase) {
        oracle::Rows<double> m(length, cols);
        for (oracle::Index i = 0; i < length * cols; ++i) m(i / cols, i % cols) = Operands::element(phase, i);
        return m;
    };
    const oracle::Head<double> head{.qc = projection(d, 0),
                                    .kc = projection(d, 1),
                                    .vc = projection(dv, 2),
                                    .qu = projection(d, 3),
                                    .ku = projection(d, 4),
                                    .vu = projection(d, 5)};
    const oracle::Settings settings = oracle::standard_settings(d);
    const auto r = oracle::evaluate(head, settings);
    std::vector<double> elements;
    for (const auto& m :
         {r.output, oracle::causal_attention(head.qc, head.kc, head.vc, settings.scale), r.lookahead_keys}) {
        for (oracle::Index i = 0; i < m.rows() * m.cols(); ++i) elements.push_back(m(i / m.cols(), i % m.cols()));
    }
    return elements;
}

// Operands are at most 1 in size, so a lookahead key is a sum of up to L such terms, off by less than L^2 epsilon; a
// score is off by sqrt(d) times that, and an output, a mean of values, by at most twice the score.
void expect_near(const Outputs& outputs, const std::vector<double>& expected) {
    constexpr double length = Operands::length, d = Operands::d;
    const double tolerance = 2 * std::sqrt(d) * length * length * std::numeric_limits<float>::epsilon();
    ASSERT_EQ(outputs.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
        ASSERT_TRUE(std::abs(double(outputs[i]) - expected[i]) <= tolerance)
            << "element " << i << " is " << outputs[i] << " but must be " << expected[i];
    }
}

// Of all outputs those that there are after a cache has been saved.
template <class Elements>
Elements after_saved(const Elements& all) {
    constexpr std::ptrdiff_t attended = Operands::length * Operands::dv;
    Elements elements(all.begin() + Operands::saved * Operands::dv, all.begin() + attended);
    elements.insert(elements.end(), all.begin() + 2 * attended, all.end());
    return elements;
}

TEST(LinkedProgram, UnitsForDifferentInstructionSetsAreEachRight) {
    const std::vector<double> expected = definition();
    expect_near(baseline_outputs(), expected);
    expect_near(native_outputs(), expected);
}

TEST(LinkedProgram, ASavedCacheGoesOnInAnotherUnit) {
    const Outputs expected = after_saved(baseline_outputs()), same_flags = baseline_outputs_after(baseline_saved());
    ASSERT_EQ(same_flags.size(), expected.size());
    EXPECT_EQ(std::memcmp(same_flags.data(), expected.data(), expected.size() * sizeof(float)), 0);
    expect_near(native_outputs_after(baseline_saved()), after_saved(definition()));
}
