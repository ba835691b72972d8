// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <castle/detail/forward/group.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/tile.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/input.hpp>

// The steps that a group of tokens goes through, for one head.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Copies the rows of the group's block b to where the kernels read them, and makes the block's triangle.
template <Scalar T>
void pack_block(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, Index b,
                const HeadInput<T>& input) {
    const Index d = state.shape().d;
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
    if (!state.has_lookahead()) return;

    // U of a panel begins at zero with the panel's first token.
    if (rows.first % panel_size == 0) std::fill_n(state.lookahead_keys(p), d * panel_size, T(0));
    transpose(input.lookahead.q, call_row, rows.count(), T(1), state.lookahead_queries(p) + column, panel_size);
    transpose(input.lookahead.k, call_row, rows.count(), state.scale(), block.lookahead_keys() + skip, block_size);
    transpose(input.lookahead.v, call_row, rows.count(), T(1), block.lookahead_values() + skip, block_size);
    multiply<block_size>(rows.count(), d, Operand<T>{block.causal_queries() + skip, 1, block_size},
                         block.lookahead_values(), block_size, block.triangle() + skip * block_size, block_size);
    const Index index = rows.origin / block_size;
    if (rows.finishes() && state.history().keeps(index)) state.history().keep_operands(index, block);
}

// Calls f(panel, rows) for the panels of a span and the group's blocks that see them. All blocks take one panel before
// the next: a panel is large, and then has to come from far away only once.
template <Scalar T, class F>
void for_panels(const GroupScratch<T>& scratch, const Group& group, Index span, const F& f) {
    const Index end = (std::min)((span + 1) * span_panels, ceil_div(group.end, panel_size));
    for (Index p = span * span_panels; p < end; ++p) {
        for (Index b = 0; b < group.blocks(); ++b) {
            const BlockRows<T> rows = scratch.block(group, b);
            if (p * panel_size < rows.end) f(p, rows);
        }
    }
}

// Ahead of sweep_span, for a group that is part of a block: its gates against one span of keys. Rows are few then, and
// reading memory is the limit, which goes fastest in one long stream after the other: Q^U first, then all the rest.
template <Scalar T>
void sweep_gates(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, Index span) {
    for_panels(scratch, group, span,
               [&](Index p, const BlockRows<T>& rows) { PanelSweep<T>(state, rows, p).make_gates(); });
}

// All blocks of the group against one span of keys. Spans share nothing, so they may run at the same time.
template <Scalar T>
void sweep_span(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, Index span) {
    const SoftmaxRows<T> softmax = scratch.softmax(span);
    softmax.clear(group.rows());
    const bool has_gates = group.is_part_of_block();
    for_panels(scratch, group, span, [&](Index p, const BlockRows<T>& rows) {
        PanelSweep<T>(state, rows, p).run(has_gates, softmax, rows.first - group.first);
    });
}

// Where the rows of a call go: row i's output, and what became of its sum where that is asked for.
template <Scalar T>
struct OutputRows {
    MatrixView<T> out;
    LogSumExp<T> log_sum_exp = {};
};

// out = softmax V^C for the rows of the group's block b, from the spans' parts, in the order of the spans.
template <Scalar T>
void merge_spans(const HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group, Index b,
                 const OutputRows<T>& output) {
    using S = Simd<T>;
    const Index dv = state.dv_padded();
    const BlockRows<T> rows = scratch.block(group, b);
    for (Index row = rows.first - group.first; row < rows.end - group.first; ++row) {
        const Index spans = (group.first + row) / span_size + 1;
        T largest = scratch.softmax(0).largest()[row];
        for (Index s = 1; s < spans; ++s) largest = (std::max)(largest, scratch.softmax(s).largest()[row]);
        if (largest == -std::numeric_limits<T>::infinity()) largest = T(0);

        T* merged = scratch.softmax(0).out(row);
        auto sum = S::zero();
        for (Index s = 0; s < spans; ++s) {
            const SoftmaxRows<T> part = scratch.softmax(s);
            const auto factor = exp_nonpositive<T>(S::set(part.largest()[row] - largest));
            sum = S::fma(factor, S::load(part.sum(row)), sum);
            for (Index c = 0; c < dv; c += S::width) {
                const auto x = S::load(part.out(row) + c);
                S::store(merged + c, s == 0 ? S::mul(factor, x) : S::fma(factor, x, S::load(merged + c)));
            }
        }
        const T total = S::sum(sum);
        for (Index c = 0; c < dv; c += S::width) S::store(merged + c, S::div(S::load(merged + c), S::set(total)));
        std::copy_n(merged, state.shape().dv, output.out.row(group.call_row + row));
        if (output.log_sum_exp) {
            output.log_sum_exp.largest[group.call_row + row] = largest;
            output.log_sum_exp.log_sum[group.call_row + row] = std::log(total);
        }
    }
}

// After the group: its last block becomes the open one. Its gates are in the state already, and only its lookahead
// keys and values, which lie side by side, are still needed.
template <Scalar T>
void keep_open_block(HeadState<T>& state, const GroupScratch<T>& scratch, const Group& group) {
    const BlockRows<T> last = scratch.block(group, group.blocks() - 1);
    if (state.has_lookahead() && group.blocks() > 1 && !last.finishes()) {
        std::copy_n(last.operands.lookahead_keys(), 2 * state.shape().d * block_size,
                    state.open_block().lookahead_keys());
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
