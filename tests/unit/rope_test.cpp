// SPDX-License-Identifier: Apache-2.0
#include <castle/rope.hpp>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "support/generators.hpp"
#include "support/layer_oracle.hpp"
#include "support/message.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;

template <class T>
class Rope : public testing::Test {};
TYPED_TEST_SUITE(Rope, support::Scalars);

TYPED_TEST(Rope, MatchesOracleForEveryEvenSize) {
    using T = TypeParam;
    support::Random random(11);
    for (Index d = 2; d <= 130; d += 2) {
        for (const Index first : {0, 1, 1000, 100000}) {
            SCOPED_TRACE(support::describe("d ", d, ", first position ", first));
            Matrix<T> x(3, d);
            support::fill_normal(random, x);
            auto expected = support::oracle_rows<double>(x);
            oracle::Rows<double> bounds(3, d);
            for (Index i = 0; i < 3; ++i) {
                oracle::rotate(expected, i, 0, d, first + i, 10000.0);
                for (Index k = 0; k < d; ++k) {
                    const Index pair = k < d / 2 ? k + d / 2 : k - d / 2;
                    bounds(i, k) = support::rotation_bound<T>(static_cast<double>(first + i), x(i, k), x(i, pair));
                }
            }
            castle::rotate(x, first);
            EXPECT_TRUE(support::within(x, expected, bounds));
        }
    }
}

TYPED_TEST(Rope, LeavesPositionZeroAsItIs) {
    using T = TypeParam;
    support::Random random(12);
    Matrix<T> x(1, 66);
    support::fill_normal(random, x);
    const Matrix<T> before = x;
    castle::rotate(x, 0);
    EXPECT_TRUE(support::same_bits(x, before));
}

TYPED_TEST(Rope, TurnsARowTheSameWayWhereverTheCallBegins) {
    using T = TypeParam;
    support::Random random(13);
    for (const Index d : {2, 6, 34, 64, 128}) {
        SCOPED_TRACE(support::describe("d ", d));
        Matrix<T> x(40, d);
        support::fill_normal(random, x);
        Matrix<T> row_by_row = x;
        castle::rotate(x, 7);
        for (Index i = 0; i < x.rows(); ++i) castle::rotate(row_by_row.row(i), 7 + i);
        EXPECT_TRUE(support::same_bits(x, row_by_row));
    }
}

TYPED_TEST(Rope, WritesNothingOutsideTheView) {
    using T = TypeParam;
    Matrix<T> memory = Matrix<T>::Constant(5, 16, support::sentinel<T>());
    memory.block(1, 3, 3, 10).setOnes();
    castle::rotate(memory.block(1, 3, 3, 10), 5);
    for (Index i = 0; i < 5; ++i) {
        for (Index j = 0; j < 16; ++j) {
            const bool inside = i >= 1 && i < 4 && j >= 3 && j < 13;
            EXPECT_NE(support::is_sentinel(memory(i, j)), inside) << i << ", " << j;
        }
    }
}

TEST(RopeErrors, NameWhatIsWrong) {
    const auto message = [](Index d, Index position, double base) -> std::string {
        Matrix<float> x = Matrix<float>::Ones(2, d);
        const std::string words = support::message<std::invalid_argument>([&] { castle::rotate(x, position, base); });
        EXPECT_TRUE(support::same_bits(x, Matrix<float>(Matrix<float>::Ones(2, d))));
        return words;
    };
    EXPECT_EQ(message(7, 0, 10000), "castle::rotate: x is [2, 7] but must have an even number of columns");
    EXPECT_EQ(message(8, -1, 10000), "castle::rotate: first_position is -1 but must be at least 0");
    EXPECT_NE(message(8, castle::unlimited, 10000).find("first_position"), std::string::npos);
    EXPECT_NE(message(8, 0, 5e-324).find("base"), std::string::npos);
    EXPECT_NE(message(8, 0, 0).find("base"), std::string::npos);
    EXPECT_NE(message(8, 0, std::numeric_limits<double>::infinity()).find("base"), std::string::npos);
    EXPECT_NE(message(8, 0, std::nan("")).find("base"), std::string::npos);
}

}  // namespace
