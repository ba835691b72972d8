// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/forward/group.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>

// What is behind every form: new tokens onto the states of some heads.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Numbers the work of some heads consecutively: head h has count(h) pieces. Each state notes the number of its first
// piece, until the next numbering.
template <class State>
class Pieces {
  public:
    template <class Count>
    Pieces(Index heads, const State& state, const Count& count) : heads_(heads), state_(state), of_each_(count(0)) {
        for (Index h = 0; h < heads; ++h) {
            const Index own = count(h);
            if (own != of_each_) of_each_ = 0;
            state(h).set_first_piece(total_);
            total_ += own;
        }
    }

    // run_piece(h, i) for the i-th piece of head h, for all of them.
    template <class F>
    void run(const Executor& executor, const F& run_piece) const {
        detail::run(executor, total_, [&](Index piece) {
            const Index h = of_each_ > 0 ? piece / of_each_ : head_of(piece);
            run_piece(h, piece - state_(h).first_piece());
        });
    }

  private:
    // The last head that begins at this piece or before it. One without pieces begins where the next one does.
    Index head_of(Index piece) const {
        Index head = 0, end = heads_;
        while (end - head > 1) {
            const Index middle = head + (end - head) / 2;
            (state_(middle).first_piece() <= piece ? head : end) = middle;
        }
        return head;
    }

    Index heads_;
    const State& state_;
    Index of_each_;  // if all heads have as many, or 0
    Index total_ = 0;
};

// Takes a group of every head through its steps; group(h) is head h's, and all groups have equal numbers of rows and
// blocks. Steps that are done once a row run on `light`.
template <Scalar T, class State, class Scratch, class GroupOf, class Input, class Output>
void run_groups(Index heads, const State& state, const Scratch& scratch, const GroupOf& group, const Input& input,
                const Output& output, const Executor& executor, const Executor& light) {
    const Index blocks = group(0).blocks();
    const bool has_gates = group(0).is_part_of_block();
    const auto pack = [&](Index h, Index b) { pack_block(state(h), scratch(h), group(h), b, input(h)); };
    const auto make_gates = [&](Index h, Index span) { sweep_gates<T>(state(h), scratch(h), group(h), span); };
    const auto sweep = [&](Index h, Index span) { sweep_span<T>(state(h), scratch(h), group(h), span); };
    const auto merge = [&](Index h, Index b) {
        merge_spans(state(h), scratch(h), group(h), b, output(h));
        if (b == blocks - 1) keep_open_block(state(h), scratch(h), group(h));
    };
    // One head after the other finds its memory in the processor's caches from step to step.
    const auto run_head = [&](Index h) {
        const Index spans = group(h).spans();
        for (Index b = 0; b < blocks; ++b) pack(h, b);
        for (Index span = 0; has_gates && state(h).has_lookahead() && span < spans; ++span) make_gates(h, span);
        for (Index span = 0; span < spans; ++span) sweep(h, span);
        for (Index b = 0; b < blocks; ++b) merge(h, b);
    };
    if (!executor) {
        for (Index h = 0; h < heads; ++h) run_head(h);
        return;
    }
    // A head with one block and one span runs all steps as one piece.
    const auto is_whole = [&](Index h) { return blocks == 1 && group(h).spans() == 1; };
    Index whole = 0;
    for (Index h = 0; h < heads; ++h) whole += is_whole(h) ? 1 : 0;
    Pieces(heads, state, [&](Index) { return blocks; }).run(whole > 0 ? executor : light, [&](Index h, Index b) {
        if (is_whole(h)) {
            run_head(h);
        } else {
            pack(h, b);
        }
    });
    if (whole == heads) return;
    const auto divided = [&](Index h, Index pieces) { return is_whole(h) ? 0 : pieces; };
    Pieces(heads, state, [&](Index h) {
        return has_gates && state(h).has_lookahead() ? divided(h, group(h).spans()) : 0;
    }).run(executor, make_gates);
    Pieces(heads, state, [&](Index h) { return divided(h, group(h).spans()); }).run(executor, sweep);
    Pieces(heads, state, [&](Index h) { return divided(h, blocks); }).run(light, merge);
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
    // The states [first, first + count).
    const auto run = [&](Index first, Index count) {
        const auto nth = [&](Index i) -> auto& { return state(first + i); };
        const auto group = [&](Index i) {
            return Group{.first = nth(i).size(), .end = nth(i).size() + 1, .call_row = row(first + i)};
        };
        for (Index i = 0; i < count; ++i) nth(i).start(nth(i).size() + 1);
        run_groups<T>(
            count, nth, [&](Index i) { return GroupScratch<T>(nth(i), nullptr, 1); }, group,
            [&](Index i) -> decltype(auto) { return input(first + i); },
            [&](Index i) -> decltype(auto) { return output(first + i); }, executor, executor_for_rows(executor, count));
        for (Index i = 0; i < count; ++i) nth(i).finish(nth(i).size() + 1);
    };
    if (executor) {
        run(0, states);
        return;
    }
    // One state after the other: many do not fit the processor's caches, and would be fetched for every step.
    for (Index i = 0; i < states; ++i) run(i, 1);
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
