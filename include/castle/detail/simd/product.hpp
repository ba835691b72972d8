// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>

#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/tile.hpp>

// How tiles cover a matrix, and the products of whole matrices.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

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
        Uninitialized<H, std::same_as<A, H> ? 1 : constant<decltype(height)> * AStride> rounded;
        PairOperand<H> left{rounded.data(), AStride, 1};
        if constexpr (std::same_as<A, H>) {
            left.data = a + i * AStride;
        } else {
            for (Index r = 0; r < height; ++r) round_row(a + (i + r) * AStride, n, rounded.data() + r * AStride);
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
void multiply_add_within(Index rows, Index n, const A* a, const B* b, T* c, const SmallRange* ranges) {
    for_row_tiles(rows, [&](auto height, Index i) {
        for_column_tiles<T, Cols>([&](auto packets, Index j) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.load(c + i * Stride + j, Stride);
            tile.multiply_add_within(Operand<A>{a + i * AStride, AStride, 1}, b + j, Stride, n, j,
                                     [ranges](Index k) -> ColumnRange { return ranges[k]; });
            tile.store(c + i * Stride + j, Stride);
        });
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
