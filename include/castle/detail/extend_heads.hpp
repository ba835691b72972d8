// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>

#include <castle/detail/head_state.hpp>
#include <castle/detail/layout.hpp>
#include <castle/detail/panel_sweep.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>

// What is behind every form: new tokens onto the states of some heads.
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
};

// What one head needs while a group is under way: the operands of the blocks after the open one, and a softmax for
// every row and span.
template <Scalar T>
class GroupScratch {
  public:
    static Index numbers(const HeadState<T>& state, Index rows, Index tokens) {
        return (group_blocks - 1) * BlockOperands<T>::numbers(state.shape().d) +
               ceil_div(tokens, span_size) * SoftmaxRows<T>::numbers(rows, state.dv_padded());
    }

    // Into memory of the numbers above or, for one row, the state's own.
    GroupScratch(HeadState<T>& state, T* memory, Index rows)
        : state_(state),
          operands_(memory),
          softmax_(memory != nullptr ? memory + (group_blocks - 1) * BlockOperands<T>::numbers(state.shape().d)
                                     : state.row_scratch()),
          rows_(rows) {}

    BlockRows<T> block(const Group& group, Index i) const {
        const Index origin = group.origin() + i * block_size;
        const Index d = state_.shape().d;
        return {.origin = origin,
                .first = std::max(origin, group.first),
                .end = std::min(origin + block_size, group.end),
                .operands = i == 0 ? state_.open_block()
                                   : BlockOperands<T>(operands_ + (i - 1) * BlockOperands<T>::numbers(d), d)};
    }

    SoftmaxRows<T> softmax(Index span) const {
        const Index dv = state_.dv_padded();
        return {softmax_ + span * SoftmaxRows<T>::numbers(rows_, dv), rows_, dv};
    }

  private:
    HeadState<T>& state_;
    T* operands_;
    T* softmax_;
    Index rows_;
};

// Copies the tokens' rows to where the kernels read them, and makes each block's triangle.
template <Scalar T>
void pack_group(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, const HeadInput<T>& input) {
    const Index d = state.shape().d;
    const auto transpose = [d](ConstMatrixView<T> from, Index row, Index count, T scale, T* to, Index stride) {
        for (Index i = 0; i < count; ++i) {
            const T* x = from.row(row + i);
            for (Index k = 0; k < d; ++k) to[k * stride + i] = scale * x[k];
        }
    };
    for (Index b = 0; b < group.blocks(); ++b) {
        const BlockRows<T> rows = scratch.block(group, b);
        const Index call_row = group.call_row + rows.first - group.first;
        const Index skip = rows.first - rows.origin;
        const Index p = rows.first / panel_size;
        const Index column = rows.first % panel_size;

        transpose(input.causal.k, call_row, rows.count(), T(1), state.causal_keys(p) + column, panel_size);
        for (Index i = 0; i < rows.count(); ++i) {
            std::copy_n(input.causal.v.row(call_row + i), state.shape().dv,
                        state.values(p) + (column + i) * state.dv_padded());
        }
        const BlockOperands<T>& block = rows.operands;
        transpose(input.causal.q, call_row, rows.count(), state.scale(), block.causal_queries() + skip, block_size);
        if (!state.has_lookahead()) continue;

        transpose(input.lookahead.q, call_row, rows.count(), T(1), state.lookahead_queries(p) + column, panel_size);
        transpose(input.lookahead.k, call_row, rows.count(), state.scale(), block.lookahead_keys() + skip, block_size);
        transpose(input.lookahead.v, call_row, rows.count(), T(1), block.lookahead_values() + skip, block_size);
        multiply<block_size>(rows.count(), d, Operand<T>{block.causal_queries() + skip, 1, block_size},
                             block.lookahead_values(), block_size, block.triangle() + skip * block_size, block_size);
    }
}

// All blocks of the group against one span of keys. Spans share nothing, so they may run at the same time.
template <Scalar T>
void sweep_span(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, Index span) {
    const SoftmaxRows<T> softmax = scratch.softmax(span);
    std::fill_n(softmax.out(0), group.rows() * state.dv_padded(), T(0));
    std::fill_n(softmax.largest(), group.rows(), -std::numeric_limits<T>::infinity());
    std::fill_n(softmax.sum(), group.rows(), T(0));

    for (Index b = 0; b < group.blocks(); ++b) {
        const BlockRows<T> rows = scratch.block(group, b);
        const Index panels = std::min((span + 1) * span_panels, ceil_div(rows.end, panel_size));
        PanelSweep<T> sweep(state, rows);
        for (Index p = span * span_panels; p < panels; ++p) sweep.run(p, softmax, rows.first - group.first);
    }
}

// out = softmax V^C from the spans' parts, in the order of the spans.
template <Scalar T>
void merge_spans(const HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, MatrixView<T> out) {
    using S = Simd<T>;
    const Index dv = state.dv_padded();
    for (Index row = 0; row < group.rows(); ++row) {
        const Index spans = (group.first + row) / span_size + 1;
        T largest = scratch.softmax(0).largest()[row];
        for (Index s = 1; s < spans; ++s) largest = std::max(largest, scratch.softmax(s).largest()[row]);
        if (largest == -std::numeric_limits<T>::infinity()) largest = T(0);

        T* merged = scratch.softmax(0).out(row);
        auto sum = S::zero();
        for (Index s = 0; s < spans; ++s) {
            const SoftmaxRows<T> part = scratch.softmax(s);
            const auto factor = exp<T>(S::set(part.largest()[row] - largest));
            sum = S::fma(factor, S::set(part.sum()[row]), sum);
            for (Index c = 0; c < dv; c += S::width) {
                const auto x = S::load(part.out(row) + c);
                S::store(merged + c, s == 0 ? S::mul(factor, x) : S::fma(factor, x, S::load(merged + c)));
            }
        }
        for (Index c = 0; c < dv; c += S::width) S::store(merged + c, S::div(S::load(merged + c), sum));
        std::copy_n(merged, state.shape().dv, out.row(group.call_row + row));
    }
}

// After the group: its last block becomes the open one.
template <Scalar T>
void keep_open_block(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group) {
    const BlockRows<T> last = scratch.block(group, group.blocks() - 1);
    if (state.has_lookahead() && group.blocks() > 1 && !last.finishes()) {
        std::copy_n(last.operands.lookahead_values(), state.shape().d * block_size,
                    state.open_block().lookahead_values());
    }
}

// One extension of `heads` states of equal size and shape by `rows` tokens each. state(h) gives head h's HeadState&.
//
// The constructor gets all memory there is need of and is the only part that throws, having changed nothing then.
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

    // input(h) and output(h) give head h's HeadInput and MatrixView; the group's rows begin at group.call_row in both.
    template <class Input, class Output>
    void run(const Group& group, const Input& input, const Output& output) {
        // What is done once a row, and not once a row and key, is not worth a meeting of threads for a single row.
        const Executor& light = group.rows() == 1 ? serial_ : executor_;
        detail::run(light, heads_, [&](Index h) { pack_group(state_(h), scratch(h), group, input(h)); });
        detail::run(executor_, heads_ * group.spans(),
                    [&](Index i) { sweep_span(state_(i % heads_), scratch(i % heads_), group, i / heads_); });
        detail::run(light, heads_, [&](Index h) {
            merge_spans(state_(h), scratch(h), group, output(h));
            keep_open_block(state_(h), scratch(h), group);
        });
    }

  private:
    GroupScratch<T> scratch(Index h) {
        return {state_(h), numbers_ == 0 ? nullptr : memory_.data() + h * numbers_, group_rows_};
    }

    Index heads_;
    const State& state_;
    const Executor& executor_;
    const Executor serial_ = {};
    Index before_;
    Index after_;
    Index group_rows_ = 0;
    Index numbers_ = 0;  // of scratch, a head
    AlignedBuffer<T> memory_;
};

// Extends one state by the tokens of `input`, whose shapes have been checked.
template <Scalar T>
void extend_head(HeadState<T>& state, const HeadInput<T>& input, MatrixView<T> out, const Executor& executor) {
    const Index rows = input.causal.q.rows();
    if (rows == 0) return;
    const auto only = [&](Index) -> HeadState<T>& { return state; };
    Extension<T, decltype(only)> extension(1, rows, only, executor);
    extension.for_groups([&](const Group& group) {
        extension.run(
            group, [&](Index) -> auto& { return input; }, [&](Index) { return out; });
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
