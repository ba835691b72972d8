// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/prefetch.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Columns of a panel that belong to one weight matrix, and where the gradient of their row 0 is.
template <ComputeScalar T>
struct WeightRun {
    T* data;
    Index stride;
    Index first;  // in the panel
    Index count;
};

// g += x^T y in the columns of panel p of y, with x [n, rows] and y [n, cols]; runs say where they are, in g. Every
// element is one chain of fused multiply-adds over n, which is added to g at the end.
//
// Rows of x^T y come in blocks. Tokens are taken a few at a time: their part of the panel is copied, since rows of y
// may lie so far apart that they conflict in the cache; a last panel that is not whole is padded with zeros.
template <ComputeScalar T, Scalar X, class Runs>
void add_weight_gradient(ConstMatrixView<X> x, ConstMatrixView<T> y, Index p, const Runs& runs) {
    using S = Simd<T>;
    constexpr Index block = Index(32 / sizeof(T)) * tile_rows;
    constexpr Index chunk = 32;
    alignas(64) T sums[block * panel_size];
    alignas(64) T tokens[chunk * panel_size] = {};
    const Index first_col = p * panel_size;
    const Index count = (std::min)(panel_size, y.cols() - first_col);
    const auto add = [&](Index row, const T* sum) {
        for (const auto& run : runs) {
            T* g = run.data + row * run.stride;
            Index j = 0;
            for (; j + S::width <= run.count; j += S::width) {
                S::store(g + j, S::add(S::load(g + j), S::load(sum + run.first + j)));
            }
            for (; j < run.count; ++j) g[j] += sum[run.first + j];
        }
    };
    for (Index i = 0; i < x.cols(); i += block) {
        const Index rows = (std::min)(block, x.cols() - i);
        for (Index k = 0; k < x.rows(); k += chunk) {
            const Index n = (std::min)(chunk, x.rows() - k);
            if (i == 0 || x.rows() > chunk) {
                for (Index r = 0; r < n; ++r) std::copy_n(y.row(k + r) + first_col, count, tokens + r * panel_size);
            }
            for_row_tiles(rows, [&](auto height, Index row) {
                if (k == 0) {
                    for (Index r = i + row; r < i + row + height; ++r) {
                        for (const auto& run : runs) prefetch(run.data + r * run.stride, run.count);
                    }
                }
                for_column_tiles<T, panel_size>([&](auto packets, Index c) {
                    TileOf<T, decltype(height), decltype(packets)> tile;
                    T* sum = sums + row * panel_size + c;
                    if (k > 0) {
                        tile.load(sum, panel_size);
                    } else {
                        tile.set_zero();
                    }
                    tile.multiply_add(Operand<X>{x.row(k) + i + row, 1, x.outer_stride()}, tokens + c, panel_size, n);
                    tile.store(sum, panel_size);
                });
            });
        }
        for (Index r = 0; r < rows; ++r) add(i + r, sums + r * panel_size);
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
