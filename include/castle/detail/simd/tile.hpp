// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>

#include <castle/detail/simd/pair_products.hpp>
#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A matrix operand that is read one number at a time: element (i, k) is data[i * row + k * col].
template <Scalar T>
struct Operand {
    const T* data;
    Index row;
    Index col;

    Operand rows_from(Index i) const { return {data + i * row, row, col}; }
    Operand cols_from(Index k) const { return {data + k * col, row, col}; }
};

// The same for products of pairs: elements (i, k) and (i, k + 1), k being even, lie side by side from
// data[i * row + k * col] on.
template <Scalar T>
struct PairOperand {
    const T* data;
    Index row;
    Index col;

    PairOperand rows_from(Index i) const { return {data + i * row, row, col}; }
    PairOperand cols_from(Index k) const { return {data + k * col, row, col}; }
};

// A half-open range of columns of a panel.
struct ColumnRange {
    Index begin;
    Index end;
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

// The tile for a height and a number of packets that generic lambdas get as constants.
template <ComputeScalar T, class Height, class Packets>
using TileOf = Tile<T, constant<Height>, constant<Packets>>;

// The tile that fills the registers and leaves room for the operands.
inline constexpr int tile_rows = 6;
template <ComputeScalar T>
inline constexpr int tile_packets = Simd<T>::registers >= 32 ? 4 : 2;

// With one or two rows the tile may be wider: it then reads wide rows of b in one go, as memory likes it, and has
// enough chains for the multipliers not to wait for each other. One row takes as many bytes of b whatever it is stored
// as.
template <ComputeScalar T, int R, Scalar B = T>
inline constexpr int widest_tile = tile_packets<T>*(R == 1   ? 2 * int(sizeof(T) / sizeof(B))
                                                    : R == 2 ? 2
                                                             : 1);

// Calls f(rows, first) for tiles that cover rows [0, n), the highest first; the height comes as a constant. There are
// but four heights, since each is a copy of the code. Eight rows are two tiles of four: one of two would leave the
// multipliers waiting for each other. None is higher than `highest`.
template <class F>
EIGEN_ALWAYS_INLINE void for_row_tiles(Index n, const F& f, Index highest = tile_rows) {
    Index first = 0;
    const auto call = [&](auto height) CASTLE_INLINE_LAMBDA {
        f(height, first);
        first += height;
    };
    while (first < n) {
        const Index left = n - first;
        if (left >= tile_rows && left != 8 && highest >= tile_rows) {
            call(std::integral_constant<int, tile_rows>{});
        } else if (left >= 4 && highest >= 4) {
            call(std::integral_constant<int, 4>{});
        } else if (left >= 2) {
            call(std::integral_constant<int, 2>{});
        } else {
            call(std::integral_constant<int, 1>{});
        }
    }
}

// Calls f(packets, first) for tiles that cover columns [first, n), a multiple of the packet width, from the left: as
// many as there are of `Packets` packets, then narrower ones. The number of packets comes as a constant.
template <ComputeScalar T, int Packets = tile_packets<T>, class F>
EIGEN_ALWAYS_INLINE void for_column_tiles(Index n, const F& f, Index first = 0) {
    constexpr Index wide = Packets * Simd<T>::width;
    for (; first + wide <= n; first += wide) f(std::integral_constant<int, Packets>{}, first);
    if constexpr (Packets > 1) for_column_tiles<T, (Packets > tile_packets<T> ? tile_packets<T> : 1)>(n, f, first);
}

// The same for a number of columns that is known: tiles of one width, the largest that leaves no rest.
template <ComputeScalar T, Index Cols, int Packets = tile_packets<T>, class F>
EIGEN_ALWAYS_INLINE void for_column_tiles(const F& f) {
    constexpr int packets = [] {
        int most = Packets;
        while (Cols % (most * Simd<T>::width) != 0) most /= 2;
        return most;
    }();
    static_assert(packets > 0);
    for (Index first = 0; first < Cols; first += packets * Simd<T>::width) {
        f(std::integral_constant<int, packets>{}, first);
    }
}

// Calls f with the first column of every packet of a row, in order, several of them within one step of a loop.
template <ComputeScalar T, Index Cols, class F>
EIGEN_ALWAYS_INLINE void for_packets(const F& f) {
    constexpr Index width = Simd<T>::width;
    constexpr int together = int(std::min<Index>(4, Cols / width));
    for (Index c = 0; c < Cols; c += together * width) {
        unroll<together>([&](auto i) CASTLE_INLINE_LAMBDA { f(c + i * width); });
    }
}

// c[rows, Cols] = a b, with n rows of b.
//
// The products of whole matrices are ordinary functions, one for all who call them: inlined into each of them, with
// tiles of every height, they would take most of the time to compile.
template <Index Cols, class Left, Scalar B, ComputeScalar T>
void multiply(Index rows, Index n, Left a, const B* b, Index b_stride, T* c, Index c_stride,
              Index highest = tile_rows) {
    const auto tiles = [&](auto height, Index i) {
        for_column_tiles<T, Cols, widest_tile<T, constant<decltype(height)>, B>>([&](auto packets, Index j) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.set_zero();
            tile.multiply_add(a.rows_from(i), b + j, b_stride, n);
            tile.store(c + i * c_stride + j, c_stride);
        });
    };
    for_row_tiles(rows, tiles, highest);
}

// The same for a few columns, a multiple of the packet width. Tiles of one packet, for the sake of the time to compile.
template <ComputeScalar T>
void multiply_columns(Index rows, Index n, Operand<T> a, Index cols, const T* b, Index b_stride, T* c, Index c_stride) {
    for_row_tiles(rows, [&](auto height, Index i) {
        for_column_tiles<T, 1>(cols, [&](auto packets, Index j) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.set_zero();
            tile.multiply_add(a.rows_from(i), b + j, b_stride, n);
            tile.store(c + i * c_stride + j, c_stride);
        });
    });
}

// c[rows, Cols] += a b, with n rows of b. Rows of a lie AStride elements apart, those of b and c Stride.
template <Index Cols, Index AStride, Index Stride, Scalar A, Scalar B, ComputeScalar T>
void multiply_add(Index rows, Index n, const A* a, const B* b, T* c) {
    for_row_tiles(rows, [&](auto height, Index i) {
        for_column_tiles<T, Cols>([&](auto packets, Index j) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.load(c + i * Stride + j, Stride);
            tile.multiply_add(Operand<A>{a + i * AStride, AStride, 1}, b + j, Stride, n);
            tile.store(c + i * Stride + j, Stride);
        });
    });
}

// The same with products of pairs of H: of rows of a that are in float as many are rounded as go through together.
template <Scalar H, Index Cols, Index AStride, Index Stride, Scalar A>
void multiply_add_pairs(Index rows, Index n, const A* a, const H* b, float* c) {
    for_row_tiles(rows, [&](auto height, Index i) {
        alignas(64) H rounded[std::same_as<A, H> ? 1 : constant<decltype(height)> * AStride];
        PairOperand<H> left{rounded, AStride, 1};
        if constexpr (std::same_as<A, H>) {
            left.data = a + i * AStride;
        } else {
            for (Index r = 0; r < height; ++r) round_row(a + (i + r) * AStride, n, rounded + r * AStride);
        }
        for_column_tiles<float, Cols>([&](auto packets, Index j) {
            TileOf<float, decltype(height), decltype(packets)> tile;
            tile.load(c + i * Stride + j, Stride);
            tile.multiply_add(left, b + j, Stride, n);
            tile.store(c + i * Stride + j, Stride);
        });
    });
}

// As multiply_add where row k of b counts only in the columns ranges[k].
template <Index Cols, Index AStride, Index Stride, Scalar A, Scalar B, ComputeScalar T>
void multiply_add_within(Index rows, Index n, const A* a, const B* b, T* c, const ColumnRange* ranges) {
    for_row_tiles(rows, [&](auto height, Index i) {
        for_column_tiles<T, Cols>([&](auto packets, Index j) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.load(c + i * Stride + j, Stride);
            tile.multiply_add_within(Operand<A>{a + i * AStride, AStride, 1}, b + j, Stride, n, j,
                                     [ranges](Index k) { return ranges[k]; });
            tile.store(c + i * Stride + j, Stride);
        });
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
