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

// Scratch for putting `rows` tokens onto `tokens`. For one token the state has its own.
template <Scalar T>
Index extension_numbers(const HeadState<T>& state, Index tokens, Index rows) {
    return rows > 1 ? GroupScratch<T>::numbers(state, std::min(rows, group_size), tokens + rows) : 0;
}

// One extension of `heads` states of equal size and shape by `rows` tokens each. state(h) gives head h's HeadState&,
// and scratch(h) memory of the numbers above.
//
// The constructor makes room in the states and is the only part that throws; no token has changed then, though some
// states may have more capacity. After it the groups are to be run one by one, in order.
template <Scalar T, class State, class Scratch>
class Extension {
  public:
    Extension(Index heads, Index rows, const State& state, const Scratch& scratch, const Executor& executor)
        : heads_(heads),
          state_(state),
          scratch_(scratch),
          executor_(executor),
          before_(state(0).size()),
          after_(before_ + rows) {
        for (Index h = 0; h < heads; ++h) {
            state(h).reserve(after_);
            state(h).own(before_, after_);
        }
    }

    // Calls run_group(group) for every group, then counts the new tokens in.
    template <class F>
    void for_groups(const F& run_group) {
        for (Index h = 0; h < heads_; ++h) state_(h).history().start(after_);
        Index first = before_;
        while (first < after_) {
            const Index end = std::min(after_, round_down(first, block_size) + group_size);
            run_group(Group{.first = first, .end = end, .call_row = first - before_});
            first = end;
        }
        for (Index h = 0; h < heads_; ++h) {
            state_(h).history().finish(before_ / block_size, after_ / block_size);
            state_(h).set_size(after_);
        }
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
        const Index rows = after_ - before_;
        return {state_(h), rows > 1 ? scratch_(h) : nullptr, std::min(rows, group_size)};
    }

    Index heads_;
    const State& state_;
    const Scratch& scratch_;
    const Executor& executor_;
    Index before_;
    Index after_;
};

// Extends one state by the tokens of `input`, whose shapes have been checked, in scratch of extension_numbers.
template <Scalar T>
void extend_head(HeadState<T>& state, const HeadInput<T>& input, const OutputRows<T>& output, T* memory,
                 const Executor& executor) {
    const Index rows = input.causal.q.rows();
    if (rows == 0) return;
    const auto only = [&](Index) -> HeadState<T>& { return state; };
    const auto scratch = [&](Index) { return memory; };
    Extension<T, decltype(only), decltype(scratch)> extension(1, rows, only, scratch, executor);
    extension.for_groups([&](const Group& group) {
        extension.run(
            group, [&](Index) -> auto& { return input; }, [&](Index) -> auto& { return output; });
    });
}

// The same in scratch of its own, which one token needs none of.
template <Scalar T>
void extend_head(HeadState<T>& state, const HeadInput<T>& input, MatrixView<T> out, const Executor& executor) {
    AlignedBuffer<T> memory(extension_numbers(state, state.size(), out.rows()));
    extend_head(state, input, {.out = out}, memory.data(), executor);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
