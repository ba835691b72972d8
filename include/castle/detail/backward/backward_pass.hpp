// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <castle/detail/backward/gradient_state.hpp>
#include <castle/detail/backward/panel_gradient.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/dot.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/group.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/input.hpp>
#include <castle/output.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What the backward pass of one key-value head and its group goes from and to. Row t of all is token t: the input, the
// forward pass's output, logarithms of sums and masses, their gradients, and where the input's gradient goes.
template <Scalar T, Scalar In = T>
struct BackwardInput {
    using C = Compute<T>;

    Input<In> input;
    ConstMatrixView<C> out;
    LogSumExp<C> log_sum_exp;
    const C* mass;  // null where none was asked for
    Index stride;   // of both, from one query head to the next
    OutputGradient<C> d_output;
    GradientView<C> gradient;
    Sight sight;

    Index rows() const { return d_output.out.rows(); }
    Index keys() const { return sight.keys; }
};

// The backward pass of one key-value head: the blocks of the sweep in reverse, a group of them at a time, as the sweep
// does it: every block of the group is packed, all blocks meet all panels, one span of panels apart from the other, and
// the spans' sums are added up in the order of the spans. `state` is as the forward pass left it, and is used up.
template <Scalar T, Scalar In = T>
class BackwardPass {
    using C = Compute<T>;

  public:
    // Scratch for a head of so many rows and keys, and how many of LastBadBlocks.
    static Index elements(const HeadState<T>& state, Index rows, Index keys) {
        return panels(keys) * GradientState<C>::elements(state.kind()) +
               blocks_of_groups(rows) * (packed_elements(state) + spans(keys) * part_elements(state)) +
               terms_elements(state, rows, keys);
    }
    static Index panels(Index keys) { return ceil_div(keys, panel_size); }

    BackwardPass(HeadState<T>& state, const BackwardInput<T, In>& input, C* memory, LastBadBlocks* last_bad_blocks)
        : state_(state),
          gradients_(state.kind(), memory, last_bad_blocks),
          input_(input),
          blocks_(blocks_of_groups(input.rows())),
          memory_(memory + panels(input.keys()) * GradientState<C>::elements(state.kind())) {}

    // That rows and keys can have.
    Index distances() const { return (std::max)(input_.rows(), input_.keys()); }
    static Index groups(Index tokens) { return ceil_div(tokens, group_size); }
    static Group group(Index tokens, Index g, const Sight& sight) {
        return Group::next(g * group_size, tokens, 0, sight);
    }

    // All steps one after the other.
    void run() {
        start_terms();
        for (Index p = 0; p < panels(input_.keys()); ++p) start_panel(p);
        for (Index g = groups(input_.rows()) - 1; g >= 0; --g) {
            const Group one = group(input_.rows(), g, input_.sight);
            for (Index b = 0; b < one.blocks(); ++b) pack_block(one, b);
            for (Index span = one.first_span(); span < one.spans(); ++span) sweep_span(one, span);
            add_terms(one);
            for (Index b = 0; b < one.blocks(); ++b) finish_block(one, b);
        }
        for (Index p = 0; p < panels(input_.keys()); ++p) finish_panel(p);
    }

    void start_panel(Index p) {
        const Index rows = (std::min)(panel_size, input_.keys() - p * panel_size);
        gradients_.start(p, state_.values(p), state_.dv_padded(), rows);
    }

    // The operands of the group's block b, and its rows' cotangents.
    void pack_block(const Group& group, Index b) {
        const BlockRows<T> rows = block(group, b);
        const BlockOperands<C>& operands = rows.operands();
        const Index d = state_.d(), dv = state_.dv(), n = rows.count();
        const Input<In>& input = input_.input;
        const auto pack = [&](const auto& from, Index first_col, Index cols, C scale, C* to) {
            transpose(from.row(rows.first) + first_col, from.outer_stride(), n, cols, scale, to, block_size);
        };
        for (Index h = 0; h < state_.group(); ++h) {
            pack(input.causal.q, h * d, d, state_.scale(), operands.causal_queries(h));
            pack(input_.d_output.out, h * dv, dv, C(1), d_out(b, h));
            RowFactor<T>::make(d_out(b, h), dv, 0, n, d_out_pairs(b, h));
            for (Index i = 0; i < n; ++i) pack_row(rows.first + i, h, delta(b, h)[i], d_mass(b, h)[i]);
        }
        if (!state_.has_lookahead()) {
            rows.factors.make(0, n);
            return;
        }
        pack(input.lookahead.k, 0, d, state_.scale(), operands.lookahead_keys());
        pack(input.lookahead.v, 0, d, C(1), operands.lookahead_values());
        for (Index h = 0; h < state_.group(); ++h) {
            multiply<block_size>(n, d, Operand<C>{operands.causal_queries(h), 1, block_size},
                                 operands.lookahead_values(), block_size, operands.triangle(h), block_size);
        }
        rows.factors.make(0, n);
        RowFactor<T>::make(operands.lookahead_values(), d, 0, n, value_pairs(b));
    }

    // All blocks of the group, the last one first, against one span of keys.
    void sweep_span(const Group& group, Index span) {
        for (Index b = 0; b < group.blocks(); ++b) std::fill_n(sums(span, b).data(), part_elements(state_), C(0));
        const Index end = (std::min)((span + 1) * span_panels, ceil_div(group.keys.end, panel_size));
        for (Index p = (std::max)(span * span_panels, group.keys.begin / panel_size); p < end; ++p) {
            for (Index b = group.blocks() - 1; b >= 0; --b) {
                const BlockRows<T> rows = block(group, b);
                if (group.sight.rule == nullptr && p * panel_size >= rows.end) break;
                PanelGradient<T, In>(state_, gradients_, rows, sums(span, b), input_.input.lookahead, values_factor(b),
                                     p)
                    .run([&](Index h) {
                        return BlockCotangents<T>{
                            .d_out = d_out(b, h),
                            .d_out_factor = d_out_factor(b, h),
                            .delta = delta(b, h),
                            .d_mass = has_mass_gradient() ? d_mass(b, h) : nullptr,
                            .log_sum_exp = input_.log_sum_exp.from(h * input_.stride + rows.first),
                            .tables = has_tables(state_) ? tables(span, b, h) : nullptr};
                    });
            }
        }
    }

    // The gradients of score terms: of query head h those of its tables, for all distances, and
    // of its sink.
    const C* d_factor(Index h) const { return terms(h); }
    const C* d_bias(Index h) const { return terms(h) + distances(); }
    C d_sink(Index h) const { return terms(h)[2 * distances()]; }

    void start_terms() {
        if (state_.terms() != nullptr) {
            std::fill_n(terms(0), terms_elements(state_, input_.rows(), input_.keys()), C(0));
        }
    }

    // Adds what the group's rows give to them, in the order of the spans and the blocks.
    void add_terms(const Group& group) {
        if (state_.terms() == nullptr) return;
        for (Index h = 0; h < state_.group(); ++h) {
            if (state_.terms()->has_sinks()) add_sink(group, h);
            if (!has_tables(state_)) continue;
            for (Index span = group.first_span(); span < group.spans(); ++span) {
                for (Index b = 0; b < group.blocks(); ++b)
                    add_tables(block(group, b).origin, span, tables(span, b, h), h);
            }
        }
    }

    // The gradients of the rows of the group's block b: dQ^C, dK^U, dV^U; without lookahead dQ^U as well.
    void finish_block(const Group& group, Index b) {
        const BlockRows<T> rows = block(group, b);
        const BlockOperands<C> total = sums(group.first_span(), b);
        const Index d = state_.d();
        const Index spans = group.sight.rule != nullptr ? group.spans() : (rows.end - 1) / span_size + 1;
        for (Index s = group.first_span() + 1; s < spans; ++s) {
            const C* part = sums(s, b).data();
            C* sum = total.data();
            for (Index i = 0; i < sums_elements(state_); i += Simd<C>::width) {
                Simd<C>::store(sum + i, Simd<C>::add(Simd<C>::load(sum + i), Simd<C>::load(part + i)));
            }
        }
        const GradientView<C>& gradient = input_.gradient;
        for (Index h = 0; h < state_.group(); ++h) {
            if (state_.has_lookahead()) add_triangle(rows, total, h);
            write(total.causal_queries(h), block_size, rows.first, rows.count(), state_.scale(), gradient.causal.q,
                  h * d, d);
        }
        if (!state_.has_lookahead()) {
            // There may be lookahead inputs, which have no effect.
            for (const MatrixView<C>& g : {gradient.lookahead.q, gradient.lookahead.k, gradient.lookahead.v}) {
                if (g.rows() > 0) g.middle_rows(rows.first, rows.count()).map().setZero();
            }
            return;
        }
        write(total.lookahead_keys(), block_size, rows.first, rows.count(), state_.scale(), gradient.lookahead.k, 0, d);
        write(total.lookahead_values(), block_size, rows.first, rows.count(), C(1), gradient.lookahead.v, 0, d);
    }

    // The gradients of the keys of panel p: dK^C, dV^C, dQ^U.
    void finish_panel(Index p) {
        const Index first = p * panel_size, count = (std::min)(panel_size, input_.keys() - first);
        const GradientView<C>& gradient = input_.gradient;
        write(gradients_.d_causal_keys(p), panel_size, first, count, C(1), gradient.causal.k, 0, state_.d());
        write(gradients_.d_values(p), panel_size, first, count, C(1), gradient.causal.v, 0, state_.dv());
        if (state_.has_lookahead()) {
            write(gradients_.d_lookahead_queries(p), panel_size, first, count, C(1), gradient.lookahead.q, 0,
                  state_.d());
        }
    }

  private:
    // Blocks that a group of so many tokens has at most.
    static Index blocks_of_groups(Index tokens) { return (std::min)(ceil_div(tokens, block_size), group_blocks); }

    // Operands; of each query head dO^T, delta and the gradients of masses; and as factors the operands, V^U and dO.
    static Index packed_elements(const HeadState<T>& state) {
        return factors_at(state) + BlockFactors<T>::elements(state.operand_sizes()) +
               RowFactor<T>::elements(state.d()) + state.group() * RowFactor<T>::elements(state.dv());
    }
    static Index factors_at(const HeadState<T>& state) {
        return sums_elements(state) + state.group() * cotangent_elements(state);
    }
    static Index cotangent_elements(const HeadState<T>& state) { return (state.dv() + 2) * block_size; }
    static Index sums_elements(const HeadState<T>& state) { return state.operand_sizes().elements(); }
    // The same with the tables' gradients, of a span and a block.
    static Index part_elements(const HeadState<T>& state) {
        return sums_elements(state) + (has_tables(state) ? state.group() * TableSums::elements : 0);
    }
    static bool has_tables(const HeadState<T>& state) {
        return state.terms() != nullptr && state.terms()->has_tables();
    }
    // Of each query head the gradients of its tables, factors before biases, and of its sink.
    static Index terms_elements(const HeadState<T>& state, Index rows, Index keys) {
        return state.terms() != nullptr ? state.group() * (2 * (std::max)(rows, keys) + 1) : 0;
    }
    static Index spans(Index keys) { return (std::max)(ceil_div(keys, span_size), Index(1)); }
    bool has_mass_gradient() const { return input_.d_output.mass.rows() > 0; }

    // delta = dO . O, and what the gradients of the logarithm of the sum and of the mass take from every score.
    void pack_row(Index t, Index h, C& delta, C& d_mass) const {
        const Index dv = state_.dv();
        const OutputGradient<C>& d = input_.d_output;
        delta = output_delta(d.out.row(t) + h * dv, input_.out.row(t) + h * dv);
        if (d.log_sum_exp.rows() > 0) delta -= d.log_sum_exp.row(t)[h];
        if (!has_mass_gradient()) return;
        d_mass = d.mass.row(t)[h];
        delta = std::fma(d_mass, input_.mass[h * input_.stride + t], delta);
    }

    // dO . O with dO as the products with values have it: what is to cancel there would not otherwise.
    C output_delta(const C* d_out, const C* out) const {
        const Index dv = state_.dv();
        if constexpr (multiplies_pairs<T>) {
            C sum = 0;
            for (Index c = 0; c < dv; c += panel_size) {
                const Index n = (std::min)(panel_size, dv - c);
                alignas(64) C rounded[panel_size];
                std::transform(d_out + c, d_out + c + n, rounded, [](C x) { return widened(narrowed<T>(x)); });
                sum += dot(rounded, out + c, n);
            }
            return sum;
        } else {
            return dot(d_out, out, dv);
        }
    }

    void add_sink(const Group& group, Index h) {
        const C sink = state_.terms()->sink(state_.first_head() + h);
        C& sum = terms(h)[2 * distances()];
        for (Index b = 0; b < group.blocks(); ++b) {
            const BlockRows<T> rows = block(group, b);
            for (Index i = 0; i < rows.count(); ++i) {
                const LogSumExp<C> own = input_.log_sum_exp.from(h * input_.stride + rows.first + i);
                sum = std::fma(-exp_of_one((sink - *own.largest) - *own.log_sum), delta(b, h)[i], sum);
            }
        }
    }

    // The sums of one span and the block at `origin`; a distance has a place on either side of it.
    void add_tables(Index origin, Index span, const C* sums, Index h) {
        C* to = terms(h);
        const Index nearest = origin + TableSums::last_row - span * span_size;  // the place of distance 0
        for (const C* part : {sums, sums + TableSums::distances}) {
            for (Index place = 0; place < span_size + TableSums::last_row; ++place) {
                const Index distance = place < nearest ? nearest - place : place - nearest;
                if (distance < distances()) to[distance] += part[place];
            }
            to += distances();
        }
    }

    BlockRows<T> block(const Group& group, Index b) const {
        const Index origin = group.first + b * block_size;
        const OperandSizes sizes = state_.operand_sizes();
        return {.origin = origin,
                .first = origin,
                .end = (std::min)(origin + block_size, group.end),
                .sight = group.sight,
                .factors = {BlockOperands<C>(packed(b), sizes), sizes, packed(b) + factors_at(state_)}};
    }
    C* packed(Index b) const { return memory_ + b * packed_elements(state_); }
    C* d_out(Index b, Index h) const { return packed(b) + sums_elements(state_) + h * cotangent_elements(state_); }
    T* value_pairs(Index b) const {
        return reinterpret_cast<T*>(packed(b) + factors_at(state_) + BlockFactors<T>::elements(state_.operand_sizes()));
    }
    T* d_out_pairs(Index b, Index h) const {
        return value_pairs(b) + RowFactor<T>::size(state_.d()) + h * RowFactor<T>::size(state_.dv());
    }
    LeftFactor<T> values_factor(Index b) const {
        return RowFactor<T>::of(BlockOperands<C>(packed(b), state_.operand_sizes()).lookahead_values(), value_pairs(b));
    }
    LeftFactor<T> d_out_factor(Index b, Index h) const { return RowFactor<T>::of(d_out(b, h), d_out_pairs(b, h)); }
    C* delta(Index b, Index h) const { return d_out(b, h) + state_.dv() * block_size; }
    C* d_mass(Index b, Index h) const { return delta(b, h) + block_size; }
    BlockOperands<C> sums(Index span, Index b) const {
        C* first = memory_ + blocks_ * packed_elements(state_);
        return {first + (span * blocks_ + b) * part_elements(state_), state_.operand_sizes()};
    }
    C* tables(Index span, Index b, Index h) const {
        return sums(span, b).data() + sums_elements(state_) + h * TableSums::elements;
    }
    C* terms(Index h) const {
        return memory_ + blocks_ * (packed_elements(state_) + spans(input_.keys()) * part_elements(state_)) +
               h * (2 * distances() + 1);
    }

    // Of query head h: dQ^C += dT V^U and dV^U += dT^T scale Q^C, of dT the lower triangle. No key absorbs token 0. Not
    // to take stack where panels are met.
    EIGEN_DONT_INLINE void add_triangle(const BlockRows<T>& rows, const BlockOperands<C>& total, Index h) const {
        alignas(64) C transposed[block_size * block_size];
        transpose(total.triangle(h), block_size, block_size, block_size, C(1), transposed, block_size);
        const auto add = [&](const C* x, const C* triangle, C* to, const SmallRange* ranges) {
            multiply_add_within<block_size, block_size, block_size>(state_.d(), rows.count(), x, triangle, to, ranges);
        };
        if (rows.sight.rule != nullptr &&
            !(is_finite(rows.operands().lookahead_values(), state_.d(), rows.count(), block_size) &&
              is_finite(rows.operands().causal_queries(h), state_.d(), rows.count(), block_size))) {
            add_related_triangle(rows, total, h, transposed);
            return;
        }
        const Index absorbed = rows.origin == 0 ? 1 : 0;
        SmallRange from[block_size], up_to[block_size];
        for (Index i = 0; i < block_size; ++i) {
            from[i] = ColumnRange{i < absorbed ? block_size : i, block_size};
            up_to[i] = ColumnRange{absorbed, i + 1};
        }
        add(rows.operands().lookahead_values(), transposed, total.causal_queries(h), from);
        add(rows.operands().causal_queries(h), total.triangle(h), total.lookahead_values(), up_to);
    }

    // The same of the pairs of tokens that a key relates: the one sees it, and it absorbs the other.
    void add_related_triangle(const BlockRows<T>& rows, const BlockOperands<C>& total, Index h,
                              const C* transposed) const {
        const Sight& sight = rows.sight;
        BlockWords of_rows{}, of_columns{};
        const KeyRange reach = sight.reach(rows.origin, rows.end);
        for (Index p = reach.begin / panel_size; p * panel_size < reach.end; ++p) {
            BlockWords seen, absorbed;
            see(sight.rule, rows.origin, rows.origin, rows.end, p, sight.keys, seen);
            absorb(seen, state_.window(), rows.origin, rows.origin, rows.end, p, absorbed);
            for (Index i = 0; i < rows.count(); ++i) {
                for (Index j = 0; j <= i; ++j) {
                    if ((seen[std::size_t(i)] & absorbed[std::size_t(j)]) == 0) continue;
                    of_rows[std::size_t(i)] |= std::uint64_t(1) << j;
                    of_columns[std::size_t(j)] |= std::uint64_t(1) << i;
                }
            }
        }
        const auto add = [&](const C* x, const C* triangle, C* to, const BlockWords& words) {
            multiply_add_where<block_size>(state_.d(), rows.count(), Operand<C>{x, block_size, 1}, triangle, block_size,
                                           to, block_size, words.data());
        };
        add(rows.operands().lookahead_values(), transposed, total.causal_queries(h), of_columns);
        add(rows.operands().causal_queries(h), total.triangle(h), total.lookahead_values(), of_rows);
    }

    // to[token, first_col + k] = scale from[k, token], k < cols
    static void write(const C* from, Index stride, Index first, Index count, C scale, const MatrixView<C>& to,
                      Index first_col, Index cols) {
        transpose(from, stride, cols, count, scale, to.row(first) + first_col, to.outer_stride());
    }

    HeadState<T>& state_;
    GradientState<C> gradients_;
    const BackwardInput<T, In>& input_;
    Index blocks_;
    C* memory_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
