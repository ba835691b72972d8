// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/product.hpp>

#include "support/generators.hpp"
#include "support/poison.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The register tiles: right sums, bits that do not depend on the tile's shape, and no look at what is left out.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;
namespace detail = castle::detail;

template <class T>
class Tiles : public ::testing::Test {
  protected:
    static Matrix<T> random_matrix(Random& random, Index rows, Index cols) {
        Matrix<T> m(rows, cols);
        fill_normal(random, m);
        return m;
    }
    static detail::Operand<T> operand(const Matrix<T>& m) { return {m.data(), m.outerStride(), 1}; }
    static detail::Operand<T> transposed(const Matrix<T>& m) { return {m.data(), 1, m.outerStride()}; }
};
TYPED_TEST_SUITE(Tiles, support::Scalars);

TYPED_TEST(Tiles, RowTilesCoverEveryRowOnceAndWholeBlocksWithHighOnes) {
    for (Index n = 0; n <= 100; ++n) {
        Index next = 0, least = detail::tile_rows;
        detail::for_row_tiles(n, [&](auto height, Index first) {
            EXPECT_EQ(first, next);
            EXPECT_LE(height, detail::tile_rows);
            next += height;
            least = std::min<Index>(least, height);
        });
        EXPECT_EQ(next, n);
        if (n % detail::block_size == 0) {
            EXPECT_GE(least, 4) << n;
        }
    }
}

TYPED_TEST(Tiles, ColumnTilesCoverEveryPacketOnce) {
    constexpr Index width = detail::Simd<TypeParam>::width;
    for (Index packets = 0; packets <= 40; ++packets) {
        Index next = 0;
        const auto cover = [&](auto count, Index first) {
            EXPECT_EQ(first, next);
            next += count * width;
        };
        detail::for_column_tiles<TypeParam>(packets * width, cover);
        EXPECT_EQ(next, packets * width);
        next = 0;
        detail::for_column_tiles<TypeParam, detail::widest_tile<TypeParam, 1>>(packets * width, cover);
        EXPECT_EQ(next, packets * width);
    }
}

// Calls `f(cols)` with constants: one packet, the sizes that the kernels use, and one that is wider.
template <class T, class F>
void for_widths(const F& f) {
    f(std::integral_constant<Index, detail::Simd<T>::width>{});
    f(std::integral_constant<Index, detail::block_size>{});
    f(std::integral_constant<Index, detail::panel_size>{});
    f(std::integral_constant<Index, 3 * detail::panel_size>{});
}

TYPED_TEST(Tiles, ColumnTilesOfAKnownWidthCoverEveryPacketOnce) {
    for_widths<TypeParam>([](auto cols) {
        Index next = 0;
        detail::for_column_tiles<TypeParam, cols>([&](auto count, Index first) {
            EXPECT_EQ(first, next);
            next += count * detail::Simd<TypeParam>::width;
        });
        EXPECT_EQ(next, cols);
    });
}

TYPED_TEST(Tiles, ProductsAreThoseOfAPlainLoopAndTheirBitsDoNotDependOnTheTilesShape) {
    using T = TypeParam;
    constexpr Index width = detail::Simd<T>::width;
    Random random(1);
    for (Index rows = 0; rows <= 20; ++rows) {
        for (const Index n : {0, 1, 2, 3, 7, 32, 65}) {
            for_widths<T>([&](auto constant) {
                constexpr Index cols = constant;
                SCOPED_TRACE(describe(rows, " rows, ", cols, " columns, ", n, " terms"));
                // With no terms as well there is memory to point into.
                const Matrix<T> a = this->random_matrix(random, rows, std::max<Index>(n, 1));
                const Matrix<T> at = a.transpose();
                const Matrix<T> b = this->random_matrix(random, std::max<Index>(n, 1), cols + 3);
                const auto product = [&](detail::Operand<T> left) {
                    return written<T>(rows, cols, [&](castle::MatrixView<T> c) {
                        detail::multiply<cols>(rows, n, left, b.data(), b.outerStride(), c.data(), c.outer_stride());
                    });
                };
                const Matrix<T> c = product(this->operand(a));
                EXPECT_TRUE(same_bits(c, product(this->transposed(at))));

                Matrix<T> one_packet_at_a_time(rows, cols);
                for (Index i = 0; i < rows; ++i) {
                    for (Index j = 0; j < cols; j += width) {
                        detail::multiply<width>(1, n, this->operand(a).rows_from(i), b.data() + j, b.outerStride(),
                                                one_packet_at_a_time.data() + i * cols + j, cols);
                    }
                }
                EXPECT_TRUE(same_bits(c, one_packet_at_a_time));

                for (Index i = 0; i < rows; ++i) {
                    for (Index j = 0; j < cols; ++j) {
                        double sum = 0, absolute = 0;
                        for (Index k = 0; k < n; ++k) {
                            sum += double(a(i, k)) * double(b(k, j));
                            absolute += std::abs(double(a(i, k)) * double(b(k, j)));
                        }
                        // The plain loop rounds as well.
                        const double bound = (gamma<T>(double(n)) + gamma<double>(double(n))) * absolute;
                        ASSERT_TRUE(std::abs(double(c(i, j)) - sum) <= bound) << "(" << i << ", " << j << ")";
                    }
                }
            });
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Tiles, LoadScaledMultipliesEveryRowWithItsFactor) {
    using T = TypeParam;
    constexpr int rows = 3, packets = 2;
    constexpr Index cols = packets * detail::Simd<T>::width;
    Random random(3);
    const Matrix<T> c = this->random_matrix(random, rows, cols);
    const std::vector<T> factor = {T(2), T(-0.5), T(0)};
    const Matrix<T> out = written<T>(rows, cols, [&](castle::MatrixView<T> view) {
        detail::Tile<T, rows, packets> tile;
        tile.load_scaled(c.data(), cols, factor.data());
        tile.store(view.data(), view.outer_stride());
    });
    for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < cols; ++j) ASSERT_EQ(out(i, j), c(i, j) * factor[std::size_t(i)]);
    }
}

// What the masked members have in common: rows of b that count for some rows and columns of the tile only. `counts(i,
// k, j)` says so; whatever does not count is NaN in b or, where a row of the tile leaves out a whole row of b, in a.
template <class T, int R, int V, class Counts, class Apply>
void expect_only_what_counts(Random& random, Index n, const Counts& counts, const Apply& run) {
    constexpr Index cols = V * detail::Simd<T>::width;
    Matrix<T> start(R, cols), a(R, n), b(n, cols);
    for (Matrix<T>* m : {&start, &a, &b}) fill_normal(random, *m);
    poison_uncounted(counts, n, a, b);
    const Matrix<T> c = written<T>(R, cols, [&](castle::MatrixView<T> view) {
        detail::Tile<T, R, V> tile;
        tile.load(start.data(), cols);
        run(tile, detail::Operand<T>{a.data(), a.outerStride(), 1}, b.data(), b.outerStride());
        tile.store(view.data(), view.outer_stride());
    });
    for (Index i = 0; i < R; ++i) {
        for (Index j = 0; j < cols; ++j) {
            double sum = double(start(i, j)), absolute = std::abs(sum);
            Index terms = 0;
            for (Index k = 0; k < n; ++k) {
                if (!counts(i, k, j)) continue;
                const double product = double(a(i, k)) * double(b(k, j));
                sum += product;
                absolute += std::abs(product);
                ++terms;
            }
            const double bound = (gamma<T>(double(terms + 1)) + gamma<double>(double(terms + 1))) * absolute;
            ASSERT_TRUE(std::abs(double(c(i, j)) - sum) <= bound)
                << "(" << i << ", " << j << ") is " << c(i, j) << ", must be " << sum;
            if (terms == 0) {
                ASSERT_TRUE(same_bits(c(i, j), start(i, j)));
            }
        }
    }
}

// Ranges of columns of every kind: all, none, at either end and in the middle, each over the packets' borders.
template <class T>
std::vector<detail::ColumnRange> some_ranges(Random& random, Index cols, Index first_col, Index n) {
    std::vector<detail::ColumnRange> ranges;
    for (Index k = 0; k < n; ++k) {
        const Index begin = first_col + random.integer(-3, cols + 3);
        const Index end = first_col + random.integer(-3, cols + 3);
        ranges.push_back({std::max<Index>(begin, 0), std::max<Index>(begin, std::max<Index>(end, 0))});
    }
    return ranges;
}

template <class T, int R, int V>
void check_masks(Random& random) {
    using Tile = detail::Tile<T, R, V>;
    const auto within = [](const std::vector<detail::ColumnRange>& ranges, Index first_col, Index k, Index j) {
        const detail::ColumnRange range = ranges[std::size_t(k)];
        return first_col + j >= range.begin && first_col + j < range.end;
    };
    for (const Index first_col : {Index(0), Tile::cols, 3 * Tile::cols}) {
        for (const Index n : {0, 1, 5, 32}) {
            const auto ranges = some_ranges<T>(random, Tile::cols, first_col, n);
            expect_only_what_counts<T, R, V>(
                random, n, [&](Index, Index k, Index j) { return within(ranges, first_col, k, j); },
                [&](Tile& tile, detail::Operand<T> a, const T* b, Index stride) {
                    tile.multiply_add_within(a, b, stride, n, first_col,
                                             [&](Index k) { return ranges[std::size_t(k)]; });
                });
        }
        const auto ranges = some_ranges<T>(random, Tile::cols, first_col, R);
        expect_only_what_counts<T, R, V>(
            random, R, [&](Index i, Index k, Index j) { return k < i && within(ranges, first_col, k, j); },
            [&](Tile& tile, detail::Operand<T> a, const T* b, Index stride) {
                tile.multiply_add_steps_within(a, b, stride, 0, first_col,
                                               [&](Index k) { return ranges[std::size_t(k)]; });
            });
    }
    for (Index n = 0; n <= R; ++n) {
        expect_only_what_counts<T, R, V>(
            random, R, [&](Index i, Index k, Index) { return k < i && k < n; },
            [&](Tile& tile, detail::Operand<T> a, const T* b, Index stride) {
                tile.multiply_add_triangle(a, b, stride, n);
            });
    }
}

TYPED_TEST(Tiles, MaskedProductsNeverTouchWhatIsLeftOut) {
    using T = TypeParam;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        SCOPED_TRACE(describe("seed ", seed));
        Random random(seed);
        check_masks<T, 1, 1>(random);
        check_masks<T, 2, 4>(random);
        check_masks<T, 5, 2>(random);
        check_masks<T, detail::tile_rows, detail::tile_packets<T>>(random);
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Tiles, MaskedBitsAreThoseOfTheFullProductWhereAllCounts) {
    using T = TypeParam;
    constexpr int rows = 4, packets = 2;
    constexpr Index cols = packets * detail::Simd<T>::width, n = 17;
    Random random(4);
    const Matrix<T> a = this->random_matrix(random, rows, std::max<Index>(n, 1));
    const Matrix<T> b = this->random_matrix(random, n, cols);
    const auto product = [&](const auto& step) {
        return written<T>(rows, cols, [&](castle::MatrixView<T> view) {
            detail::Tile<T, rows, packets> tile;
            tile.set_zero();
            step(tile);
            tile.store(view.data(), view.outer_stride());
        });
    };
    const Matrix<T> full = product([&](auto& tile) { tile.multiply_add(this->operand(a), b.data(), cols, n); });
    const Matrix<T> masked = product([&](auto& tile) {
        tile.multiply_add_within(this->operand(a), b.data(), cols, n, 0, [](Index) -> detail::ColumnRange {
            return {.begin = 0, .end = detail::Tile<T, rows, packets>::cols};
        });
    });
    EXPECT_TRUE(same_bits(full, masked));
}

}  // namespace
