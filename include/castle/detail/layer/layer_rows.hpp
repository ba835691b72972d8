// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/gradient.hpp>
#include <castle/input.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// How wide the rows of a multi-head layer are between its steps, in numbers. In memory they are padded to whole panels.
struct LayerWidths {
    Index projections;  // 6, or 3 for standard attention
    Index heads;
    Index d_head;
    Index angles;  // of the rotary embedding, 0 without

    Index attended() const { return heads * d_head; }
    Index projected() const { return projections * attended(); }
    Index padded_attended() const { return round_up(attended(), panel_size); }
    Index padded_projected() const { return round_up(projected(), panel_size); }

    Index numbers() const { return padded_projected() + padded_attended() + angles; }
};

// Where the numbers of some tokens are between the steps of a multi-head layer.
template <Scalar T>
class LayerRows {
  public:
    // In memory of `rows` times the widths' numbers.
    LayerRows(const LayerWidths& widths, T* memory, Index rows)
        : widths_(widths),
          projected_(memory, rows, widths.projected(), widths.padded_projected()),
          attended_(memory + rows * widths.padded_projected(), rows, widths.attended(), widths.padded_attended()),
          angles_(memory + rows * (widths.padded_projected() + widths.padded_attended())) {}

    Index rows() const { return projected_.rows(); }

    // Those of the tokens from `row` on.
    LayerRows from(Index row) const {
        LayerRows rest = *this;
        rest.projected_ = projected_.middle_rows(row, rows() - row);
        rest.attended_ = attended_.middle_rows(row, rows() - row);
        rest.angles_ += row * widths_.angles;
        return rest;
    }

    // [rows, projections * heads * d_head]; the same of one projection and head; [rows, heads * d_head]; of one head;
    // a row of the rotary table.
    MatrixView<T> projected() const { return projected_; }
    MatrixView<T> projected(Index projection, Index head) const {
        return projected_.middle_cols(projection * widths_.attended() + head * widths_.d_head, widths_.d_head);
    }
    MatrixView<T> attended() const { return attended_; }
    MatrixView<T> attended(Index head) const { return attended_.middle_cols(head * widths_.d_head, widths_.d_head); }
    T* angles(Index row) const { return angles_ + row * widths_.angles; }

    HeadInput<T> input(Index head) const { return head_of<HeadInput<T>>(head); }
    // The gradients of a head's input, which take its place.
    HeadGradientView<T> gradient(Index head) const { return head_of<HeadGradientView<T>>(head); }

  private:
    template <class Head>
    Head head_of(Index h) const {
        Head head{.causal = {.q = projected(0, h), .k = projected(1, h), .v = projected(2, h)}};
        if (widths_.projections == 6) {
            head.lookahead = {.q = projected(3, h), .k = projected(4, h), .v = projected(5, h)};
        }
        return head;
    }

    LayerWidths widths_;
    MatrixView<T> projected_;
    MatrixView<T> attended_;
    T* angles_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
