// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <castle/detail/forward/group_scratch.hpp>
#include <castle/detail/forward/group_views.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/score/log_sum_exp.hpp>
#include <castle/detail/score/span_states.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/input.hpp>
#include <castle/output.hpp>

// The steps that a group of tokens goes through, for one key-value head and the query heads on it.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Copies the keys and values of tokens [first, first + count), which are of one block, to their panel, if that is here;
// they are the rows of the input from `row` on. Ahead of the block's turn its lookahead queries, which are in a ring
// buffer, are not to take the place of those that earlier blocks need.
template <Scalar T, Scalar In>
void pack_keys(HeadState<T>& state, Index first, Index count, const Input<In>& input, Index row, bool is_ahead) {
    using C = Compute<T>;
    const Index d = state.d(), p = first / panel_size, column = first % panel_size;
    if (!state.share().has_panel(p)) return;
    const auto pack = [&](const ConstMatrixView<In>& from, T* to) {
        transpose(from.row(row), from.outer_stride(), count, d, C(1), to + column, panel_size);
    };
    pack(input.causal.k, state.causal_keys(p));
    for (Index i = 0; i < count; ++i) {
        copy_numbers(input.causal.v.row(row + i), state.dv(), state.values(p) + (column + i) * state.dv_padded());
    }
    if (!state.has_lookahead()) return;
    // U of a panel begins at zero with the panel's first token. Where it is in a ring, its place may be another panel's
    // until then.
    if (column == 0 && !(is_ahead && HeadState<T>::has_narrow_keys)) {
        std::fill_n(state.lookahead_keys(p), d * panel_size, C(0));
    }
    if (!is_ahead) pack(input.lookahead.q, state.lookahead_queries(p));
}

// What the panels absorb of the rows' block, for later calls that find it open or undo it.
template <Scalar T>
void keep_words(HeadState<T>& state, const BlockRows<T>& rows) {
    const Index block = rows.origin / block_size;
    if (!state.is_masked() || !(rows.is_split() || state.history().keeps(block))) return;
    for (Index p = oldest_panel(state.window(), rows.origin); p * panel_size < rows.end; ++p) {
        if (!state.share().has_panel(p)) continue;
        const BlockWords absorbed =
            absorbed_words(rows.sight.rule, state.window(), rows.origin, rows.first, rows.end, p, rows.sight.keys);
        const Index skip = rows.first - rows.origin;
        std::copy_n(absorbed.begin() + skip, block_size - skip, state.words(block, p) + skip);
    }
}

// Copies the rows of the group's block b to where the kernels read them, and makes the block's triangles.
template <Scalar T, Scalar In>
void pack_block(HeadState<T>& state, const GroupScratch<T>& scratch, Index b, const Input<In>& input) {
    using C = Compute<T>;
    const Index d = state.d();
    const BlockRows<T> rows = scratch.block(b);
    const Index row = scratch.group().row + rows.first - scratch.group().first;
    const Index skip = rows.first - rows.origin;
    const auto pack = [&](const ConstMatrixView<In>& from, Index first_col, C scale, C* to, Index stride) {
        transpose(from.row(row) + first_col, from.outer_stride(), rows.count(), d, scale, to, stride);
    };

    if (rows.sight.has_own_keys) pack_keys(state, rows.first, rows.count(), input, row, /*is_ahead=*/false);
    const BlockOperands<C>& block = rows.operands();
    for (Index h = 0; h < state.group(); ++h) {
        pack(input.causal.q, h * d, state.scale(), block.causal_queries(h) + skip, block_size);
    }
    if (!state.has_lookahead()) {
        rows.factors.make(skip, skip + rows.count());
        return;
    }

    keep_words(state, rows);
    pack(input.lookahead.k, 0, state.scale(), block.lookahead_keys() + skip, block_size);
    pack(input.lookahead.v, 0, C(1), block.lookahead_values() + skip, block_size);
    // Of the triangle only the columns of tokens that are there.
    const Index columns = round_up(skip + rows.count(), Simd<C>::width);
    for (Index h = 0; h < state.group(); ++h) {
        const Operand<C> queries{block.causal_queries(h) + skip, 1, block_size};
        C* triangle = block.triangle(h) + skip * block_size;
        if (columns == block_size) {
            multiply<block_size>(rows.count(), d, queries, block.lookahead_values(), block_size, triangle, block_size);
        } else {
            multiply_columns(rows.count(), d, queries, columns, block.lookahead_values(), block_size, triangle,
                             block_size);
        }
    }
    rows.factors.make(skip, skip + rows.count());
    const Index index = rows.origin / block_size;
    if (rows.finishes() && state.history().keeps(index)) state.history().keep_operands(index, block);
}

// Calls f(panel, rows) for the panels of a span and the group's blocks that may see them. Panel-outer: each panel is
// fetched once per group.
template <Scalar T, class F>
void for_panels(const GroupScratch<T>& scratch, Index span, const F& f) {
    const Group& group = scratch.group();
    const Index end = (std::min)((span + 1) * span_panels, ceil_div(group.keys.end, panel_size));
    for (Index p = (std::max)(span * span_panels, group.keys.begin / panel_size); p < end; ++p) {
        for (Index b = 0; b < group.blocks(); ++b) {
            const BlockRows<T> rows = scratch.block(b);
            if (group.sight.rule != nullptr || p * panel_size < rows.end) f(p, rows);
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
    const SpanStates<Compute<T>> states = scratch.states(span);
    states.clear(group.rows() * state.group());
    const bool has_gates = group.is_part_of_block();
    for_panels(scratch, span, [&](Index p, const BlockRows<T>& rows) {
        PanelSweep<T>(state, rows, p).run(has_gates, states, rows.first - group.first, group.rows());
    });
}

// Where the rows of a step go: those of all query heads, or of those of one key-value head, side by side; and what
// became of their sums where that is asked for.
template <Scalar T>
struct OutputRows {
    MatrixView<T> out;
    // For the caller, a column a query head.
    MatrixView<Compute<T>> whole_log_sum_exp = {};
    MatrixView<Compute<T>> mass = {};
    // For the backward pass, one query head after the other.
    LogSumExp<Compute<T>> log_sum_exp = {};
    Compute<T>* kept_mass = nullptr;
    Index stride = 0;  // from one query head to the next

    bool has_mass() const { return mass.data() != nullptr || kept_mass != nullptr; }
    bool has_by_products() const { return whole_log_sum_exp.data() != nullptr || mass.data() != nullptr; }

    // Some rows of all of them, for the caller only.
    OutputRows rows_from(Index first, Index count) const {
        const auto cut = [&](const auto& m) { return m.data() == nullptr ? m : m.middle_rows(first, count); };
        return {.out = cut(out), .whole_log_sum_exp = cut(whole_log_sum_exp), .mass = cut(mass)};
    }

    // What is that of one key-value head, with `group` query heads.
    OutputRows of_group(Index kv_head, Index group, Index dv) const {
        const auto cut = [&](const auto& m, Index cols) {
            return m.data() == nullptr ? m : view_of_group(m, kv_head, cols, 0, m.rows());
        };
        const Index first = kv_head * group * stride;
        return {.out = cut(out, group * dv),
                .whole_log_sum_exp = cut(whole_log_sum_exp, group),
                .mass = cut(mass, group),
                .log_sum_exp = log_sum_exp.from(first),
                .kept_mass = kept_mass != nullptr ? kept_mass + first : nullptr,
                .stride = stride};
    }
};

template <Scalar T>
OutputRows<T> output_rows(const Output<T>& output) {
    const auto view = [](const auto& m) { return m.rows() > 0 ? m : MatrixView<Compute<T>>(); };
    return {.out = output.out, .whole_log_sum_exp = view(output.log_sum_exp), .mass = view(output.mass)};
}
// What is beside `out`, which is left empty, in the scalar that is computed in.
template <Scalar T>
OutputRows<Compute<T>> by_products(const Output<T>& output) {
    return output_rows(Output<Compute<T>>{.log_sum_exp = output.log_sum_exp, .mass = output.mass, .mass_over = {}});
}
// The masks of the mass that is asked for.
template <Scalar T>
Masks mass_over(const Output<T>& output) {
    return output.mass.rows() > 0 ? output.mass_over : Masks();
}

// Whether the mask leaves a row of the group no key at all.
inline bool sees_nothing(const Group& group, Index row) {
    const Sight& sight = group.sight;
    if (sight.rule == nullptr) return false;
    const Index t = group.first + row;
    const KeyRange reach = sight.reach(t, t + 1);
    for (Index p = reach.begin / panel_size; p * panel_size < reach.end; ++p) {
        if ((sight.rule->word(t, p, sight.keys) & range_word(0, sight.keys, p)) != 0) return false;
    }
    return true;
}

// out = softmax V^C of one row of the group and query head h of `state`, from its states state_of(s) over the spans
// that the group sees, in scratch that may be where the first of them has its out.
template <Scalar T, Scalar In, class StateOf>
void finish_row(const HeadState<T>& state, const Group& group, Index row, Index h, const StateOf& state_of,
                Compute<T>* out, const OutputRows<In>& output) {
    using C = Compute<T>;
    const TermTables<C>* terms = state.terms();
    const C sink = terms != nullptr && terms->has_sinks() ? terms->sink(state.first_head() + h)
                                                          : -std::numeric_limits<C>::infinity();
    const Index end = group.sight.rule != nullptr ? group.spans() : (group.first + row) / span_size + 1;
    MergedRow<C> merged =
        merge_spans(group.first_span(), end, sink, state.dv_padded(), output.has_mass(), state_of, out);
    normalize(merged, merged.sum == 0 && sees_nothing(group, row), state.dv_padded(), out);

    const Index to = group.row + row;
    copy_numbers(out, state.dv(), output.out.row(to) + h * state.dv());
    if (output.log_sum_exp) {
        const LogSumExp<C> own = output.log_sum_exp.from(h * output.stride + to);
        *own.largest = merged.largest;
        *own.log_sum = std::log(merged.sum);
    }
    if (output.whole_log_sum_exp.data() != nullptr) {
        output.whole_log_sum_exp.row(to)[h] = merged.largest + std::log(merged.sum);
    }
    if (output.mass.data() != nullptr) output.mass.row(to)[h] = merged.mass;
    if (output.kept_mass != nullptr) output.kept_mass[h * output.stride + to] = merged.mass;
}

// The rows of the group's block b, of all query heads.
template <Scalar T, Scalar In>
void finish_rows(const HeadState<T>& state, const GroupScratch<T>& scratch, Index b, const OutputRows<In>& output) {
    const Group& group = scratch.group();
    const BlockRows<T> rows = scratch.block(b);
    for (Index h = 0; h < state.group(); ++h) {
        for (Index row = rows.first - group.first; row < rows.end - group.first; ++row) {
            const Index at = h * group.rows() + row;
            finish_row(
                state, group, row, h, [&](Index s) { return scratch.states(s).of(at); },
                scratch.states(group.first_span()).out(at), output);
        }
    }
}

// After the group: its last block becomes the open one. Its gates are in the state already, and only its lookahead
// keys and values, which lie side by side, are still needed.
template <Scalar T>
void keep_open_block(HeadState<T>& state, const GroupScratch<T>& scratch) {
    const Group& group = scratch.group();
    const BlockRows<T> last = scratch.block(group.blocks() - 1);
    if (state.has_lookahead() && group.blocks() > 1 && !last.finishes()) {
        std::copy_n(last.operands().lookahead_keys(), 2 * state.d() * block_size, state.open_block().lookahead_keys());
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
