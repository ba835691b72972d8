// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/layout.hpp>
#include <castle/detail/tile.hpp>
#include <castle/detail/transpose.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A weight matrix [rows, cols] in panels of 64 columns, [panel][rows][panel_size], for products x W whose bits do not
// depend on how many rows x has: every number is one chain of fused multiply-adds along the rows of W.
template <Scalar T>
class PackedMatrix {
  public:
    PackedMatrix(Index rows, Index cols) : rows_(rows), cols_(cols), data_(rows * round_up(cols, panel_size)) {}

    Index rows() const { return rows_; }
    Index cols() const { return cols_; }
    Index panels() const { return ceil_div(cols_, panel_size); }
    Index numbers() const { return data_.size(); }

    // Columns [first_col, first_col + m.cols()) become m, which has all rows.
    void set_cols(Index first_col, ConstMatrixView<T> m) {
        for (Index k = 0; k < rows_; ++k) {
            for (Index j = 0; j < m.cols(); ++j) *at(k, first_col + j) = m.row(k)[j];
        }
    }
    Matrix<T> cols_at(Index first_col, Index count) const {
        Matrix<T> m(rows_, count);
        for (Index k = 0; k < rows_; ++k) {
            for (Index j = 0; j < count; ++j) m(k, j) = *const_cast<PackedMatrix*>(this)->at(k, first_col + j);
        }
        return m;
    }

    // Becomes the transpose of m, whose columns are as many as these rows.
    void set_transposed(const PackedMatrix& m) {
        for (Index p = 0; p < m.panels(); ++p) {
            const Index first_row = p * panel_size;
            const Index count = (std::min)(panel_size, rows_ - first_row);
            for (Index q = 0; q < panels(); ++q) {
                const Index first_col = q * panel_size;
                const ConstMatrixView<T> from(m.data_.data() + (p * m.rows_ + first_col) * panel_size,
                                              (std::min)(panel_size, cols_ - first_col), count, panel_size);
                transpose(from, 0, from.rows(), T(1), at(first_row, first_col), panel_size);
            }
        }
    }

    // The columns of panel p of y = x W, with x [n, rows] and y [n, cols].
    void multiply_panel(ConstMatrixView<T> x, Index p, MatrixView<T> y) const {
        constexpr Index chunk = 4 * tile_rows;
        alignas(64) T product[chunk * panel_size];
        const Index first_col = p * panel_size;
        const Index count = (std::min)(panel_size, cols_ - first_col);
        const T* panel = data_.data() + p * rows_ * panel_size;
        for (Index first = 0; first < x.rows(); first += chunk) {
            const Index n = (std::min)(chunk, x.rows() - first);
            multiply<panel_size>(n, rows_, Operand<T>{x.row(first), x.outer_stride(), 1}, panel, panel_size, product,
                                 panel_size);
            for (Index i = 0; i < n; ++i) {
                std::copy_n(product + i * panel_size, count, y.row(first + i) + first_col);
            }
        }
    }

  private:
    T* at(Index row, Index col) {
        return data_.data() + (col / panel_size * rows_ + row) * panel_size + col % panel_size;
    }

    Index rows_;
    Index cols_;
    AlignedBuffer<T> data_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
