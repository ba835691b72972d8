// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/input.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// How wide the rows of a layer are between its steps, in elements. In memory they are padded to whole panels. The
// projections lie side by side: causal q, k, v, and with lookahead its q, k, v.
struct LayerWidths {
    Index projections;  // 6, or 3 for standard attention
    Index queries;      // of all query heads
    Index keys;         // of all key-value heads
    Index d_head;
    Index angles;  // of the rotary embedding, 0 without

    Index first_column(Index projection) const { return projection == 0 ? 0 : queries + (projection - 1) * keys; }
    Index width(Index projection) const { return projection == 0 ? queries : keys; }
    Index projected() const { return first_column(projections); }
    Index padded_attended() const { return round_up(queries, panel_size); }
    Index padded_projected() const { return round_up(projected(), panel_size); }

    Index elements() const { return padded_projected() + padded_attended() + angles; }
};

// Where the elements of some tokens are between the steps of a layer.
template <Scalar T>
class LayerRows {
  public:
    // In memory of `rows` times the widths' elements.
    LayerRows(const LayerWidths& widths, T* memory, Index rows)
        : widths_(widths),
          projected_(memory, rows, widths.projected(), widths.padded_projected()),
          attended_(memory + rows * widths.padded_projected(), rows, widths.queries, widths.padded_attended()),
          angles_(memory + rows * (widths.padded_projected() + widths.padded_attended())) {}

    // Side by side, of one projection, and the output of the attention.
    MatrixView<T> projected() const { return projected_; }
    MatrixView<T> projected(Index projection) const {
        return projected_.middle_cols(widths_.first_column(projection), widths_.width(projection));
    }
    MatrixView<T> attended() const { return attended_; }
    // A row of the rotary table.
    T* angles(Index row) const { return angles_ + row * widths_.angles; }

    Input<T> input() const { return all_of<Input<T>>(); }
    // The gradients of the input, which take its place.
    GradientView<T> gradient() const { return all_of<GradientView<T>>(); }

  private:
    template <class All>
    All all_of() const {
        All all{.causal = {.q = projected(0), .k = projected(1), .v = projected(2)}};
        if (widths_.projections == 6) {
            all.lookahead = {.q = projected(3), .k = projected(4), .v = projected(5)};
        }
        return all;
    }

    LayerWidths widths_;
    MatrixView<T> projected_;
    MatrixView<T> attended_;
    T* angles_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
