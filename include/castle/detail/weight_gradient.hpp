// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/layout.hpp>
#include <castle/detail/tile.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The columns of panel p of x^T y, with x [n, rows] and y [n, cols]: add(i, sums) gets the panel's part of row i. Every
// number is one chain of fused multiply-adds along n. The rows of y are readable up to a whole panel.
template <Scalar T, class Add>
void transposed_product_panel(ConstMatrixView<T> x, ConstMatrixView<T> y, Index p, const Add& add) {
    alignas(64) T sums[tile_rows * panel_size];
    for_row_tiles(x.cols(), [&](auto height, Index i) {
        for_column_tiles<T, panel_size>([&](auto packets, Index c) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.set_zero();
            tile.multiply_add(Operand<T>{x.row(0) + i, 1, x.outer_stride()}, y.row(0) + p * panel_size + c,
                              y.outer_stride(), x.rows());
            tile.store(sums + c, panel_size);
        });
        for (Index r = 0; r < height; ++r) add(i + r, sums + r * panel_size);
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
