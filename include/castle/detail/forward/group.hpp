// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/score/softmax_rows.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/head_state.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The tokens [first, end) that go through the sweep together, at most group_blocks blocks, and where in the call they
// begin.
struct Group {
    Index first;
    Index end;
    Index call_row;

    Index origin() const { return round_down(first, block_size); }
    Index blocks() const { return ceil_div(end - origin(), block_size); }
    Index rows() const { return end - first; }
    Index spans() const { return ceil_div(end, span_size); }
    // Whether there is but one block, and not all of it.
    bool is_part_of_block() const { return blocks() == 1 && rows() < block_size; }
};

// What one head needs while a group is under way: the operands of the blocks after the open one, and a softmax for
// every row and span.
template <Scalar T>
class GroupScratch {
  public:
    static Index numbers(const HeadState<T>& state, Index rows, Index tokens) {
        return (group_blocks - 1) * operand_numbers(state) +
               ceil_div(tokens, span_size) * SoftmaxRows<T>::numbers(rows, state.dv_padded());
    }

    // Into memory of the numbers above or, for one row, the state's own.
    GroupScratch(HeadState<T>& state, T* memory, Index rows)
        : state_(state),
          operands_(memory),
          softmax_(memory != nullptr ? memory + (group_blocks - 1) * operand_numbers(state) : state.row_scratch()),
          rows_(rows) {}

    BlockRows<T> block(const Group& group, Index i) const {
        const Index origin = group.origin() + i * block_size;
        const Index d = state_.shape().d;
        return {.origin = origin,
                .first = (std::max)(origin, group.first),
                .end = (std::min)(origin + block_size, group.end),
                .operands =
                    i == 0 ? state_.open_block() : BlockOperands<T>(operands_ + (i - 1) * operand_numbers(state_), d)};
    }

    SoftmaxRows<T> softmax(Index span) const {
        const Index dv = state_.dv_padded();
        return {softmax_ + span * SoftmaxRows<T>::numbers(rows_, dv), rows_, dv};
    }

  private:
    static Index operand_numbers(const HeadState<T>& state) {
        return BlockOperands<T>::numbers(state.shape().d, state.has_lookahead());
    }

    HeadState<T>& state_;
    T* operands_;
    T* softmax_;
    Index rows_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
