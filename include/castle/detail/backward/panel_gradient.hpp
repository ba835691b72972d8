// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include <castle/detail/backward/cell_pairs.hpp>
#include <castle/detail/backward/cell_products.hpp>
#include <castle/detail/backward/gradient_state.hpp>
#include <castle/detail/backward/restored_keys.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/gates.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/score/score_terms.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/head_state.hpp>

// The heart of the backward pass: one block of tokens I against one panel of keys K, blocks coming in descending order.
//
// U is what the panel's lookahead keys were before the block, dU what later blocks left behind; G[t, s] are the gates
// and, of a query head, T = tril(scale Q^C_I V^U_I^T), as in the sweep.
//
//     forward, of each query head                      backward
//     S^U = scale Q^C_I U^T + T G                      dS^U = -dS * SiLU'(S^U)
//     S = scale Q^C_I K^C_K^T - SiLU(S^U)              dS = P * (dO_I V^C_K^T - delta)
//     P = exp(min(S - largest, 0) - log_sum)
//     forward, once for all of them
//     G = sigmoid(A), A = scale K^U_I Q^U_K^T          dA = dG * G * (1 - G)
//     U += G^T V^U_I                                   dG = V^U_I dU^T + sum over query heads of T^T dS^U
//
// Added to keys, over blocks:    of each query head  dV^C += P^T dO_I   dK^C += dS^T scale Q^C_I
//                                                    dU += dS^U^T scale Q^C_I
//                                once                dQ^U += dA^T scale K^U_I
// Added to tokens, over panels:  of each query head  dQ^C += dS K^C + dS^U U   dT += dS^U G^T
//                                once                dV^U += G dU   dK^U += dA Q^U
// What goes through tril(dT), and the scale of dQ^C and dK^U, come when the panels are summed up.
//
// Fourteen products of block, panel and d, eight of them for each query head. The sums over tokens multiply with
// packets along keys; those over keys multiply with packets along tokens, and for them P's relatives are transposed.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

template <Scalar T, Scalar In = T>
class PanelGradient {
    using C = Compute<T>;
    using S = Simd<C>;
    using Packet = typename S::Packet;

  public:
    // `sums` are the gradients of the block's operands so far, in the operands' places; `lookahead` is the input's, and
    // `values` are V^U of the block, [block][d].
    PanelGradient(HeadState<T>& state, GradientState<C>& gradients, const BlockRows<T>& rows,
                  const BlockOperands<C>& sums, const Qkv<ConstMatrixView<In>>& lookahead, const LeftFactor<T>& values,
                  Index p)
        : state_(state),
          gradients_(gradients),
          rows_(rows),
          sums_(sums),
          lookahead_(lookahead),
          values_(values),
          panel_scores_(state, rows, p),
          pairs_(rows, panel_scores_.tokens(), state.window(), p),
          products_(rows, pairs_),
          p_(p) {}

    // cotangents(h) gives those of query head h.
    template <class Cotangents>
    void run(const Cotangents& cotangents) {
        if (rows_.count() < block_size) products_.clear();
        const Index first = p_ * panel_size;
        if (rows_.sight.mass_over != nullptr) {
            see(rows_.sight.mass_over->rule(), rows_.origin, rows_.origin, rows_.end, p_, rows_.sight.keys,
                mass_words_);
        }
        if (rows_.sight.rule != nullptr) {
            run_masked(cotangents);
            return;
        }
        const Absorbed whole = tokens().by_keys(first, panel_size);
        if (first + panel_size <= rows_.origin && whole != Absorbed::some) {
            run_cell<panel_size>(0, whole, cotangents);
            return;
        }
        for (Index c = 0; c < panel_size && first + c < rows_.end; c += block_size) {
            run_cell<block_size>(c, tokens().by_keys(first + c, block_size), cotangents);
        }
    }

  private:
    template <class Cotangents>
    void run_masked(const Cotangents& cotangents) {
        BlockWords seen, absorbed;
        see(rows_.sight.rule, rows_.origin, rows_.origin, rows_.end, p_, rows_.sight.keys, seen);
        if (cover_of(seen, 0, rows_.count()) == Cover::none) return;
        absorb(seen, state_.window(), rows_.origin, rows_.origin, rows_.end, p_, absorbed);
        const auto run = [&](auto cols, Index c) {
            constexpr Index count = constant<decltype(cols)>;
            if (!pairs_.template begin<count>(c, seen, absorbed)) return;
            // U before the block, of keys that come with it or later.
            if (pairs_.is_diagonal() && state_.has_lookahead()) clear_lookahead_keys<count>();
            run_cell<count>(cotangents);
        };
        const Index first = p_ * panel_size;
        const ColumnRange blocks = blocks_with(seen, 0, rows_.count());
        const bool in_both = blocks.end - blocks.begin == panel_size;
        if (in_both && (first + panel_size <= rows_.origin || first >= rows_.end)) {
            run(std::integral_constant<Index, panel_size>{}, Index(0));
            return;
        }
        for (Index c = blocks.begin; c < blocks.end; c += block_size) {
            run(std::integral_constant<Index, block_size>{}, c);
        }
    }

    // The keys of the panel from column c on, Cols of them.
    template <Index Cols, class Cotangents>
    void run_cell(Index c, Absorbed absorbed, const Cotangents& cotangents) {
        pairs_.begin(c, absorbed);
        run_cell<Cols>(cotangents);
    }
    template <Index Cols, class Cotangents>
    void run_cell(const Cotangents& cotangents) {
        const BlockOperands<C>& block = rows_.operands();
        const Index d = state_.d();
        if (absorbs()) {
            panel_scores_.template compute_gates<Cols>(pairs_.column(), gates_.data(), d_gates_);
            if (pairs_.is_masked()) close_gates<Cols>(pairs_.absorbed_words(), 0, rows_.count(), gates_.data());
            if (rows_.finishes()) unfold<Cols>();
            // Query heads add to dU below, so what needs it as it is comes first.
            products_.template multiply_with<Cols>(values_, d, gradients_.d_lookahead_keys(p_), d_gates_);
            products_.template transpose<Cols>(gates_.data());
            products_.template add_to_tokens<Cols>(d, gradients_.d_lookahead_keys(p_), sums_.lookahead_values(),
                                                   pairs_.taken());
        }
        for (Index h = 0; h < state_.group(); ++h) run_head<Cols>(h, cotangents(h));
        if (absorbs()) {
            differentiate_gates<Cols>();
            products_.template add_to_keys<Cols>(d, block.lookahead_keys(), d_gates_,
                                                 gradients_.d_lookahead_queries(p_), pairs_.absorbing_pairs());
            products_.template transpose<Cols>(d_gates_);
            products_.template add_to_tokens<Cols>(d, state_.lookahead_queries(p_), sums_.lookahead_keys(),
                                                   pairs_.taken());
        }
    }

    // What depends on the cell's weights of query head h. The transposed gates are there for head 0.
    template <Index Cols>
    void run_head(Index h, const BlockCotangents<T>& cotangents) {
        const QueryRows<T> rows = QueryRows<T>::of_head(rows_, h);
        const C* queries = rows_.operands().causal_queries(h);
        const Index d = state_.d();
        if (state_.has_lookahead()) compute_lookahead_scores<Cols>(rows);
        panel_scores_.template compute_causal_scores<Cols>(rows, pairs_.column(), scores_);
        products_.template multiply_with<Cols>(cotangents.d_out_factor, state_.dv(), gradients_.values(p_), d_scores_);
        if (cotangents.d_mass != nullptr) add_mass_gradient<Cols>(cotangents.d_mass);
        panel_scores_.with_lookahead_term(
            [&](const auto& term) { this->template differentiate_scores<Cols>(h, cotangents, term); });

        if (absorbs()) {
            if (h > 0) products_.template transpose<Cols>(gates_.data());
            add_to_triangle<Cols>(h);
            add_to_gates<Cols>(h);
        }
        const KeptPairs visible = pairs_.visible(), seeing = pairs_.seeing();
        products_.template add_to_keys<Cols>(state_.dv(), cotangents.d_out, scores_, gradients_.d_values(p_), visible);
        if (state_.has_causal_scores()) {
            products_.template add_to_keys<Cols>(d, queries, d_scores_, gradients_.d_causal_keys(p_), visible);
            products_.template transpose<Cols>(d_scores_);
            products_.template add_to_tokens<Cols>(d, state_.causal_keys(p_), sums_.causal_queries(h), seeing);
        }
        // Keys that came with the block have U = 0 before it, and its gradient is not needed.
        if (!state_.has_lookahead() || pairs_.is_diagonal()) return;
        products_.template transpose<Cols>(d_lookahead_scores_);
        state_.with_lookahead_keys(p_, rows_.origin, [&](const auto* keys) {
            products_.template add_to_tokens<Cols>(d, keys, sums_.causal_queries(h), seeing);
        });
        products_.template add_to_keys<Cols>(d, queries, d_lookahead_scores_, gradients_.d_lookahead_keys(p_), visible);
    }

    // Into d_lookahead_scores_.
    template <Index Cols>
    void compute_lookahead_scores(const QueryRows<T>& rows) {
        if (pairs_.is_masked()) {
            panel_scores_.template compute_lookahead_scores<Cols>(
                rows, pairs_.column(), pairs_.absorbing(), pairs_.absorbed_words(), gates_.data(), d_lookahead_scores_);
        } else {
            panel_scores_.template compute_lookahead_scores<Cols>(rows, pairs_.column(), pairs_.absorbed(),
                                                                  gates_.data(), d_lookahead_scores_);
        }
    }

    const AbsorbedTokens& tokens() const { return panel_scores_.tokens(); }
    bool absorbs() const { return pairs_.absorbing() != Cover::none; }

    // U of the cell as it was before the block.
    template <Index Cols>
    void unfold() {
        if (pairs_.is_diagonal()) {  // the keys came with the block
            clear_lookahead_keys<Cols>();
            return;
        }
        C* u = state_.lookahead_keys(p_) + pairs_.column();
        RestoredKeys<T, In, Cols> restored(state_, lookahead_, rows_.sight, p_, pairs_.column(),
                                           {.gates = d_scores_, .keys = scores_});
        const auto values = rows_.factors.lookahead_values();
        if (pairs_.is_masked()) {
            const auto before = restored.sizes();
            fold_words<Cols, Fold::subtract>(pairs_.absorbed_words(), 0, state_.d(), values, gates_.data(), block_size,
                                             u);
            restored.run(rows_.origin, before, gradients_);
            return;
        }
        const auto before = restored.size();
        fold_tokens<Cols, Fold::subtract>(tokens(), pairs_.absorbed(), p_, pairs_.column(), state_.d(), values,
                                          gates_.data(), block_size, u);
        restored.run(rows_.origin, before, gradients_);
    }

    template <Index Cols>
    void clear_lookahead_keys() {
        C* u = state_.lookahead_keys(p_) + pairs_.column();
        for (Index k = 0; k < state_.d(); ++k) std::fill_n(u + k * panel_size, Cols, C(0));
    }

    // dP += d mass on the keys of the second mask.
    template <Index Cols>
    void add_mass_gradient(const C* d_mass) {
        for (Index i = 0; i < rows_.count(); ++i) {
            C* d_score = d_scores_ + i * panel_size;
            const Lanes<C> lanes(mass_words_[std::size_t(i)] >> pairs_.column());
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet more = S::select(lanes[c], S::set(d_mass[i]), S::zero());
                S::store(d_score + c, S::add(S::load(d_score + c), more));
            });
        }
    }

    // From the causal scores in scores_, dP in d_scores_ and the lookahead scores in d_lookahead_scores_: P, dS and
    // dS^U in their places, 0 where a key is not seen.
    //
    // Scores may differ from those of the forward pass, since U is recovered by subtraction. A large one may then
    // exceed the largest of its row; its weight must not exceed 1 for that.
    template <Index Cols, class Term>
    void differentiate_scores(Index h, const BlockCotangents<T>& cotangents, const Term& lookahead_term) {
        const TermTables<C>* terms = state_.terms();
        const bool has_terms = terms != nullptr && terms->changes_scores();
        for (Index i = 0; i < rows_.count(); ++i) {
            C* weight = scores_ + i * panel_size;
            C* d_score = d_scores_ + i * panel_size;
            C* d_lookahead = d_lookahead_scores_ + i * panel_size;
            const Packet largest = S::set(cotangents.log_sum_exp.largest[i]);
            const Packet log_sum = S::set(cotangents.log_sum_exp.log_sum[i]);
            const Packet delta = S::set(cotangents.delta[i]);
            const auto weight_of = [&](Packet score) CASTLE_INLINE_LAMBDA {
                const Packet below_largest = S::smaller(S::sub(score, largest), S::zero());
                return exp_nonpositive<C>(S::sub(below_largest, log_sum));
            };
            if (!has_terms) {
                for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                    const auto term = lookahead_term(S::load(d_lookahead + c));
                    const Packet w = weight_of(term.subtracted_from(S::load(weight + c)));
                    const Packet ds = S::mul(w, S::sub(S::load(d_score + c), delta));
                    S::store(weight + c, w);
                    S::store(d_score + c, ds);
                    S::store(d_lookahead + c, S::negate(S::mul(ds, term.derivative())));
                });
                clear_unseen<Cols>(i);
                continue;
            }
            // The same with what terms make of the scores, and back.
            alignas(64) C capped[std::size_t(Cols)], slope[std::size_t(Cols)];
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const auto term = lookahead_term(S::load(d_lookahead + c));
                S::store(weight + c, term.subtracted_from(S::load(weight + c)));
                S::store(d_lookahead + c, S::negate(term.derivative()));
            });
            terms->template apply_and_differentiate<Cols>(state_.first_head() + h, rows_.origin + i, pairs_.key(),
                                                          weight, capped, slope);
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet w = weight_of(S::load(weight + c));
                S::store(weight + c, w);
                S::store(d_score + c, S::mul(w, S::sub(S::load(d_score + c), delta)));
            });
            clear_unseen<Cols>(i);
            if (cotangents.tables != nullptr) add_to_tables<Cols>(i, d_score, capped, cotangents.tables);
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet ds = S::mul(S::load(d_score + c), S::load(slope + c));
                S::store(d_score + c, ds);
                S::store(d_lookahead + c, S::mul(ds, S::load(d_lookahead + c)));
            });
            clear_unseen<Cols>(i);
        }
    }

    // 0 in place of what row i has of keys that it does not see.
    template <Index Cols>
    void clear_unseen(Index i) {
        for (C* matrix : {scores_, d_scores_, d_lookahead_scores_}) {
            pairs_.template clear_unseen<Cols>(i, matrix + i * panel_size);
        }
    }

    // The gradients of the tables, of row i: its keys lie side by side there. What it does not see is left out.
    template <Index Cols>
    void add_to_tables(Index i, const C* d_score, const C* capped, C* tables) const {
        C* factors = tables + (pairs_.key() % span_size) - i + TableSums::last_row;
        C* biases = factors + TableSums::distances;
        const auto add = [&](const C* d, const C* y) {
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                S::store(factors + c, S::fma(S::load(d + c), S::load(y + c), S::load(factors + c)));
                S::store(biases + c, S::add(S::load(biases + c), S::opaque(S::load(d + c))));  // no product is added
            });
        };
        if (!pairs_.is_partly_seen()) {
            add(d_score, capped);
            return;
        }
        alignas(64) C kept[std::size_t(Cols)];
        std::copy_n(capped, Cols, kept);
        pairs_.template clear_unseen<Cols>(i, kept);
        add(d_score, kept);
    }

    // dG += T^T dS^U of query head h.
    template <Index Cols>
    void add_to_gates(Index h) {
        if (pairs_.is_masked() && pairs_.is_partly_seen() &&
            !is_finite(rows_.operands().triangle(h), rows_.count(), rows_.count(), block_size)) {
            for (Index j = 0; j < rows_.count(); ++j) {
                multiply_add_where<Cols>(1, rows_.count() - j,
                                         Operand<C>{rows_.operands().triangle(h) + j * block_size + j, 1, block_size},
                                         d_lookahead_scores_ + j * panel_size, panel_size, d_gates_ + j * panel_size,
                                         panel_size, pairs_.seen_words() + j);
            }
            return;
        }
        for_row_tiles(rows_.count(), [&](auto height, Index j) {
            // Row i of the cell has to do with the tokens up to i.
            const auto triangle = Operand<C>{rows_.operands().triangle(h) + j * block_size, 1, block_size}.rows_from(j);
            constexpr Index rest = constant<decltype(height)> - 1;
            for_column_tiles<C, Cols>([&](auto packets, Index c) {
                TileOf<C, decltype(height), decltype(packets)> tile;
                const C* from = d_lookahead_scores_ + j * panel_size + c;
                C* to = d_gates_ + j * panel_size + c;
                tile.load(to, panel_size);
                tile.multiply_add_leading_triangle(triangle, from, panel_size);
                tile.multiply_add(triangle.cols_from(rest), from + rest * panel_size, panel_size,
                                  rows_.count() - j - rest);
                tile.store(to, panel_size);
            });
        });
    }

    // dA in place of dG, 0 where s does not absorb t.
    template <Index Cols>
    void differentiate_gates() {
        for (Index j = 0; j < rows_.count(); ++j) {
            const T* gate = gates_.data() + j * panel_size;
            C* d_gate = d_gates_ + j * panel_size;
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet g = S::load(gate + c);
                S::store(d_gate + c, S::mul(S::load(d_gate + c), S::mul(g, S::sub(S::set(1), g))));
            });
            pairs_.template clear_unabsorbed<Cols>(j, d_gate);
        }
    }

    // The same as add_to_triangle of what is not finite. Rare, and not to take stack where it does not happen.
    template <Index Cols>
    EIGEN_DONT_INLINE void add_to_triangle_where(Index h) const {
        const auto by_key = pairs_.by_key(pairs_.taken(), Cols);
        for (Index i = 0; i < rows_.count(); ++i) {
            std::array<std::uint64_t, std::size_t(panel_size)> own{};
            for (Index s = 0; s < Cols; ++s) {
                if ((pairs_.seen_words()[i] >> s & 1) != 0) own[std::size_t(s)] = by_key[std::size_t(s)];
            }
            multiply_add_where<block_size>(1, Cols, Operand<C>{d_lookahead_scores_ + i * panel_size, panel_size, 1},
                                           products_.transposed(), block_size, sums_.triangle(h) + i * block_size,
                                           block_size, own.data());
        }
    }

    // dT += dS^U G^T of query head h, of which the triangle is used, for the gates that were transposed last.
    template <Index Cols>
    void add_to_triangle(Index h) const {
        const KeptPairs taken = pairs_.taken();
        if (pairs_.is_masked() && !(is_finite(d_lookahead_scores_, rows_.count(), Cols, panel_size) &&
                                    is_finite(gates_.data(), rows_.count(), Cols, panel_size))) {
            add_to_triangle_where<Cols>(h);
            return;
        }
        for_row_tiles(rows_.count(), [&](auto height, Index i) {
            for_column_tiles<C, block_size>([&](auto packets, Index j) {
                if (j > i + height - 1) return;
                TileOf<C, decltype(height), decltype(packets)> tile;
                C* to = sums_.triangle(h) + i * block_size + j;
                tile.load(to, block_size);
                const auto d_scores = Operand<C>{d_lookahead_scores_, panel_size, 1}.rows_from(i);
                if (Cols == block_size && taken.ranges != nullptr) {
                    tile.multiply_add_within(d_scores, products_.transposed() + j, block_size, Cols, j,
                                             [&](Index s) -> ColumnRange { return taken.ranges[s]; });
                } else {
                    tile.multiply_add(d_scores, products_.transposed() + j, block_size, Cols);
                }
                tile.store(to, block_size);
            });
        });
    }

    HeadState<T>& state_;
    GradientState<C>& gradients_;
    const BlockRows<T>& rows_;
    BlockOperands<C> sums_;
    const Qkv<ConstMatrixView<In>>& lookahead_;
    LeftFactor<T> values_;
    PanelScores<T> panel_scores_;
    CellPairs<T> pairs_;
    CellProducts<T> products_;
    Index p_;
    BlockWords mass_words_;  // keys of the panel that the second mask shows
    Uninitialized<T, block_size * panel_size> gates_;
    alignas(64) C d_gates_[block_size * panel_size];
    alignas(64) C scores_[block_size * panel_size];
    alignas(64) C d_scores_[block_size * panel_size];
    alignas(64) C d_lookahead_scores_[block_size * panel_size];
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
