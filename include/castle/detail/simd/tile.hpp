// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <castle/detail/simd/pair_products.hpp>
#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A matrix operand of which so many numbers are read at a time, side by side: element (i, k), k being a multiple of
// `together`, is data[i * row + k * col].
template <Scalar T, int together = 1>
struct Operand {
    const T* data;
    Index row;
    Index col;

    Operand rows_from(Index i) const { return {data + i * row, row, col}; }
    Operand cols_from(Index k) const { return {data + k * col, row, col}; }
};

// For products of pairs.
template <Scalar T>
using PairOperand = Operand<T, 2>;

// A half-open range of columns of a panel.
struct ColumnRange {
    Index begin;
    Index end;
};

// The same in an eighth of the bytes, for tables on the stack.
class SmallRange {
  public:
    SmallRange() = default;
    SmallRange(ColumnRange range)
        : begin_(static_cast<std::uint8_t>(range.begin)), end_(static_cast<std::uint8_t>(range.end)) {}
    operator ColumnRange() const { return {begin_, end_}; }

  private:
    static_assert(panel_size <= 255);
    std::uint8_t begin_;
    std::uint8_t end_;
};

// R rows by V packets of accumulators that live in registers while a product runs. Every number of the tile is one
// chain of fused multiply-adds in the order of k, so its bits do not depend on R, V or the number's place in the tile.
// The two factors may be stored as A and B, which are widened where they are read.
template <ComputeScalar T, int R, int V>
class Tile {
    using S = Simd<T>;
    using Packet = typename S::Packet;

  public:
    static constexpr Index cols = V * S::width;

    EIGEN_ALWAYS_INLINE void set_zero() {
        each([&](auto i, auto v) CASTLE_INLINE_LAMBDA { acc_[i][v] = S::zero(); });
    }
    EIGEN_ALWAYS_INLINE void load(const T* c, Index stride) {
        each([&](auto i, auto v) CASTLE_INLINE_LAMBDA { acc_[i][v] = S::load(c + i * stride + v * S::width); });
    }
    // Loads with every row i multiplied by factor[i].
    EIGEN_ALWAYS_INLINE void load_scaled(const T* c, Index stride, const T* factor) {
        each([&](auto i, auto v) CASTLE_INLINE_LAMBDA {
            acc_[i][v] = S::mul(S::load(c + i * stride + v * S::width), S::set(factor[i]));
        });
    }
    EIGEN_ALWAYS_INLINE void store(T* c, Index stride) const {
        each([&](auto i, auto v) CASTLE_INLINE_LAMBDA { S::store(c + i * stride + v * S::width, acc_[i][v]); });
    }

    EIGEN_ALWAYS_INLINE void negate() {
        each([&](auto i, auto v) CASTLE_INLINE_LAMBDA { acc_[i][v] = S::negate(acc_[i][v]); });
    }

    // tile += a b for the n rows of b. The one long product, and so the one whose rows are kept in registers by force.
    template <class A, class B>
    EIGEN_ALWAYS_INLINE void multiply_add(Operand<A> a, const B* b, Index stride, Index n) {
        for (Index k = 0; k < n; ++k) {
            Packet row[V];
            unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { row[v] = S::opaque(S::load(b + k * stride + v * S::width)); });
            unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
                const Packet x = S::broadcast(a.data + i * a.row + k * a.col);
                unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { acc_[i][v] = S::fma(x, row[v], acc_[i][v]); });
            });
        }
    }

    template <Scalar H, class B>
    EIGEN_ALWAYS_INLINE void multiply_add(PairOperand<H> a, const B* b, Index stride, Index n) {
        const Index whole = round_down(n, 2);
        for (Index k = 0; k < whole; k += 2) add_pairs(a.cols_from(k), b + k * stride, stride);
        if (whole < n) add_alone(a.cols_from(whole), b + whole * stride);
    }

    // The same where row i of the tile takes `common` + i rows of b, but no more than `common` + `more`.
    template <class A, class B>
    EIGEN_ALWAYS_INLINE void multiply_add_steps(Operand<A> a, const B* b, Index stride, Index common, Index more) {
        multiply_add(a, b, stride, common);
        multiply_add_triangle(a.cols_from(common), b + common * stride, stride, more);
    }
    // The most that a row may take is even, or there is no more than is common.
    template <Scalar H, class B>
    EIGEN_ALWAYS_INLINE void multiply_add_steps(PairOperand<H> a, const B* b, Index stride, Index common, Index more) {
        if (more == 0) {
            multiply_add(a, b, stride, common);
            return;
        }
        const Index whole = round_down(common, 2);
        multiply_add(a, b, stride, whole);
        if (whole == common) {
            add_triangle_of_pairs<0>(a.cols_from(whole), b + whole * stride, stride, more);
        } else {
            add_triangle_of_pairs<1>(a.cols_from(whole), b + whole * stride, stride, more + 1);
        }
    }

    // The strictly lower triangle that remains where row i of the tile takes i rows of b more than row 0 does:
    // tile[i] += sum_{k < i} a(i, k) b[k], but only the first n rows of b exist.
    template <class A, class B>
    EIGEN_ALWAYS_INLINE void multiply_add_triangle(Operand<A> a, const B* b, Index stride, Index n) {
        unroll<R - 1>([&](auto k) CASTLE_INLINE_LAMBDA {
            if (k < n) {
                Packet row[V];
                unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { row[v] = S::load(b + k * stride + v * S::width); });
                unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
                    constexpr int steps = constant<decltype(i)>, step = constant<decltype(k)>;
                    if constexpr (step < steps) {
                        const Packet x = S::broadcast(a.data + i * a.row + k * a.col);
                        unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { acc_[i][v] = S::fma(x, row[v], acc_[i][v]); });
                    }
                });
            }
        });
    }

    // The triangle that comes before the rows of b which all rows of the tile take, where row i of the tile takes the
    // rows of b from i on: tile[i] += sum_{i <= k < R - 1} a(i, k) b[k].
    EIGEN_ALWAYS_INLINE void multiply_add_leading_triangle(Operand<T> a, const T* b, Index stride) {
        unroll<R - 1>([&](auto k) CASTLE_INLINE_LAMBDA {
            Packet row[V];
            unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { row[v] = S::load(b + k * stride + v * S::width); });
            unroll<constant<decltype(k)> + 1>([&](auto i) CASTLE_INLINE_LAMBDA {
                const Packet x = S::broadcast(a.data + i * a.row + k * a.col);
                unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { acc_[i][v] = S::fma(x, row[v], acc_[i][v]); });
            });
        });
    }

    // As multiply_add, but row k of b counts only in the columns range(k), which are numbered from first_col at the
    // tile's left edge. A column left out is not touched, whatever stands there, infinities and NaN included.
    template <class A, class B, class Range>
    EIGEN_ALWAYS_INLINE void multiply_add_within(Operand<A> a, const B* b, Index stride, Index n, Index first_col,
                                                 const Range& range) {
        for (Index k = 0; k < n; ++k) masked_step<0>(a, b, stride, k, first_col, range(k));
    }
    template <Scalar H, class B, class Range>
    EIGEN_ALWAYS_INLINE void multiply_add_within(PairOperand<H> a, const B* b, Index stride, Index n, Index first_col,
                                                 const Range& range) {
        multiply_add_pairs_within(a, b, stride, first_col, range, [n](Index) { return n; });
    }
    // As multiply_add_steps within such ranges, with no end to the steps.
    template <class A, class B, class Range>
    EIGEN_ALWAYS_INLINE void multiply_add_steps_within(Operand<A> a, const B* b, Index stride, Index common,
                                                       Index first_col, const Range& range) {
        multiply_add_within(a, b, stride, common, first_col, range);
        unroll<R - 1>([&](auto k) CASTLE_INLINE_LAMBDA {
            masked_step<constant<decltype(k)> + 1>(a, b, stride, common + k, first_col, range(common + k));
        });
    }
    template <Scalar H, class B, class Range>
    EIGEN_ALWAYS_INLINE void multiply_add_steps_within(PairOperand<H> a, const B* b, Index stride, Index common,
                                                       Index first_col, const Range& range) {
        multiply_add_pairs_within(a, b, stride, first_col, range, [common](Index i) { return common + i; });
    }
    // tile += a b for a pair of rows of b, or for one if the second is not there, in the lanes that first(v) and
    // second(v) leave of packet v.
    template <Scalar H, class B, class First, class Second>
    EIGEN_ALWAYS_INLINE void multiply_add_pair_where(PairOperand<H> a, const B* b, Index stride, bool has_second,
                                                     const First& first, const Second& second) {
        unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
            add_pair_where<0, R>(a, b, stride, v, first(v), has_second ? second(v) : S::zero(), has_second);
        });
    }

  private:
    template <class F>
    static EIGEN_ALWAYS_INLINE void each(const F& f) {
        unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA { unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { f(i, v); }); });
    }

    // tile[i] += a(i) b for pairs a, as broadcast(p) gets them, and packets of pairs of b that load(v, pairs) loads,
    // two at a time where there are. Of few rows each packet is met once, and needs no register for longer.
    template <Scalar H, class Load, class Broadcast>
    EIGEN_ALWAYS_INLINE void add_each(PairOperand<H> a, const Load& load, const Broadcast& broadcast) {
        using P = PairProducts<H>;
        constexpr int loaded = V % 2 == 0 ? 2 : 1;
        constexpr int together = R <= 2 ? loaded : V;
        unroll<V / together>([&](auto group) CASTLE_INLINE_LAMBDA {
            constexpr int first = together * constant<decltype(group)>;
            typename P::Pairs pairs[together];
            unroll<together / loaded>([&](auto j) CASTLE_INLINE_LAMBDA {
                constexpr int skip = loaded * constant<decltype(j)>;
                load(std::integral_constant<int, first + skip>{}, pairs + skip);
            });
            unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
                const auto x = broadcast(a.data + i * a.row);
                unroll<together>([&](auto v) CASTLE_INLINE_LAMBDA {
                    acc_[i][first + v] = P::add_dot(x, pairs[v], acc_[i][first + v]);
                });
            });
        });
    }
    // Of the first two columns of a and rows of b.
    template <Scalar H, class B>
    EIGEN_ALWAYS_INLINE void add_pairs(PairOperand<H> a, const B* b, Index stride) {
        using P = PairProducts<H>;
        add_each(
            a,
            [&](auto v, auto* pairs) CASTLE_INLINE_LAMBDA {
                const B* first = b + v * S::width;
                if constexpr (V % 2 == 0) {
                    P::load_two(first, first + stride, pairs[0], pairs[1]);
                } else {
                    pairs[0] = P::load(first, first + stride);
                }
            },
            [](const H* p) CASTLE_INLINE_LAMBDA { return P::broadcast(p); });
    }
    // Of the first column and row alone.
    template <Scalar H, class B>
    EIGEN_ALWAYS_INLINE void add_alone(PairOperand<H> a, const B* b) {
        using P = PairProducts<H>;
        add_each(
            a,
            [&](auto v, auto* pairs) CASTLE_INLINE_LAMBDA {
                unroll<V % 2 == 0 ? 2 : 1>(
                    [&](auto j) CASTLE_INLINE_LAMBDA { pairs[j] = P::load_alone(b + (v + j) * S::width); });
            },
            [](const H* p) CASTLE_INLINE_LAMBDA { return P::first_of(P::broadcast(p)); });
    }
    // Row i takes i + Extra of the n rows of b, an even number.
    template <int Extra, Scalar H, class B>
    EIGEN_ALWAYS_INLINE void add_triangle_of_pairs(PairOperand<H> a, const B* b, Index stride, Index n) {
        unroll<(R + Extra) / 2>([&](auto pair) CASTLE_INLINE_LAMBDA {
            constexpr int k = 2 * constant<decltype(pair)>;
            if (k < n) {
                unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
                    const auto y =
                        PairProducts<H>::load(b + k * stride + v * S::width, b + (k + 1) * stride + v * S::width);
                    unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
                        constexpr int rest = constant<decltype(i)> + Extra - k;
                        if constexpr (rest > 0) {
                            const auto x = PairProducts<H>::broadcast(a.data + i * a.row + k * a.col);
                            acc_[i][v] = rest == 1 ? PairProducts<H>::add_dot(PairProducts<H>::first_of(x),
                                                                              PairProducts<H>::first_of(y), acc_[i][v])
                                                   : PairProducts<H>::add_dot(x, y, acc_[i][v]);
                        }
                    });
                });
            }
        });
    }
    // Row i takes rows(i) rows of b, which are no fewer for later rows.
    template <Scalar H, class B, class Range, class Rows>
    EIGEN_ALWAYS_INLINE void multiply_add_pairs_within(PairOperand<H> a, const B* b, Index stride, Index first_col,
                                                       const Range& range, const Rows& rows) {
        const Index n = rows(R - 1);
        for (Index k = 0; k < n; k += 2) {
            const bool has_second = k + 1 < n;
            unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
                const Packet first = inside(v, first_col, range(k));
                const Packet second = has_second ? inside(v, first_col, range(k + 1)) : S::zero();
                unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
                    constexpr int row = constant<decltype(i)>;
                    if (k < rows(i)) {
                        add_pair_where<row, row + 1>(a.cols_from(k), b + k * stride, stride, v, first,
                                                     k + 1 < rows(i) ? second : S::zero(), has_second);
                    }
                });
            });
        }
    }
    // Rows [First, End) of packet v, in the lanes of the masks. A lane that both leave out is not touched.
    template <int First, int End, Scalar H, class B, class Number>
    EIGEN_ALWAYS_INLINE void add_pair_where(PairOperand<H> a, const B* b, Index stride, Number v, Packet first,
                                            Packet second, bool has_second) {
        const auto mask = PairProducts<H>::mask_of(first, second);
        const B* packet = b + v * S::width;
        const auto y = PairProducts<H>::both(
            has_second ? PairProducts<H>::load(packet, packet + stride) : PairProducts<H>::load_alone(packet), mask);
        const Packet any = S::either(first, second);
        unroll<End - First>([&](auto i) CASTLE_INLINE_LAMBDA {
            constexpr int row = First + constant<decltype(i)>;
            const auto x = PairProducts<H>::both(PairProducts<H>::broadcast(a.data + row * a.row), mask);
            acc_[row][v] = S::select(any, PairProducts<H>::add_dot(x, y, acc_[row][v]), acc_[row][v]);
        });
    }

    // The lanes of packet v that lie within a range.
    template <class Number>
    static EIGEN_ALWAYS_INLINE Packet inside(Number v, Index first_col, ColumnRange range) {
        // Half a column less, since there is but one comparison, and it is strict.
        const Packet begin = S::set(static_cast<T>(range.begin - first_col) - T(0.5));
        const Packet end = S::set(static_cast<T>(range.end - first_col));
        const Packet column = S::iota(T(v * S::width));
        return S::both(S::less(begin, column), S::less(column, end));
    }

    template <int FirstRow, class A, class B>
    EIGEN_ALWAYS_INLINE void masked_step(Operand<A> a, const B* b, Index stride, Index k, Index first_col,
                                         ColumnRange range) {
        Packet row[V];
        Packet lanes[V];
        unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
            lanes[v] = inside(v, first_col, range);
            row[v] = S::load(b + k * stride + v * S::width);
        });
        unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
            if constexpr (constant<decltype(i)> >= FirstRow) {
                const Packet x = S::broadcast(a.data + i * a.row + k * a.col);
                unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
                    acc_[i][v] = S::select(lanes[v], S::fma(x, row[v], acc_[i][v]), acc_[i][v]);
                });
            }
        });
    }

    Packet acc_[R][V];
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
