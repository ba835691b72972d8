// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/pair_products.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/state/block_factors.hpp>

#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/poison.hpp"
#include "support/runs.hpp"
#include "support/tolerances.hpp"

// Products of pairs, where the processor has them: what one instruction does, and what tiles make of it. Right factors
// may be in float, and are rounded on the way.
namespace {

using castle::bfloat16;
using castle::Index;
using castle::Matrix;
using namespace support;
namespace detail = castle::detail;
using S = detail::Simd<float>;
constexpr Index width = S::width;

// What all of this file is about, of a type that depends on the test's, so that a build without it need not compile.
template <class B>
using PairsFor = detail::PairProducts<std::conditional_t<std::is_void_v<B>, float, bfloat16>>;

template <class B>
class Pairs : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!detail::multiplies_pairs<bfloat16>) GTEST_SKIP() << "this build has no dot products of bfloat16";
    }
};
using RightFactors = ::testing::Types<bfloat16, float>;
TYPED_TEST_SUITE(Pairs, RightFactors);

double rounded(bfloat16 x) { return double(detail::widened(x)); }
double rounded(float x) { return rounded(detail::narrowed<bfloat16>(x)); }

template <class B>
Matrix<B> random_matrix(Random& random, Index rows, Index cols) {
    Matrix<B> m(rows, cols);
    fill_normal(random, m);
    return m;
}

// Rows of a product's left factor, in both of their layouts: with k side by side, and in pairs of k.
struct Left {
    Index rows, n;
    std::vector<bfloat16> by_row, by_pair;

    explicit Left(const Matrix<bfloat16>& a)
        : rows(a.rows()),
          n(a.cols()),
          by_row(std::size_t(rows * stride()), nan()),
          by_pair(std::size_t(rows * stride()), nan()) {
        for (Index i = 0; i < rows; ++i) {
            for (Index k = 0; k < n; ++k) {
                by_row[std::size_t(i * stride() + k)] = a(i, k);
                by_pair[std::size_t(k / 2 * 2 * rows + 2 * i + k % 2)] = a(i, k);
            }
        }
    }
    // What is beside the last of an odd number is not to be read.
    static bfloat16 nan() { return std::bit_cast<bfloat16>(std::uint16_t(0x7fc0)); }
    Index stride() const { return detail::round_up(std::max<Index>(n, 1), 2); }
    detail::PairOperand<bfloat16> rows_side_by_side() const { return {by_row.data(), stride(), 1}; }
    detail::PairOperand<bfloat16> in_pairs() const { return {by_pair.data(), 2, rows}; }
};

TYPED_TEST(Pairs, InstructionsDoWhatTheySay) {
    using P = PairsFor<TypeParam>;
    if constexpr (P::exist) {
        Random random(1);
        for (int trial = 0; trial < 100; ++trial) {
            const Matrix<TypeParam> rows = random_matrix<TypeParam>(random, 2, 2 * width);
            const Matrix<bfloat16> left = random_matrix<bfloat16>(random, 1, 2);
            const Matrix<float> start = random_matrix<float>(random, 1, width);
            const TypeParam *first = rows.row(0).data(), *second = rows.row(1).data();
            typename P::Pairs low, high;
            P::load_two(first, second, low, high);
            const auto x = P::broadcast(left.data());
            const auto expect = [&](typename P::Pairs a, typename P::Pairs b, Index skip, bool has_second) {
                std::array<float, std::size_t(width)> sum;
                S::store(sum.data(), P::add_dot(a, b, S::load(start.data())));
                for (Index j = 0; j < width; ++j) {
                    const double one = rounded(left(0, 0)) * rounded(rows(0, skip + j)),
                                 other = has_second ? rounded(left(0, 1)) * rounded(rows(1, skip + j)) : 0;
                    const double size = std::abs(start(0, j)) + std::abs(one) + std::abs(other);
                    ASSERT_LE(std::abs(double(sum[std::size_t(j)]) - (double(start(0, j)) + one + other)),
                              4 * unit_roundoff<float> * size);
                }
            };
            expect(x, P::load(first, second), 0, true);
            expect(x, low, 0, true);
            expect(x, high, width, true);
            expect(x, P::load_alone(first), 0, false);
            expect(P::first_of(x), low, 0, false);
            expect(x, P::first_of(high), width, false);
            const auto every = S::less(S::zero(), S::set(1));
            expect(P::both(x, P::mask_of(every, every)), low, 0, true);
            expect(P::both(x, P::mask_of(every, S::zero())), low, 0, false);
        }
    }
}

// As numbers are rounded where they are stored; what is below the normal ones becomes 0 or stays.
TYPED_TEST(Pairs, FloatsAreRoundedAsTheyAreStored) {
    using P = PairsFor<TypeParam>;
    if constexpr (P::exist) {
        std::vector<float> numbers;
        for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
            for (const std::uint32_t low : {0x0000u, 0x7fffu, 0x8000u, 0x8001u}) {
                const float x = std::bit_cast<float>(bits << 16 | low);
                if (std::isnan(x) || std::abs(x) >= std::numeric_limits<float>::min() || x == 0) numbers.push_back(x);
            }
        }
        while (Index(numbers.size()) % width != 0) numbers.push_back(1);
        std::vector<bfloat16> alone(numbers.size());
        detail::round_row(numbers.data(), Index(numbers.size()), alone.data());
        const auto bits_of = [](bfloat16 x) { return std::bit_cast<std::uint16_t>(x); };
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            if (std::isnan(numbers[i])) {
                ASSERT_TRUE(std::isnan(detail::widened(alone[i])));
            } else {
                ASSERT_EQ(bits_of(alone[i]), bits_of(detail::narrowed<bfloat16>(numbers[i]))) << numbers[i];
            }
        }
        for (std::size_t first = 0; first < numbers.size(); first += std::size_t(width)) {
            std::array<bfloat16, 2 * std::size_t(width)> pairs;
            P::store(pairs.data(), P::load(numbers.data() + first, numbers.data() + first));
            for (std::size_t j = 0; j < pairs.size(); ++j) {
                ASSERT_EQ(bits_of(pairs[j]), bits_of(alone[first + j / 2]));
            }
        }
    }
}

// R rows by V packets, of rows of b that count for some rows and columns of the tile only, as counts(i, k, j) says;
// whatever does not count is NaN in b or, where a row of the tile leaves out a whole row of b, in a.
template <int R, int V, class B, class Counts, class Apply>
void expect_only_what_counts(Random& random, Index n, const Counts& counts, const Apply& run) {
    constexpr Index cols = V * width;
    const Matrix<float> start = random_matrix<float>(random, R, cols);
    Matrix<bfloat16> a = random_matrix<bfloat16>(random, R, n);
    // Rows in pairs are there to be read.
    Matrix<B> b = random_matrix<B>(random, detail::round_up(n, 2), cols);
    if (n % 2 != 0) b.row(n).setConstant(B(std::numeric_limits<float>::quiet_NaN()));
    poison_uncounted(counts, n, a, b);
    const Left left(a);
    const auto product = [&](const detail::PairOperand<bfloat16>& operand) {
        return written<float>(R, cols, [&](castle::MatrixView<float> view) {
            detail::Tile<float, R, V> tile;
            tile.load(start.data(), cols);
            run(tile, operand, b.data(), b.outerStride());
            tile.store(view.data(), view.outer_stride());
        });
    };
    const Matrix<float> c = product(left.rows_side_by_side());
    ASSERT_TRUE(same_bits(c, product(left.in_pairs())));
    for (Index i = 0; i < R; ++i) {
        for (Index j = 0; j < cols; ++j) {
            double sum = double(start(i, j)), absolute = std::abs(sum);
            Index terms = 0;
            for (Index k = 0; k < n; ++k) {
                if (!counts(i, k, j)) continue;
                const double term = rounded(a(i, k)) * rounded(b(k, j));
                sum += term;
                absolute += std::abs(term);
                ++terms;
            }
            ASSERT_LE(std::abs(double(c(i, j)) - sum), gamma<float>(4 * double(terms + 1)) * absolute)
                << "(" << i << ", " << j << ") is " << c(i, j) << ", must be " << sum;
            if (terms == 0) {
                ASSERT_TRUE(same_bits(c(i, j), start(i, j)));
            }
        }
    }
}

template <int R, int V, class B>
void check_tiles(Random& random) {
    using Tile = detail::Tile<float, R, V>;
    for (const Index n : {0, 1, 2, 5, 32, 65}) {
        expect_only_what_counts<R, V, B>(
            random, n, [](Index, Index, Index) { return true; },
            [&](Tile& tile, auto a, const B* b, Index stride) { tile.multiply_add(a, b, stride, n); });
    }
    for (Index common = 0; common <= 9; ++common) {
        for (Index more = common % 2; more <= R + 1; more += 2) {
            expect_only_what_counts<R, V, B>(
                random, common + more, [&](Index i, Index k, Index) { return k < common + i; },
                [&](Tile& tile, auto a, const B* b, Index stride) {
                    tile.multiply_add_steps(a, b, stride, common, more);
                });
        }
        for (const Index first_col : {Index(0), Tile::cols, 3 * Tile::cols}) {
            std::vector<detail::ColumnRange> ranges;
            for (Index k = 0; k < common + R - 1; ++k) {
                const Index begin = std::max<Index>(first_col + random.integer(-3, Tile::cols + 3), 0);
                ranges.push_back({begin, std::max(begin, first_col + random.integer(-3, Tile::cols + 3))});
            }
            const auto range = [&](Index k) { return ranges[std::size_t(k)]; };
            const auto is_within = [&](Index k, Index j) {
                return first_col + j >= range(k).begin && first_col + j < range(k).end;
            };
            expect_only_what_counts<R, V, B>(
                random, common, [&](Index, Index k, Index j) { return is_within(k, j); },
                [&](Tile& tile, auto a, const B* b, Index stride) {
                    tile.multiply_add_within(a, b, stride, common, first_col, range);
                });
            expect_only_what_counts<R, V, B>(
                random, common + R - 1, [&](Index i, Index k, Index j) { return k < common + i && is_within(k, j); },
                [&](Tile& tile, auto a, const B* b, Index stride) {
                    tile.multiply_add_steps_within(a, b, stride, common, first_col, range);
                });
        }
    }
}

TYPED_TEST(Pairs, ProductsNeverTouchWhatIsLeftOut) {
    if constexpr (PairsFor<TypeParam>::exist) {
        for (std::uint64_t seed = 1; seed <= 5; ++seed) {
            SCOPED_TRACE(describe("seed ", seed));
            Random random(seed);
            check_tiles<1, 1, TypeParam>(random);
            check_tiles<2, 4, TypeParam>(random);
            check_tiles<5, 3, TypeParam>(random);
            check_tiles<detail::tile_rows, detail::tile_packets<float>, TypeParam>(random);
            if (this->HasFailure()) return;
        }
    }
}

// An element's bits do not depend on the tile, on its place in it, nor on which other elements leave terms out.
TYPED_TEST(Pairs, BitsDoNotDependOnTheTilesShape) {
    if constexpr (PairsFor<TypeParam>::exist) {
        constexpr Index cols = detail::panel_size;
        Random random(2);
        for (Index rows = 1; rows <= 20; ++rows) {
            for (const Index n : {1, 2, 7, 32, 65}) {
                const Left left(random_matrix<bfloat16>(random, rows, n));
                const Matrix<TypeParam> b = random_matrix<TypeParam>(random, detail::round_up(n, 2), cols);
                const auto a = left.rows_side_by_side();
                Matrix<float> whole(rows, cols), one_by_one(rows, cols), within(rows, cols);
                detail::multiply<cols>(rows, n, a, b.data(), cols, whole.data(), cols);
                within.setZero();
                for (Index i = 0; i < rows; ++i) {
                    for (Index j = 0; j < cols; j += width) {
                        detail::multiply<width>(1, n, a.rows_from(i), b.data() + j, cols, &one_by_one(i, j), cols);
                    }
                }
                const std::vector<std::uint64_t> words(std::size_t(n), ~std::uint64_t(0));
                detail::multiply_add_where<cols>(rows, n, a, b.data(), cols, within.data(), cols, words.data());
                EXPECT_TRUE(same_bits(whole, one_by_one));
                EXPECT_TRUE(same_bits(whole, within));
            }
        }
    }
}

// Factors of a block: what they are made of, rounded, in pairs, for any part of its tokens.
TYPED_TEST(Pairs, FactorsOfABlockAreItsOperandsRounded) {
    if constexpr (PairsFor<TypeParam>::exist) {
        Random random(3);
        for (const Index d : {1, 2, 7, 64}) {
            const detail::OperandSizes sizes{.d = d, .group = 3, .has_lookahead = true};
            std::vector<float> memory(std::size_t(sizes.elements()));
            for (float& x : memory) x = float(random.normal());
            const detail::BlockOperands<float> operands(memory.data(), sizes);
            std::vector<float> own(std::size_t(detail::BlockFactors<bfloat16>::elements(sizes)), NAN);
            const detail::BlockFactors<bfloat16> factors(operands, sizes, own.data());
            Index first = 0;
            for (const Index count : random_split(random, detail::block_size)) {
                factors.make(first, first + count);
                first += count;
            }
            const auto expect = [&](const detail::PairOperand<bfloat16>& f, Index i, Index k, float from) {
                const double x = rounded(f.data[i * f.row + k / 2 * 2 * f.col + k % 2]);
                ASSERT_EQ(x, rounded(from));
            };
            for (Index i = 0; i < detail::block_size; ++i) {
                for (Index k = 0; k < d; ++k) {
                    const Index at = k * detail::block_size + i;
                    for (Index h = 0; h < 3; ++h) {
                        expect(factors.queries(h), i, k, operands.causal_queries(h)[at]);
                        expect(factors.queries_of_token(i, 0), h, k, operands.causal_queries(h)[at]);
                    }
                    expect(factors.lookahead_keys(), i, k, operands.lookahead_keys()[at]);
                    expect(factors.lookahead_values(), k, i, operands.lookahead_values()[at]);
                }
                for (Index j = 0; j <= i; ++j) {
                    for (Index h = 0; h < 3; ++h) {
                        const Index at = i * detail::block_size + j;
                        expect(factors.triangle(h), i, j, operands.triangle(h)[at]);
                        expect(factors.triangle_of_token(i, 0), h, j, operands.triangle(h)[at]);
                    }
                }
            }
        }
    }
}

}  // namespace
