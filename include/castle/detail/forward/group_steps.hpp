// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <castle/detail/forward/group_scratch.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/tile.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/input.hpp>

// The steps that a group of tokens goes through, for one key-value head and the query heads on it.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Copies the rows of the group's block b to where the kernels read them, and makes the block's triangles.
template <Scalar T>
void pack_block(HeadState<T>& state, const GroupScratch<T>& scratch, Index b, const Input<T>& input) {
    const Index d = state.d();
    const BlockRows<T> rows = scratch.block(b);
    const Index row = scratch.group().row + rows.first - scratch.group().first;
    const Index skip = rows.first - rows.origin;
    const Index p = rows.first / panel_size;
    const Index column = rows.first % panel_size;
    const auto pack = [&](const ConstMatrixView<T>& from, Index first_col, T scale, T* to, Index stride) {
        transpose(from.row(row) + first_col, from.outer_stride(), rows.count(), d, scale, to, stride);
    };

    pack(input.causal.k, 0, T(1), state.causal_keys(p) + column, panel_size);
    for (Index i = 0; i < rows.count(); ++i) {
        std::copy_n(input.causal.v.row(row + i), state.dv(), state.values(p) + (column + i) * state.dv_padded());
    }
    const BlockOperands<T>& block = rows.operands;
    for (Index h = 0; h < state.group(); ++h) {
        pack(input.causal.q, h * d, state.scale(), block.causal_queries(h) + skip, block_size);
    }
    if (!state.has_lookahead()) return;

    // U of a panel begins at zero with the panel's first token.
    if (rows.first % panel_size == 0) std::fill_n(state.lookahead_keys(p), d * panel_size, T(0));
    pack(input.lookahead.q, 0, T(1), state.lookahead_queries(p) + column, panel_size);
    pack(input.lookahead.k, 0, state.scale(), block.lookahead_keys() + skip, block_size);
    pack(input.lookahead.v, 0, T(1), block.lookahead_values() + skip, block_size);
    // Of the triangle only the columns of tokens that are there.
    const Index columns = round_up(skip + rows.count(), Simd<T>::width);
    for (Index h = 0; h < state.group(); ++h) {
        const Operand<T> queries{block.causal_queries(h) + skip, 1, block_size};
        T* triangle = block.triangle(h) + skip * block_size;
        if (columns == block_size) {
            multiply<block_size>(rows.count(), d, queries, block.lookahead_values(), block_size, triangle, block_size);
        } else {
            multiply_columns(rows.count(), d, queries, columns, block.lookahead_values(), block_size, triangle,
                             block_size);
        }
    }
    const Index index = rows.origin / block_size;
    if (rows.finishes() && state.history().keeps(index)) state.history().keep_operands(index, block);
}

// Calls f(panel, rows) for the panels of a span and the group's blocks that see them. Panel-outer: each panel is
// fetched once per group.
template <Scalar T, class F>
void for_panels(const GroupScratch<T>& scratch, Index span, const F& f) {
    const Group& group = scratch.group();
    const Index end = (std::min)((span + 1) * span_panels, ceil_div(group.end, panel_size));
    for (Index p = span * span_panels; p < end; ++p) {
        for (Index b = 0; b < group.blocks(); ++b) {
            const BlockRows<T> rows = scratch.block(b);
            if (p * panel_size < rows.end) f(p, rows);
        }
    }
}

// Ahead of sweep_span, for a group that is part of a block: its gates against one span of keys. Rows are few then, and
// reading memory is the limit, which goes fastest in one long stream after the other: Q^U first, then all the rest.
template <Scalar T>
void sweep_gates(HeadState<T>& state, const GroupScratch<T>& scratch, Index span) {
    for_panels(scratch, span, [&](Index p, const BlockRows<T>& rows) { PanelSweep<T>(state, rows, p).make_gates(); });
}

// All blocks of the group against one span of keys. Spans share nothing, so they may run at the same time.
template <Scalar T>
void sweep_span(HeadState<T>& state, const GroupScratch<T>& scratch, Index span) {
    const Group& group = scratch.group();
    const SoftmaxRows<T> softmax = scratch.softmax(span);
    softmax.clear(group.rows() * state.group());
    const bool has_gates = group.is_part_of_block();
    for_panels(scratch, span, [&](Index p, const BlockRows<T>& rows) {
        PanelSweep<T>(state, rows, p).run(has_gates, softmax, rows.first - group.first, group.rows());
    });
}

// Where the rows of a step go: those of a key-value head's query heads, side by side, and what became of their sums
// where that is asked for, one query head after the other.
template <Scalar T>
struct OutputRows {
    MatrixView<T> out;
    LogSumExp<T> log_sum_exp = {};
    Index log_sum_exp_stride = 0;  // from one query head to the next
};

// out = softmax V^C for the rows of the group's block b, from the spans' parts, in the order of the spans.
template <Scalar T>
void merge_spans(const HeadState<T>& state, const GroupScratch<T>& scratch, Index b, const OutputRows<T>& output) {
    using S = Simd<T>;
    const Index dv = state.dv_padded();
    const Group& group = scratch.group();
    const BlockRows<T> rows = scratch.block(b);
    const auto merge = [&](Index row, Index h) {
        const Index spans = (group.first + row) / span_size + 1;
        const Index softmax_row = h * group.rows() + row;
        T largest = scratch.softmax(0).largest()[softmax_row];
        for (Index s = 1; s < spans; ++s) largest = (std::max)(largest, scratch.softmax(s).largest()[softmax_row]);
        if (largest == -std::numeric_limits<T>::infinity()) largest = T(0);

        T* merged = scratch.softmax(0).out(softmax_row);
        auto sum = S::zero();
        for (Index s = 0; s < spans; ++s) {
            const SoftmaxRows<T> part = scratch.softmax(s);
            const auto factor = exp_nonpositive<T>(S::set(part.largest()[softmax_row] - largest));
            sum = S::fma(factor, S::load(part.sum(softmax_row)), sum);
            for (Index c = 0; c < dv; c += S::width) {
                const auto x = S::load(part.out(softmax_row) + c);
                S::store(merged + c, s == 0 ? S::mul(factor, x) : S::fma(factor, x, S::load(merged + c)));
            }
        }
        const T total = S::sum(sum);
        for (Index c = 0; c < dv; c += S::width) S::store(merged + c, S::div(S::load(merged + c), S::set(total)));
        const Index to = group.row + row;
        std::copy_n(merged, state.dv(), output.out.row(to) + h * state.dv());
        if (output.log_sum_exp) {
            const LogSumExp<T> own = output.log_sum_exp.from(h * output.log_sum_exp_stride + to);
            *own.largest = largest;
            *own.log_sum = std::log(total);
        }
    };
    for (Index h = 0; h < state.group(); ++h) {
        for (Index row = rows.first - group.first; row < rows.end - group.first; ++row) merge(row, h);
    }
}

// After the group: its last block becomes the open one. Its gates are in the state already, and only its lookahead
// keys and values, which lie side by side, are still needed.
template <Scalar T>
void keep_open_block(HeadState<T>& state, const GroupScratch<T>& scratch) {
    const Group& group = scratch.group();
    const BlockRows<T> last = scratch.block(group.blocks() - 1);
    if (state.has_lookahead() && group.blocks() > 1 && !last.finishes()) {
        std::copy_n(last.operands.lookahead_keys(), 2 * state.d() * block_size, state.open_block().lookahead_keys());
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
