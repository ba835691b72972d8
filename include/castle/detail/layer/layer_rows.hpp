// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/input.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// How wide the projections of a layer are, in elements. They lie side by side: causal q, k, v, and with lookahead its
// q, k, v.
struct LayerWidths {
    Index projections;  // 6, or 3 for standard attention
    Index queries;      // of all query heads
    Index keys;         // of all key-value heads

    explicit LayerWidths(const LayerKind& kind)
        : projections(kind.attention.has_lookahead() ? 6 : 3),
          queries(kind.attention.shape.heads * kind.attention.shape.d),
          keys(kind.attention.shape.kv_heads * kind.attention.shape.d) {}

    Index first_column(Index projection) const { return projection == 0 ? 0 : queries + (projection - 1) * keys; }
    Index width(Index projection) const { return projection == 0 ? queries : keys; }
    Index projected() const { return first_column(projections); }
};

// Where the elements of some tokens are between the steps of a layer.
template <ComputeScalar T>
class LayerRows {
  public:
    // Of one row, with so many of angles of the rotary embedding, 0 without it. Padded to whole panels.
    static Index elements(const LayerWidths& widths, Index angles) {
        return padded(widths.projected()) + padded(widths.queries) + angles;
    }
    static Index padded(Index width) { return round_up(width, panel_size); }

    // In memory of `rows` times as many.
    LayerRows(const LayerWidths& widths, Index angles, T* memory, Index rows)
        : widths_(widths),
          projected_(memory, rows, widths.projected(), padded(widths.projected())),
          attended_(projected_.row(rows), rows, widths.queries, padded(widths.queries)),
          angles_(attended_.row(rows)),
          angles_stride_(angles) {}

    // Side by side, of one projection, and the output of the attention.
    MatrixView<T> projected() const { return projected_; }
    MatrixView<T> projected(Index projection) const {
        return projected_.middle_cols(widths_.first_column(projection), widths_.width(projection));
    }
    MatrixView<T> attended() const { return attended_; }
    // A row of the rotary table.
    T* angles(Index row) const { return angles_ + row * angles_stride_; }

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
    Index angles_stride_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
