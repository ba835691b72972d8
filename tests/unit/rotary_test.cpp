// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <castle/rotary.hpp>

#include <cmath>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

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

// Positions in no order, twice the same, and as far as they go.
const std::vector<Index> positions{5, 0, 1000, 5, 123456789, Index(1) << 40, 4, 77};

TYPED_TEST(Rope, TableMatchesLongDoubleAtAnyPositions) {
    using T = TypeParam;
    support::Random random(14);
    for (const Index d : {2, 6, 34, 64, 130, 270}) {
        for (const double base : {10000.0, 1.0, 50.0}) {
            SCOPED_TRACE(support::describe("d ", d, ", base ", base));
            const castle::RotaryTable<T> table(d, base, 5);
            EXPECT_EQ(table.d(), d);
            EXPECT_EQ(table.base(), base);
            Matrix<T> x(Index(positions.size()), d);
            support::fill_normal(random, x);
            const Matrix<T> before = x;
            table.rotate(x, positions);
            for (Index i = 0; i < x.rows(); ++i) {
                const Index position = positions[std::size_t(i)];
                for (Index k = 0; k < d / 2; ++k) {
                    const long double power = -2 * static_cast<long double>(k) / static_cast<long double>(d);
                    const long double angle =
                        static_cast<long double>(position) * std::pow(static_cast<long double>(base), power);
                    const T a = before(i, k), b = before(i, k + d / 2);
                    const long double low = a * std::cos(angle) - b * std::sin(angle);
                    const long double high = b * std::cos(angle) + a * std::sin(angle);
                    const double bound = support::rotation_bound<T>(static_cast<double>(position), a, b);
                    ASSERT_LE(std::abs(x(i, k) - low), bound) << "position " << position << ", k " << k;
                    ASSERT_LE(std::abs(x(i, k + d / 2) - high), bound) << "position " << position << ", k " << k;
                }
            }
        }
    }
}

// Whether cosines and sines are looked up or computed, for rows in a run or one by one.
TYPED_TEST(Rope, TableHasTheBitsOfTheFunction) {
    using T = TypeParam;
    support::Random random(15);
    for (const Index d : {2, 6, 34, 64, 128, 130, 270}) {
        SCOPED_TRACE(support::describe("d ", d));
        Matrix<T> before(20, d);
        support::fill_normal(random, before);
        Matrix<T> expected = before;
        castle::rotate(expected, 90, 500.0);
        castle::RotaryTable<T> table(d, 500.0);
        std::vector<Index> run;
        for (Index i = 0; i < 20; ++i) run.push_back(90 + i);
        for (const Index reserved : {0, 1, 90, 97, 60, 200}) {
            SCOPED_TRACE(support::describe("reserved ", reserved));
            table.reserve(reserved);
            Matrix<T> x = before;
            table.rotate(x, 90);
            EXPECT_TRUE(support::same_bits(x, expected));
            x = before;
            table.rotate(x, run);
            EXPECT_TRUE(support::same_bits(x, expected));
            for (Index i = 0; i < 20; ++i) x.row(19 - i) = before.row(i);
            table.rotate(x, std::vector<Index>(run.rbegin(), run.rend()));
            for (Index i = 0; i < 20; ++i) {
                EXPECT_TRUE(support::same_bits(Matrix<T>(x.row(19 - i)), Matrix<T>(expected.row(i))));
            }
        }
        EXPECT_EQ(table.reserved(), 200);
    }
}

// The angles are the same both times, so a rotation's bound at position 0, which has no share of the angle, is left for
// each: the first one's errors are turned once more, which may add those of a pair up, and the second turns a pair
// whose elements may each have grown to the sum of the two.
TYPED_TEST(Rope, TableUndoesItsRotation) {
    using T = TypeParam;
    support::Random random(16);
    for (const Index d : {2, 34, 130}) {
        for (const Index reserved : {0, 6, 1001}) {
            SCOPED_TRACE(support::describe("d ", d, ", reserved ", reserved));
            const castle::RotaryTable<T> table(d, 10000.0, reserved);
            Matrix<T> x(Index(positions.size()), d);
            support::fill_normal(random, x);
            const auto expected = support::oracle_rows<double>(x);
            oracle::Rows<double> bounds(x.rows(), d);
            for (Index i = 0; i < x.rows(); ++i) {
                for (Index k = 0; k < d; ++k) {
                    bounds(i, k) = 4 * support::rotation_bound<T>(0, x(i, k), x(i, k < d / 2 ? k + d / 2 : k - d / 2));
                }
            }
            Matrix<T> y = x;
            table.rotate(y, positions);
            EXPECT_FALSE(support::same_bits(x, y));
            table.rotate_back(y, positions);
            EXPECT_TRUE(support::within(y, expected, bounds));
            y = x;
            table.rotate(y, 1);
            table.rotate_back(y, 1);
            EXPECT_TRUE(support::within(y, expected, bounds));
        }
    }
}

TYPED_TEST(Rope, TableWritesNothingOutsideTheView) {
    using T = TypeParam;
    const castle::RotaryTable<T> table(10);
    const std::vector<Index> some{8, 0, 3};
    static_cast<void>(support::written<T>(3, 10, [&](castle::MatrixView<T> x) {
        x.map().setOnes();
        table.rotate(x, some);
        table.rotate_back(x, 7);
    }));
}

TYPED_TEST(Rope, TableAllocatesNothingInItsCalls) {
    using T = TypeParam;
    for (const Index d : {6, 64, 300}) {
        const castle::RotaryTable<T> table(d, 10000.0, 6);
        Matrix<T> x = Matrix<T>::Ones(Index(positions.size()), d);
        const support::Allocations::Count count;
        table.rotate(x, positions);
        table.rotate_back(x, positions);
        table.rotate(x, 3);
        table.rotate_back(x, 3);
        EXPECT_EQ(count.allocations(), 0);
    }
}

TYPED_TEST(Rope, TableKeepsWhatIsReserved) {
    using T = TypeParam;
    castle::RotaryTable<T> table(64);
    EXPECT_EQ(table.reserved(), 0);
    EXPECT_EQ(table.bytes(), 32 * 8);
    Matrix<T> x = Matrix<T>::Ones(20, 64), expected = x;
    table.rotate(expected, 5);
    table.reserve(10);
    {
        const support::Allocations::Count count;
        table.reserve(10);
        table.reserve(3);
        EXPECT_EQ(count.allocations(), 0);
    }
    {
        const support::Allocations::Failure failure(0);
        EXPECT_THROW(table.reserve(11), std::bad_alloc);
    }
    EXPECT_THROW(castle::RotaryTable<T>(1 << 22).reserve(Index(1) << 40), std::bad_alloc);
    EXPECT_EQ(table.reserved(), 10);
    EXPECT_EQ(table.bytes(), 32 * 8 + 10 * 64 * Index(sizeof(T)));
    castle::RotaryTable<T> moved = std::move(table);
    moved.rotate(x, 5);
    EXPECT_TRUE(support::same_bits(x, expected));
}

TEST(RopeErrors, OfATableNameWhatIsWrong) {
    using Table = castle::RotaryTable<float>;
    const auto making = [](Index d, double base, Index reserved) {
        return support::message<std::invalid_argument>([&] { Table(d, base, reserved); });
    };
    EXPECT_EQ(making(7, 10000, 0), "castle::RotaryTable: d is 7 but must be even and at least 2");
    EXPECT_EQ(making(0, 10000, 0), "castle::RotaryTable: d is 0 but must be even and at least 2");
    EXPECT_EQ(making(-2, 10000, 0), "castle::RotaryTable: d is -2 but must be even and at least 2");
    EXPECT_EQ(making(1 << 25, 10000, 0), "castle::RotaryTable: d is 33554432 but must not exceed 16777216");
    EXPECT_EQ(making(8, 0.5, 0),
              "castle::RotaryTable: the base of the rotary embedding is 0.5 but must be at least 1 and finite");
    EXPECT_EQ(making(8, 10000, -1), "castle::RotaryTable: positions is -1 but must be at least 0");
    EXPECT_NE(making(8, 10000, castle::unlimited).find("positions"), std::string::npos);

    const Table table(8);
    const Matrix<float> ones = Matrix<float>::Ones(3, 8);
    // What both directions say.
    const auto rotating = [&](Index cols, const auto& at) {
        Matrix<float> x = Matrix<float>::Ones(3, cols);
        const std::string words = support::message<std::invalid_argument>([&] { table.rotate(x, at); });
        EXPECT_EQ(support::message<std::invalid_argument>([&] { table.rotate_back(x, at); }), words);
        EXPECT_TRUE(support::same_bits(x, Matrix<float>(Matrix<float>::Ones(3, cols))));
        return words;
    };
    constexpr Index most = Index(1) << 40;
    EXPECT_EQ(rotating(6, Index(0)),
              "castle::RotaryTable: x is [3, 6] but must be [3, 8] for 3 tokens (the rows of x) and a table of d 8");
    EXPECT_EQ(rotating(6, std::vector<Index>{1, 2, 3}),
              "castle::RotaryTable: x is [3, 6] but must be [3, 8] for 3 tokens (the rows of x) and a table of d 8");
    EXPECT_EQ(rotating(8, Index(-1)), "castle::RotaryTable: first_position is -1 but must be at least 0");
    EXPECT_EQ(rotating(8, most - 1),
              "castle::RotaryTable: first_position is 1099511627775 and x has 3 rows but no position may exceed "
              "1099511627776");
    EXPECT_NE(rotating(8, castle::unlimited).find("first_position"), std::string::npos);
    EXPECT_EQ(rotating(8, std::vector<Index>{1, 2}), "castle::RotaryTable: positions has 2 elements but x has 3 rows");
    EXPECT_EQ(rotating(8, std::vector<Index>{1, 2, -3}),
              "castle::RotaryTable: positions[2] is -3 but must be at least 0 and must not exceed 1099511627776");
    EXPECT_EQ(rotating(8, std::vector<Index>{1, most + 1, 3}),
              "castle::RotaryTable: positions[1] is 1099511627777 but must be at least 0 and must not exceed "
              "1099511627776");

    Matrix<float> x = ones;
    table.rotate(x, most - 2);
    Matrix<float> none(0, 8);
    table.rotate(none, most);
    table.rotate(none, std::span<const Index>());
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
