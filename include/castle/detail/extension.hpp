// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/group.hpp>
#include <castle/detail/group_steps.hpp>
#include <castle/detail/head_state.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>

// What is behind every form: new tokens onto the states of some heads.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// One extension of `heads` states of equal size and shape by `rows` tokens each. state(h) gives head h's HeadState&.
//
// The constructor gets all memory there is need of and is the only part that throws; no token has changed then, though
// some states may have more capacity.
// After it the groups are to be run one by one, in order. One row that fits the states' capacity allocates nothing.
template <Scalar T, class State>
class Extension {
  public:
    Extension(Index heads, Index rows, const State& state, const Executor& executor)
        : heads_(heads), state_(state), executor_(executor), before_(state(0).size()), after_(before_ + rows) {
        for (Index h = 0; h < heads; ++h) state(h).reserve(after_);
        group_rows_ = std::min(rows, group_size);
        if (rows > 1) {
            numbers_ = GroupScratch<T>::numbers(state(0), group_rows_, after_);
            memory_ = AlignedBuffer<T>(heads * numbers_);
        }
    }

    // Calls run_group(group) for every group, then counts the new tokens in.
    template <class F>
    void for_groups(const F& run_group) {
        Index first = before_;
        while (first < after_) {
            const Index end = std::min(after_, round_down(first, block_size) + group_size);
            run_group(Group{.first = first, .end = end, .call_row = first - before_});
            first = end;
        }
        for (Index h = 0; h < heads_; ++h) state_(h).set_size(after_);
    }

    // input(h) and output(h) give head h's HeadInput and OutputRows; the group's rows begin at group.call_row in both.
    template <class Input, class Output>
    void run(const Group& group, const Input& input, const Output& output) {
        const Executor& light = executor_for_rows(executor_, group.rows());
        const auto for_parts = [&](const Executor& executor, Index parts, const auto& f) {
            detail::run(executor, heads_ * parts, [&](Index i) { f(i / parts, i % parts); });
        };
        const auto for_spans = [&](const auto& step) {
            for_parts(executor_, group.spans(), [&](Index h, Index span) { step(state_(h), scratch(h), group, span); });
        };
        for_parts(light, group.blocks(),
                  [&](Index h, Index b) { pack_block(state_(h), scratch(h), group, b, input(h)); });
        if (state_(0).has_lookahead() && group.is_part_of_block()) for_spans(sweep_gates<T>);
        for_spans(sweep_span<T>);
        for_parts(light, group.blocks(), [&](Index h, Index b) {
            merge_spans(state_(h), scratch(h), group, b, output(h));
            if (b == group.blocks() - 1) keep_open_block(state_(h), scratch(h), group);
        });
    }

  private:
    GroupScratch<T> scratch(Index h) {
        return {state_(h), numbers_ == 0 ? nullptr : memory_.data() + h * numbers_, group_rows_};
    }

    Index heads_;
    const State& state_;
    const Executor& executor_;
    Index before_;
    Index after_;
    Index group_rows_ = 0;
    Index numbers_ = 0;  // of scratch, a head
    AlignedBuffer<T> memory_;
};

// Extends one state by the tokens of `input`, whose shapes have been checked.
template <Scalar T>
void extend_head(HeadState<T>& state, const HeadInput<T>& input, const OutputRows<T>& output,
                 const Executor& executor) {
    const Index rows = input.causal.q.rows();
    if (rows == 0) return;
    const auto only = [&](Index) -> HeadState<T>& { return state; };
    Extension<T, decltype(only)> extension(1, rows, only, executor);
    extension.for_groups([&](const Group& group) {
        extension.run(
            group, [&](Index) -> auto& { return input; }, [&](Index) -> auto& { return output; });
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
