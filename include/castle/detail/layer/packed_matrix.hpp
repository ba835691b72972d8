// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <iterator>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/prefetch.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/executor.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A weight matrix [rows, cols] in panels of 64 columns, [panel][rows][panel_size], for products x W whose bits do not
// depend on how many rows x has: every element is one chain of fused multiply-adds along the rows of W.
template <Scalar T>
class PackedMatrix {
    using C = Compute<T>;

  public:
    PackedMatrix(Index rows, Index cols) : rows_(rows), cols_(cols), data_(rows * round_up(cols, panel_size)) {}

    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    Index panels() const { return ceil_div(cols_, panel_size); }

    // Columns from first_col on become m, which has all rows, or m^T.
    template <Scalar From>
    void set_cols(Index first_col, const ConstMatrixView<From>& m) {
        for (Index k = 0; k < rows_; ++k) {
            for (Index j = 0; j < m.cols(); ++j) copy_numbers(m.row(k) + j, 1, at(k, first_col + j));
        }
    }
    template <Scalar From>
    void set_cols_transposed(Index first_col, const ConstMatrixView<From>& m) {
        for (Index j = 0; j < m.rows(); ++j) {
            for (Index k = 0; k < rows_; ++k) copy_numbers(m.row(j) + k, 1, at(k, first_col + j));
        }
    }
    Matrix<T> cols_at(Index first_col, Index count) const {
        Matrix<T> m(rows_, count);
        copy_block(0, first_col, m);
        return m;
    }
    // As many rows and columns as m has, from these on.
    void copy_block(Index first_row, Index first_col, const MatrixView<T>& m) const {
        for (Index k = 0; k < m.rows(); ++k) {
            for (Index j = 0; j < m.cols(); ++j) m.row(k)[j] = *at(first_row + k, first_col + j);
        }
    }

    // The columns of panel p of y = x W, with x [n, rows] and y [n, cols], views of any scalar.
    template <class X, Scalar Y>
    void multiply_panel(const X& x, Index p, const MatrixView<Y>& y) const {
        constexpr Index chunk = 4 * tile_rows;
        alignas(64) C product[chunk * panel_size];
        const Index first_col = p * panel_size;
        const Index count = (std::min)(panel_size, cols_ - first_col);
        const T* panel = data_.data() + p * rows_ * panel_size;
        for (Index first = 0; first < x.rows(); first += chunk) {
            const Index n = (std::min)(chunk, x.rows() - first);
            multiply<panel_size>(n, rows_, Operand<typename X::value_type>{x.row(first), x.outer_stride(), 1}, panel,
                                 panel_size, product, panel_size);
            for (Index i = 0; i < n; ++i) {
                copy_numbers(product + i * panel_size, count, y.row(first + i) + first_col);
            }
        }
    }

    // How many panels y = x W^T has, each of 64 rows of W.
    Index transposed_panels() const { return ceil_div(rows_, panel_size); }

    // The columns of panel p of y = x W^T, with x [n, cols] and y [n, rows]: every element is one chain of fused
    // multiply-adds along the columns of W. A few of these at a time are transposed, for many rows of x, and
    // partial sums are kept in y, or in `edge` for a panel that is not whole.
    void multiply_transposed_panel(ConstMatrixView<C> x, Index p, MatrixView<C> y) const {
        constexpr Index chunk = 16 * tile_rows;
        alignas(64) C piece[transposed_cols * panel_size];
        alignas(64) C edge[tile_rows * panel_size];
        const Index first_row = p * panel_size;
        const Index count = (std::min)(panel_size, rows_ - first_row);
        const bool whole = count == panel_size;
        if (!whole) std::fill(std::begin(piece), std::end(piece), C(0));
        for (Index first = 0; first < x.rows(); first += chunk) {
            const Index rows = (std::min)(chunk, x.rows() - first);
            for (Index k = 0; k < cols_; k += transposed_cols) {
                const Index n = (std::min)(transposed_cols, cols_ - k);
                transpose(at(first_row, k), panel_size, count, n, C(1), piece, panel_size);
                for_row_tiles(rows, [&](auto height, Index row) {
                    const Index i = first + row;
                    const Index ahead = (std::min)(i + 2 * height, x.rows());
                    for (Index r = i + height; r < ahead; ++r) prefetch(x.row(r) + k, n);
                    C* out = y.row(i) + first_row;
                    C* sums = whole ? out : edge;
                    const Index stride = whole ? y.outer_stride() : panel_size;
                    if (!whole && k > 0) copy_rows(height, count, out, y.outer_stride(), edge, panel_size);
                    for_column_tiles<C, panel_size>([&](auto packets, Index c) {
                        TileOf<C, decltype(height), decltype(packets)> tile;
                        if (k > 0) {
                            tile.load(sums + c, stride);
                        } else {
                            tile.set_zero();
                        }
                        tile.multiply_add(Operand<C>{x.row(i) + k, x.outer_stride(), 1}, piece + c, panel_size, n);
                        tile.store(sums + c, stride);
                    });
                    if (!whole) copy_rows(height, count, edge, panel_size, out, y.outer_stride());
                });
            }
        }
    }

  private:
    // Columns of W that are transposed at a time: 16 KiB, since they lie on the stack of an executor's thread.
    static constexpr Index transposed_cols = 16384 / (panel_size * Index(sizeof(C)));
    static_assert(panel_size % transposed_cols == 0, "they lie within one panel");

    static void copy_rows(Index rows, Index cols, const C* from, Index from_stride, C* to, Index to_stride) {
        for (Index i = 0; i < rows; ++i) std::copy_n(from + i * from_stride, cols, to + i * to_stride);
    }

    const T* at(Index row, Index col) const { return const_cast<PackedMatrix*>(this)->at(row, col); }
    T* at(Index row, Index col) {
        return data_.data() + (col / panel_size * rows_ + row) * panel_size + col % panel_size;
    }

    Index rows_;
    Index cols_;
    AlignedBuffer<T> data_;
};

// y = x W^T, with x [n, cols] and y [n, rows].
template <Scalar T>
void multiply_transposed(const PackedMatrix<T>& w, ConstMatrixView<Compute<T>> x, MatrixView<Compute<T>> y,
                         const Executor& executor) {
    run(executor, w.transposed_panels(), [&](Index p) { w.multiply_transposed_panel(x, p, y); });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
