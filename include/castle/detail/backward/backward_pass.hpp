// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/backward/gradient_state.hpp>
#include <castle/detail/backward/panel_gradient.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/group.hpp>
#include <castle/detail/simd/dot.hpp>
#include <castle/detail/simd/tile.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/executor.hpp>
#include <castle/gradient.hpp>
#include <castle/input.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What the backward pass of one head goes from, all `[L, ...]`: the input, the forward pass's output and logarithms of
// sums, and the output's gradient.
template <Scalar T>
struct BackwardInput {
    HeadInput<T> head;
    ConstMatrixView<T> out;
    LogSumExp<T> log_sum_exp;
    ConstMatrixView<T> d_out;
};

// One head's backward pass: the blocks of the sweep in reverse, a group of them at a time, as the sweep does it: every
// block of the group is packed, all blocks meet all panels, one span of panels apart from the other, and the spans'
// sums are added up in the order of the spans. `state` is as the forward pass left it, and is used up.
template <Scalar T>
class BackwardPass {
  public:
    // Scratch that one head needs while it runs.
    static Index numbers(const HeadState<T>& state, Index tokens) {
        return group_blocks * (packed_numbers(state) + ceil_div(tokens, span_size) * sums_numbers(state));
    }

    BackwardPass(HeadState<T>& state, GradientState<T>& gradients, const BackwardInput<T>& input,
                 const HeadGradientView<T>& d_head, T* memory)
        : state_(state), gradients_(gradients), input_(input), d_head_(d_head), memory_(memory) {}

    void start_panel(Index p) { gradients_.start(p, input_.head.causal.v); }

    // The operands of the group's block b, and its rows' cotangents.
    void pack_block(const Group& group, Index b) {
        const BlockRows<T> rows = block(group, b);
        const BlockOperands<T>& operands = rows.operands;
        const Index d = state_.shape().d, n = rows.count();
        const HeadInput<T>& head = input_.head;
        transpose(head.causal.q, rows.first, n, state_.scale(), operands.causal_queries(), block_size);
        transpose(input_.d_out, rows.first, n, T(1), d_out(b), block_size);
        for (Index i = 0; i < n; ++i) {
            delta(b)[i] = dot(input_.d_out.row(rows.first + i), input_.out.row(rows.first + i), state_.shape().dv);
        }
        if (!state_.has_lookahead()) return;
        transpose(head.lookahead.k, rows.first, n, state_.scale(), operands.lookahead_keys(), block_size);
        transpose(head.lookahead.v, rows.first, n, T(1), operands.lookahead_values(), block_size);
        multiply<block_size>(n, d, Operand<T>{operands.causal_queries(), 1, block_size}, operands.lookahead_values(),
                             block_size, operands.triangle(), block_size);
    }

    // All blocks of the group, the last one first, against one span of keys.
    void sweep_span(const Group& group, Index span) {
        for (Index b = 0; b < group.blocks(); ++b) {
            std::fill_n(sums(span, b).causal_queries(), sums_numbers(state_), T(0));
        }
        const Index end = (std::min)((span + 1) * span_panels, ceil_div(group.end, panel_size));
        for (Index p = span * span_panels; p < end; ++p) {
            for (Index b = group.blocks() - 1; b >= 0; --b) {
                const BlockRows<T> rows = block(group, b);
                if (p * panel_size >= rows.end) break;
                const BlockCotangents<T> cotangents{
                    .d_out = d_out(b), .delta = delta(b), .log_sum_exp = input_.log_sum_exp.from(rows.first)};
                PanelGradient<T>(state_, gradients_, rows, cotangents, sums(span, b), input_.head.lookahead, p).run();
            }
        }
    }

    // The gradients of the rows of the group's block b: dQ^C, dK^U, dV^U; without lookahead dQ^U as well.
    void finish_block(const Group& group, Index b) {
        const BlockRows<T> rows = block(group, b);
        const BlockOperands<T> total = sums(0, b);
        for (Index s = 1; s <= (rows.end - 1) / span_size; ++s) {
            const T* part = sums(s, b).causal_queries();
            T* sum = total.causal_queries();
            for (Index i = 0; i < sums_numbers(state_); i += Simd<T>::width) {
                Simd<T>::store(sum + i, Simd<T>::add(Simd<T>::load(sum + i), Simd<T>::load(part + i)));
            }
        }
        if (state_.has_lookahead()) add_triangle(rows, total);
        write(total.causal_queries(), block_size, rows, state_.scale(), d_head_.causal.q);
        if (!state_.has_lookahead()) {
            // With a window of 0 there may be lookahead inputs, which have no effect; standard attention has none.
            for (const MatrixView<T>& d : {d_head_.lookahead.q, d_head_.lookahead.k, d_head_.lookahead.v}) {
                if (d.rows() > 0) d.middle_rows(rows.first, rows.count()).map().setZero();
            }
            return;
        }
        write(total.lookahead_keys(), block_size, rows, state_.scale(), d_head_.lookahead.k);
        write(total.lookahead_values(), block_size, rows, T(1), d_head_.lookahead.v);
    }

    // The gradients of the keys of panel p: dK^C, dV^C, dQ^U.
    void finish_panel(Index p) {
        const BlockRows<T> rows{.origin = p * panel_size,
                                .first = p * panel_size,
                                .end = (std::min)((p + 1) * panel_size, input_.d_out.rows()),
                                .operands = {nullptr, 0}};
        write(gradients_.d_causal_keys(p), panel_size, rows, T(1), d_head_.causal.k);
        write(gradients_.d_values(p), panel_size, rows, T(1), d_head_.causal.v);
        if (state_.has_lookahead())
            write(gradients_.d_lookahead_queries(p), panel_size, rows, T(1), d_head_.lookahead.q);
    }

  private:
    // operands, dO^T, delta
    static Index packed_numbers(const HeadState<T>& state) {
        return sums_numbers(state) + (state.shape().dv + 1) * block_size;
    }
    static Index sums_numbers(const HeadState<T>& state) {
        return BlockOperands<T>::numbers(state.shape().d, state.has_lookahead());
    }

    BlockRows<T> block(const Group& group, Index b) const {
        const Index origin = group.first + b * block_size;
        return {.origin = origin,
                .first = origin,
                .end = (std::min)(origin + block_size, group.end),
                .operands = {packed(b), state_.shape().d}};
    }
    T* packed(Index b) const { return memory_ + b * packed_numbers(state_); }
    T* d_out(Index b) const { return packed(b) + sums_numbers(state_); }
    T* delta(Index b) const { return d_out(b) + state_.shape().dv * block_size; }
    BlockOperands<T> sums(Index span, Index b) const {
        T* first = memory_ + group_blocks * packed_numbers(state_);
        return {first + (span * group_blocks + b) * sums_numbers(state_), state_.shape().d};
    }

    // dQ^C += dT V^U and dV^U += dT^T scale Q^C, of dT the lower triangle. No key absorbs token 0.
    void add_triangle(const BlockRows<T>& rows, const BlockOperands<T>& total) const {
        alignas(64) T transposed[block_size * block_size];
        transpose(ConstMatrixView<T>(total.triangle(), block_size, block_size), 0, block_size, T(1), transposed,
                  block_size);
        const auto add = [&](const T* x, const T* triangle, T* to, const ColumnRange* ranges) {
            multiply_add_within<block_size, block_size, block_size>(state_.shape().d, rows.count(), x, triangle, to,
                                                                    ranges);
        };
        const Index absorbed = rows.origin == 0 ? 1 : 0;
        ColumnRange from[block_size], up_to[block_size];
        for (Index i = 0; i < block_size; ++i) {
            from[i] = {i < absorbed ? block_size : i, block_size};
            up_to[i] = {absorbed, i + 1};
        }
        add(rows.operands.lookahead_values(), transposed, total.causal_queries(), from);
        add(rows.operands.causal_queries(), total.triangle(), total.lookahead_values(), up_to);
    }

    // to[token, :] = scale from[:, token]
    static void write(const T* from, Index stride, const BlockRows<T>& rows, T scale, MatrixView<T> to) {
        transpose(ConstMatrixView<T>(from, to.cols(), rows.count(), stride), 0, to.cols(), scale, to.row(rows.first),
                  to.outer_stride());
    }

    HeadState<T>& state_;
    GradientState<T>& gradients_;
    BackwardInput<T> input_;
    HeadGradientView<T> d_head_;
    T* memory_;
};

// The passes of `heads` heads of equal size and length; pass(h) gives head h's.
template <class Pass>
void run_backward(Index heads, Index tokens, const Pass& pass, const Executor& executor) {
    const auto for_parts = [&](Index parts, const auto& f) {
        run(executor, heads * parts, [&](Index i) {
            auto one = pass(i / parts);
            f(one, i % parts);
        });
    };
    const Index panels = ceil_div(tokens, panel_size);
    for_parts(panels, [](auto& head, Index p) { head.start_panel(p); });
    for (Index first = round_down(tokens - 1, group_size); first >= 0; first -= group_size) {
        const Group group{.first = first, .end = (std::min)(first + group_size, tokens), .call_row = first};
        for_parts(group.blocks(), [&](auto& head, Index b) { head.pack_block(group, b); });
        for_parts(group.spans(), [&](auto& head, Index span) { head.sweep_span(group, span); });
        for_parts(group.blocks(), [&](auto& head, Index b) { head.finish_block(group, b); });
    }
    for_parts(panels, [](auto& head, Index p) { head.finish_panel(p); });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
