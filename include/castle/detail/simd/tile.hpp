// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

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
    // As multiply_add_triangle within such ranges.
    template <class Range>
    EIGEN_ALWAYS_INLINE void multiply_add_triangle_within(Operand<T> a, const T* b, Index stride, Index first_col,
                                                          const Range& range) {
        unroll<R - 1>([&](auto k) CASTLE_INLINE_LAMBDA {
            masked_step<constant<decltype(k)> + 1>(a, b, stride, k, first_col, range(k));
        });
    }

  private:
    template <class F>
    static EIGEN_ALWAYS_INLINE void each(const F& f) {
        unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA { unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA { f(i, v); }); });
    }

    template <int FirstRow, class A, class B>
    EIGEN_ALWAYS_INLINE void masked_step(Operand<A> a, const B* b, Index stride, Index k, Index first_col,
                                         ColumnRange range) {
        // Half a column less, since there is but one comparison, and it is strict.
        const Packet begin = S::set(static_cast<T>(range.begin - first_col) - T(0.5));
        const Packet end = S::set(static_cast<T>(range.end - first_col));
        Packet row[V];
        Packet inside[V];
        unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
            const Packet column = S::iota(T(v * S::width));
            inside[v] = S::both(S::less(begin, column), S::less(column, end));
            row[v] = S::load(b + k * stride + v * S::width);
        });
        unroll<R>([&](auto i) CASTLE_INLINE_LAMBDA {
            if constexpr (constant<decltype(i)> >= FirstRow) {
                const Packet x = S::broadcast(a.data + i * a.row + k * a.col);
                unroll<V>([&](auto v) CASTLE_INLINE_LAMBDA {
                    acc_[i][v] = S::select(inside[v], S::fma(x, row[v], acc_[i][v]), acc_[i][v]);
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

// The same for a number of columns that is known, and a multiple of the tile's width.
template <ComputeScalar T, Index Cols, int Packets = tile_packets<T>, class F>
EIGEN_ALWAYS_INLINE void for_column_tiles(const F& f) {
    constexpr int packets = int(std::min<Index>(Packets, Cols / Simd<T>::width));
    static_assert(Cols % (packets * Simd<T>::width) == 0);
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
template <Index Cols, Scalar A, Scalar B, ComputeScalar T>
void multiply(Index rows, Index n, Operand<A> a, const B* b, Index b_stride, T* c, Index c_stride,
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

// The same where row k of b counts only in the columns ranges[k].
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
