// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/base/span_share.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/span_states.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/group.hpp>
#include <castle/detail/state/head_state.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What one key-value head needs while a group is under way: the operands of the blocks after the open one, and the
// states of every row and query head over every span that it sees. Row i of query head h is row h rows() + i of them.
template <Scalar T>
class GroupScratch {
    using C = Compute<T>;

  public:
    // For groups of up to `rows` rows of a sequence of up to `tokens` tokens.
    static Index elements(const HeadState<T>& state, Index rows, Index tokens) {
        return (group_blocks - 1) * block_elements(state) +
               state.most_spans(tokens) * SpanStates<C>::elements(rows * state.group(), state.dv_padded());
    }

    // Into memory of so many elements. A group of one row has but the open block, and takes its states to `step`.
    GroupScratch(HeadState<T>& state, const Group& group, C* memory, C* step)
        : state_(state),
          group_(group),
          operands_(memory),
          states_(memory != nullptr ? memory + (group_blocks - 1) * block_elements(state) : step) {}

    const Group& group() const { return group_; }

    BlockRows<T> block(Index i) const {
        const Index origin = group_.origin() + i * block_size;
        const auto rows = [&](const BlockFactors<T>& factors) {
            return BlockRows<T>{.origin = origin,
                                .first = (std::max)(origin, group_.first),
                                .end = (std::min)(origin + block_size, group_.end),
                                .sight = group_.sight,
                                .factors = factors};
        };
        if (i == 0) return rows(state_.open_factors());
        C* memory = operands_ + (i - 1) * block_elements(state_);
        const OperandSizes sizes = state_.operand_sizes();
        return rows({BlockOperands<C>(memory, sizes), sizes, memory + sizes.elements()});
    }

    // Of a span that is here.
    SpanStates<C> states(Index span) const {
        const SpanShare& share = state_.share();
        const Index rows = group_.rows() * state_.group(), dv = state_.dv_padded();
        const Index place = share.spans_before(span) - share.spans_before(group_.first_span());
        return {states_ + place * SpanStates<C>::elements(rows, dv), rows, dv};
    }

  private:
    static Index block_elements(const HeadState<T>& state) {
        const OperandSizes sizes = state.operand_sizes();
        return sizes.elements() + BlockFactors<T>::elements(sizes);
    }

    HeadState<T>& state_;
    Group group_;
    C* operands_;
    C* states_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
