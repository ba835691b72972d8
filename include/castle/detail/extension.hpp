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

// Takes a group of every head through its steps; group(h) is head h's, and all have as many rows and blocks. Steps that
// are done once a row run on `light`.
template <Scalar T, class State, class Scratch, class GroupOf, class Input, class Output>
void run_groups(Index heads, const State& state, const Scratch& scratch, const GroupOf& group, const Input& input,
                const Output& output, const Executor& executor, const Executor& light) {
    const Index blocks = group(0).blocks();
    Index spans = 0;
    bool has_lookahead = false;
    for (Index h = 0; h < heads; ++h) {
        spans = (std::max)(spans, group(h).spans());
        has_lookahead = has_lookahead || state(h).has_lookahead();
    }
    const auto for_blocks = [&](const auto& step) {
        detail::run(light, heads * blocks, [&](Index i) { step(i / blocks, i % blocks); });
    };
    const auto for_spans = [&](const auto& step) {
        detail::run(executor, heads * spans, [&](Index i) {
            const Index h = i / spans, span = i % spans;
            if (span < group(h).spans()) step(state(h), scratch(h), group(h), span);
        });
    };
    for_blocks([&](Index h, Index b) { pack_block(state(h), scratch(h), group(h), b, input(h)); });
    if (has_lookahead && group(0).is_part_of_block()) for_spans(sweep_gates<T>);
    for_spans(sweep_span<T>);
    for_blocks([&](Index h, Index b) {
        merge_spans(state(h), scratch(h), group(h), b, output(h));
        if (b == blocks - 1) keep_open_block(state(h), scratch(h), group(h));
    });
}

// Scratch for putting `rows` tokens onto `tokens`. For one token the state has its own.
template <Scalar T>
Index extension_numbers(const HeadState<T>& state, Index tokens, Index rows) {
    return rows > 1 ? GroupScratch<T>::numbers(state, (std::min)(rows, group_size), tokens + rows) : 0;
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
            state(h).make_room(after_);
        }
    }

    // Calls run_group(group) for every group, then counts the new tokens in.
    template <class F>
    void for_groups(const F& run_group) {
        for (Index h = 0; h < heads_; ++h) state_(h).start(after_);
        Index first = before_;
        while (first < after_) {
            const Index end = (std::min)(after_, round_down(first, block_size) + group_size);
            run_group(Group{.first = first, .end = end, .call_row = first - before_});
            first = end;
        }
        for (Index h = 0; h < heads_; ++h) state_(h).finish(after_);
    }

    // input(h) and output(h) give head h's HeadInput and OutputRows; the group's rows begin at group.call_row in both.
    template <class Input, class Output>
    void run(const Group& group, const Input& input, const Output& output) {
        run_groups<T>(
            heads_, state_, [&](Index h) { return this->scratch(h); }, [&](Index) -> auto& { return group; }, input,
            output, executor_, executor_for_rows(executor_, group.rows()));
    }

  private:
    GroupScratch<T> scratch(Index h) {
        const Index rows = after_ - before_;
        return {state_(h), rows > 1 ? scratch_(h) : nullptr, (std::min)(rows, group_size)};
    }

    Index heads_;
    const State& state_;
    const Scratch& scratch_;
    const Executor& executor_;
    Index before_;
    Index after_;
};

// Puts one token onto each of some states, which may have different sizes: that in row(i) of input(i) onto state i,
// with its output to the same row of output(i). Only making room throws; no token has changed then.
template <Scalar T, class State, class Row, class Input, class Output>
void extend_by_one_each(Index states, const State& state, const Row& row, const Input& input, const Output& output,
                        const Executor& executor) {
    for (Index i = 0; i < states; ++i) state(i).make_room(state(i).size() + 1);
    for (Index i = 0; i < states; ++i) state(i).start(state(i).size() + 1);
    const auto group = [&](Index i) {
        return Group{.first = state(i).size(), .end = state(i).size() + 1, .call_row = row(i)};
    };
    run_groups<T>(
        states, state, [&](Index i) { return GroupScratch<T>(state(i), nullptr, 1); }, group, input, output, executor,
        executor_for_rows(executor, states));
    for (Index i = 0; i < states; ++i) state(i).finish(state(i).size() + 1);
}

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
