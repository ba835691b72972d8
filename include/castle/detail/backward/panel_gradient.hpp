// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include <castle/detail/backward/gradient_state.hpp>
#include <castle/detail/backward/restored_keys.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/gates.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/score/score_terms.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/tile.hpp>
#include <castle/detail/simd/transpose.hpp>
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

template <Scalar T>
class PanelGradient {
    using S = Simd<T>;
    using Packet = typename S::Packet;

  public:
    // `sums` are the gradients of the block's operands so far, in the operands' places; `lookahead` is the input's.
    PanelGradient(HeadState<T>& state, GradientState<T>& gradients, const BlockRows<T>& rows,
                  const BlockOperands<T>& sums, const Qkv<ConstMatrixView<T>>& lookahead, Index p)
        : state_(state),
          gradients_(gradients),
          rows_(rows),
          sums_(sums),
          lookahead_(lookahead),
          panel_scores_(state, rows, p),
          p_(p) {}

    // cotangents(h) gives those of query head h.
    template <class Cotangents>
    void run(const Cotangents& cotangents) {
        // A partial block leaves columns of transposed_ unwritten.
        if (rows_.count() < block_size) std::fill_n(transposed_, panel_size * block_size, T(0));
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
    // Which pairs of a cell's tokens and keys a product takes: all, those within a range for each row of its second
    // factor, or those of the words of the tokens. Where words leave a pair out the second factor is 0.
    struct Kept {
        const ColumnRange* ranges = nullptr;
        const std::uint64_t* words = nullptr;
        bool transposed = false;  // rows of the second factor are keys
    };

    template <class Cotangents>
    void run_masked(const Cotangents& cotangents) {
        BlockWords seen, absorbed;
        see(rows_.sight.rule, rows_.origin, rows_.origin, rows_.end, p_, rows_.sight.keys, seen);
        if (cover_of(seen, 0, rows_.count()) == Cover::none) return;
        absorb(seen, state_.window(), rows_.origin, rows_.origin, rows_.end, p_, absorbed);
        const auto run = [&](auto cols, Index c) {
            constexpr Index count = constant<decltype(cols)>;
            const std::uint64_t columns = range_word(c, c + count, 0);
            std::uint64_t sees_all = columns;
            absorbed_ = Absorbed::none;
            bool sees_any = false;
            for (Index i = 0; i < rows_.count(); ++i) {
                const std::size_t at = std::size_t(i);
                seen_words_[at] = (seen[at] & columns) >> c;
                absorbed_words_[at] = (absorbed[at] & columns) >> c;
                sees_all &= seen[at];
                sees_any = sees_any || seen_words_[at] != 0;
                if (absorbed_words_[at] != 0) absorbed_ = Absorbed::all;  // of gates that are closed otherwise
            }
            if (!sees_any) return;
            is_masked_ = true;
            sees_all_ = sees_all == columns;
            begin_cell(c);
            // U before the block, of keys that come with it or later.
            if (diagonal_ && state_.has_lookahead()) clear_lookahead_keys<count>();
            run_cell<count>(cotangents);
        };
        const Index first = p_ * panel_size;
        if (first + panel_size <= rows_.origin || first >= rows_.end) {
            run(std::integral_constant<Index, panel_size>{}, Index(0));
            return;
        }
        for (Index c = 0; c < panel_size; c += block_size) run(std::integral_constant<Index, block_size>{}, c);
    }

    void begin_cell(Index c) {
        column_ = c;
        key_ = p_ * panel_size + c;
        diagonal_ = key_ >= rows_.origin;
    }

    // The keys of the panel from column c on, Cols of them. Only cells of one block of keys have positions that are
    // masked.
    template <Index Cols, class Cotangents>
    void run_cell(Index c, Absorbed absorbed, const Cotangents& cotangents) {
        begin_cell(c);
        absorbed_ = absorbed;
        run_cell<Cols>(cotangents);
    }
    template <Index Cols, class Cotangents>
    void run_cell(const Cotangents& cotangents) {
        if (!is_masked_ && (diagonal_ || absorbed_ == Absorbed::some)) set_ranges();
        const Kept absorbing{.ranges = absorbed_ == Absorbed::some ? absorbing_ : nullptr,
                             .words = is_masked_ ? absorbed_words_.data() : nullptr};
        const Kept taken{.ranges = absorbed_ == Absorbed::some ? taken_ : nullptr,
                         .words = is_masked_ ? absorbed_words_.data() : nullptr,
                         .transposed = true};
        const BlockOperands<T>& block = rows_.operands;
        const Index d = state_.d();
        if (absorbed_ != Absorbed::none) {
            panel_scores_.template compute_gates<Cols>(column_, gates_);
            if (is_masked_) close_gates<Cols>(absorbed_words_, 0, rows_.count(), gates_);
            if (rows_.finishes()) unfold<Cols>();
            // Query heads add to dU below, so what needs it as it is comes first.
            multiply_with<Cols>(Operand<T>{block.lookahead_values(), 1, block_size}, d, gradients_.d_lookahead_keys(p_),
                                d_gates_);
            transpose_cell<Cols>(gates_);
            add_to_tokens<Cols>(d, gradients_.d_lookahead_keys(p_), sums_.lookahead_values(), taken);
        }
        for (Index h = 0; h < state_.group(); ++h) run_head<Cols>(h, cotangents(h), taken);
        if (absorbed_ != Absorbed::none) {
            differentiate_gates<Cols>();
            add_to_keys<Cols>(d, block.lookahead_keys(), d_gates_, gradients_.d_lookahead_queries(p_), absorbing);
            transpose_cell<Cols>(d_gates_);
            add_to_tokens<Cols>(d, state_.lookahead_queries(p_), sums_.lookahead_keys(), taken);
        }
    }

    // What depends on the cell's weights of query head h. The transposed gates are there for head 0.
    template <Index Cols>
    void run_head(Index h, const BlockCotangents<T>& cotangents, const Kept& taken) {
        const QueryRows<T> rows = QueryRows<T>::of_head(rows_, h);
        const T* queries = rows_.operands.causal_queries(h);
        const Index d = state_.d();
        if (state_.has_lookahead()) compute_lookahead_scores<Cols>(rows);
        panel_scores_.template compute_causal_scores<Cols>(rows, column_, scores_);
        multiply_with<Cols>(Operand<T>{cotangents.d_out, 1, block_size}, state_.dv(), gradients_.values(p_), d_scores_);
        if (cotangents.d_mass != nullptr) add_mass_gradient<Cols>(cotangents.d_mass);
        panel_scores_.with_lookahead_term(
            [&](const auto& term) { this->template differentiate_scores<Cols>(h, cotangents, term); });

        if (absorbed_ != Absorbed::none) {
            if (h > 0) transpose_cell<Cols>(gates_);
            add_to_triangle<Cols>(h, taken);
            add_to_gates<Cols>(h);
        }
        const std::uint64_t* words = is_masked_ && !sees_all_ ? seen_words_.data() : nullptr;
        const Kept visible{.ranges = diagonal_ && !is_masked_ ? visible_ : nullptr, .words = words};
        const Kept seeing{.ranges = diagonal_ && !is_masked_ ? seeing_ : nullptr, .words = words, .transposed = true};
        add_to_keys<Cols>(state_.dv(), cotangents.d_out, scores_, gradients_.d_values(p_), visible);
        if (state_.has_causal_scores()) {
            add_to_keys<Cols>(d, queries, d_scores_, gradients_.d_causal_keys(p_), visible);
            transpose_cell<Cols>(d_scores_);
            add_to_tokens<Cols>(d, state_.causal_keys(p_), sums_.causal_queries(h), seeing);
        }
        // Keys that came with the block have U = 0 before it, and its gradient is not needed.
        if (!state_.has_lookahead() || diagonal_) return;
        transpose_cell<Cols>(d_lookahead_scores_);
        add_to_tokens<Cols>(d, state_.lookahead_keys(p_), sums_.causal_queries(h), seeing);
        add_to_keys<Cols>(d, queries, d_lookahead_scores_, gradients_.d_lookahead_keys(p_), visible);
    }

    // Into d_lookahead_scores_. Under a mask gates that are not absorbed are 0, and keys that come after the block have
    // absorbed nothing.
    template <Index Cols>
    void compute_lookahead_scores(const QueryRows<T>& rows) {
        const bool leave_out =
            is_masked_ && absorbed_ != Absorbed::none && !is_finite(rows.triangle, rows.count, rows.count);
        panel_scores_.template compute_lookahead_scores<Cols>(rows, column_, leave_out ? Absorbed::none : absorbed_,
                                                              gates_, d_lookahead_scores_);
        for (Index i = 0; leave_out && i < rows.count; ++i) {
            multiply_add_where<Cols>(1, i + 1, rows.triangle.rows_from(i), gates_, panel_size,
                                     d_lookahead_scores_ + i * panel_size, panel_size, absorbed_words_.data());
        }
    }

    const AbsorbedTokens& tokens() const { return panel_scores_.tokens(); }

    // Which keys of a cell of `count` keys, and which tokens of the block, interact.
    ColumnRange visible_keys(Index i, Index count) const {
        return {0, std::clamp<Index>(rows_.origin + i + 1 - key_, 0, count)};
    }
    ColumnRange seeing_tokens(Index s) const {
        return {std::clamp<Index>(key_ + s - rows_.origin, 0, block_size), block_size};
    }
    ColumnRange absorbing_keys(Index j, Index count) const {
        const ColumnRange columns = tokens().columns(j, p_);
        return {std::clamp<Index>(columns.begin - column_, 0, count),
                std::clamp<Index>(columns.end - column_, 0, count)};
    }
    ColumnRange absorbed_tokens(Index s) const {
        const Index first = key_ + s + 1 - rows_.origin;
        const Index begin = std::clamp<Index>(first, 0, block_size);
        const Index end = state_.window() < block_size - begin + rows_.origin ? first + state_.window() : block_size;
        return {begin, std::clamp<Index>(end, begin, block_size)};
    }

    // The same of a masked cell, for every token and every key.
    void set_ranges() {
        for (Index i = 0; i < rows_.count(); ++i) {
            visible_[i] = visible_keys(i, block_size);
            absorbing_[i] = absorbing_keys(i, block_size);
        }
        for (Index s = 0; s < block_size; ++s) {
            seeing_[s] = seeing_tokens(s);
            taken_[s] = absorbed_tokens(s);
        }
    }

    // out[tokens, Cols] = a panel
    template <Index Cols>
    void multiply_with(Operand<T> a, Index n, const T* panel, T* out) const {
        multiply<Cols>(rows_.count(), n, a, panel + column_, panel_size, out, panel_size);
    }

    // panel[dims, Cols] += x y, x being [dims][block] and y [tokens][panel].
    template <Index Cols>
    void add_to_keys(Index dims, const T* x, const T* y, T* panel, const Kept& kept) const {
        add_product<Cols, block_size, panel_size>(dims, rows_.count(), x, y, panel + column_, kept);
    }

    // sum[dims, tokens] += panel y^T for the y that was transposed last.
    template <Index Cols>
    void add_to_tokens(Index dims, const T* panel, T* sum, const Kept& kept) const {
        add_product<block_size, panel_size, block_size>(dims, Cols, panel + column_, transposed_, sum, kept);
    }

    // Only blocks of keys have ranges.
    template <Index Cols, Index AStride, Index Stride>
    void add_product(Index rows, Index n, const T* a, const T* b, T* c, const Kept& kept) const {
        if (Cols == block_size && kept.ranges != nullptr) {
            multiply_add_within<block_size, AStride, Stride>(rows, n, a, b, c, kept.ranges);
        } else if (kept.words != nullptr && !is_finite(a, rows, n, AStride)) {
            const auto by_key = transposed_words(kept, n);
            multiply_add_where<Cols>(rows, n, Operand<T>{a, AStride, 1}, b, Stride, c, Stride,
                                     kept.transposed ? by_key.data() : kept.words);
        } else {
            multiply_add<Cols, AStride, Stride>(rows, n, a, b, c);
        }
    }
    // For each of n keys a word over tokens.
    std::array<std::uint64_t, std::size_t(panel_size)> transposed_words(const Kept& kept, Index n) const {
        std::array<std::uint64_t, std::size_t(panel_size)> by_key{};
        if (!kept.transposed) return by_key;
        for (Index i = 0; i < rows_.count(); ++i) {
            for (Index s = 0; s < n; ++s) by_key[std::size_t(s)] |= (kept.words[i] >> s & 1) << i;
        }
        return by_key;
    }

    // transposed_[Cols][block] = y^T
    template <Index Cols>
    void transpose_cell(const T* y) {
        transpose(y, panel_size, rows_.count(), Cols, T(1), transposed_, block_size);
    }

    static void clear_outside(T* row, ColumnRange range, Index count) {
        std::fill(row, row + range.begin, T(0));
        std::fill(row + range.end, row + count, T(0));
    }

    // U of the cell as it was before the block.
    template <Index Cols>
    void unfold() {
        if (diagonal_) {  // the keys came with the block
            clear_lookahead_keys<Cols>();
            return;
        }
        T* u = state_.lookahead_keys(p_) + column_;
        RestoredKeys<T, Cols> restored(state_, lookahead_, rows_.sight, p_, column_,
                                       {.gates = d_scores_, .keys = transposed_});
        const Operand<T> values{rows_.operands.lookahead_values(), block_size, 1};
        if (is_masked_) {
            const auto before = restored.sizes();
            fold_words<Cols, Fold::subtract>(absorbed_words_, 0, state_.d(), values, gates_, block_size, u);
            restored.run(rows_.origin, before, gradients_);
            return;
        }
        const auto before = restored.size();
        fold_tokens<Cols, Fold::subtract>(tokens(), absorbed_, p_, column_, state_.d(), values, gates_, block_size, u);
        restored.run(rows_.origin, before, gradients_);
    }

    template <Index Cols>
    void clear_lookahead_keys() {
        T* u = state_.lookahead_keys(p_) + column_;
        for (Index k = 0; k < state_.d(); ++k) std::fill_n(u + k * panel_size, Cols, T(0));
    }

    // dP += d mass on the keys of the second mask.
    template <Index Cols>
    void add_mass_gradient(const T* d_mass) {
        for (Index i = 0; i < rows_.count(); ++i) {
            T* d_score = d_scores_ + i * panel_size;
            const Lanes<T> lanes(mass_words_[std::size_t(i)] >> column_);
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
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
        const TermTables<T>* terms = state_.terms();
        const bool has_terms = terms != nullptr && terms->changes_scores();
        for (Index i = 0; i < rows_.count(); ++i) {
            T* weight = scores_ + i * panel_size;
            T* d_score = d_scores_ + i * panel_size;
            T* d_lookahead = d_lookahead_scores_ + i * panel_size;
            const Packet largest = S::set(cotangents.log_sum_exp.largest[i]);
            const Packet log_sum = S::set(cotangents.log_sum_exp.log_sum[i]);
            const Packet delta = S::set(cotangents.delta[i]);
            const auto weight_of = [&](Packet score) CASTLE_INLINE_LAMBDA {
                const Packet below_largest = S::smaller(S::sub(score, largest), S::zero());
                return exp_nonpositive<T>(S::sub(below_largest, log_sum));
            };
            if (!has_terms) {
                for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
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
            alignas(64) T capped[std::size_t(Cols)], slope[std::size_t(Cols)];
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const auto term = lookahead_term(S::load(d_lookahead + c));
                S::store(weight + c, term.subtracted_from(S::load(weight + c)));
                S::store(d_lookahead + c, S::negate(term.derivative()));
            });
            terms->template apply_and_differentiate<Cols>(state_.first_head() + h, rows_.origin + i, key_, weight,
                                                          capped, slope);
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet w = weight_of(S::load(weight + c));
                S::store(weight + c, w);
                S::store(d_score + c, S::mul(w, S::sub(S::load(d_score + c), delta)));
            });
            clear_unseen<Cols>(i);
            if (cotangents.tables != nullptr) add_to_tables<Cols>(i, d_score, capped, cotangents.tables);
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet ds = S::mul(S::load(d_score + c), S::load(slope + c));
                S::store(d_score + c, ds);
                S::store(d_lookahead + c, S::mul(ds, S::load(d_lookahead + c)));
            });
            if (is_partly_seen(i)) clear_unseen<Cols>(i);
        }
    }

    // 0 in place of what row i has of keys that it does not see.
    template <Index Cols>
    void clear_unseen(Index i) {
        T* rows[] = {scores_ + i * panel_size, d_scores_ + i * panel_size, d_lookahead_scores_ + i * panel_size};
        if (is_masked_) {
            if (sees_all_) return;
            for (T* row : rows) keep_columns<Cols>(seen_words_[std::size_t(i)], T(0), row);
        } else if (diagonal_) {
            for (T* row : rows) clear_outside(row, visible_keys(i, Cols), Cols);
        }
    }
    bool is_partly_seen(Index) const { return is_masked_ ? !sees_all_ : diagonal_; }

    // The gradients of the tables, of row i: its keys lie side by side there. What it does not see is left out.
    template <Index Cols>
    void add_to_tables(Index i, const T* d_score, const T* capped, T* tables) const {
        T* factors = tables + (key_ % span_size) - i + TableSums::last_row;
        T* biases = factors + TableSums::distances;
        const auto add = [&](const T* d, const T* y) {
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                S::store(factors + c, S::fma(S::load(d + c), S::load(y + c), S::load(factors + c)));
                S::store(biases + c, S::add(S::load(biases + c), S::opaque(S::load(d + c))));  // no product is added
            });
        };
        if (!is_partly_seen(i)) {
            add(d_score, capped);
            return;
        }
        alignas(64) T kept[std::size_t(Cols)];
        std::copy_n(capped, Cols, kept);
        if (is_masked_) {
            keep_columns<Cols>(seen_words_[std::size_t(i)], T(0), kept);
        } else {
            clear_outside(kept, visible_keys(i, Cols), Cols);
        }
        add(d_score, kept);
    }

    // dG += T^T dS^U of query head h.
    template <Index Cols>
    void add_to_gates(Index h) {
        if (is_masked_ && !sees_all_ &&
            !is_finite(rows_.operands.triangle(h), rows_.count(), rows_.count(), block_size)) {
            for (Index j = 0; j < rows_.count(); ++j) {
                multiply_add_where<Cols>(1, rows_.count() - j,
                                         Operand<T>{rows_.operands.triangle(h) + j * block_size + j, 1, block_size},
                                         d_lookahead_scores_ + j * panel_size, panel_size, d_gates_ + j * panel_size,
                                         panel_size, seen_words_.data() + j);
            }
            return;
        }
        for_row_tiles(rows_.count(), [&](auto height, Index j) {
            // Row i of the cell has to do with the tokens up to i.
            const auto triangle = Operand<T>{rows_.operands.triangle(h) + j * block_size, 1, block_size}.rows_from(j);
            constexpr Index rest = constant<decltype(height)> - 1;
            for_column_tiles<T, Cols>([&](auto packets, Index c) {
                TileOf<T, decltype(height), decltype(packets)> tile;
                const T* from = d_lookahead_scores_ + j * panel_size + c;
                T* to = d_gates_ + j * panel_size + c;
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
            const T* gate = gates_ + j * panel_size;
            T* d_gate = d_gates_ + j * panel_size;
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet g = S::load(gate + c);
                S::store(d_gate + c, S::mul(S::load(d_gate + c), S::mul(g, S::sub(S::set(1), g))));
            });
            if (is_masked_) {
                keep_columns<Cols>(absorbed_words_[std::size_t(j)], T(0), d_gate);
            } else if (absorbed_ == Absorbed::some) {
                clear_outside(d_gate, absorbing_keys(j, Cols), Cols);
            }
        }
    }

    // dT += dS^U G^T of query head h, of which the triangle is used, for the gates that were transposed last.
    template <Index Cols>
    void add_to_triangle(Index h, const Kept& taken) const {
        if (is_masked_ && !(is_finite(d_lookahead_scores_, rows_.count(), Cols, panel_size) &&
                            is_finite(gates_, rows_.count(), Cols, panel_size))) {
            const auto by_key = transposed_words(taken, Cols);
            for (Index i = 0; i < rows_.count(); ++i) {
                std::array<std::uint64_t, std::size_t(panel_size)> own{};
                for (Index s = 0; s < Cols; ++s) {
                    if ((seen_words_[std::size_t(i)] >> s & 1) != 0) own[std::size_t(s)] = by_key[std::size_t(s)];
                }
                multiply_add_where<block_size>(1, Cols, Operand<T>{d_lookahead_scores_ + i * panel_size, panel_size, 1},
                                               transposed_, block_size, sums_.triangle(h) + i * block_size, block_size,
                                               own.data());
            }
            return;
        }
        for_row_tiles(rows_.count(), [&](auto height, Index i) {
            for_column_tiles<T, block_size>([&](auto packets, Index j) {
                if (j > i + height - 1) return;
                TileOf<T, decltype(height), decltype(packets)> tile;
                T* to = sums_.triangle(h) + i * block_size + j;
                tile.load(to, block_size);
                const auto d_scores = Operand<T>{d_lookahead_scores_, panel_size, 1}.rows_from(i);
                if (Cols == block_size && taken.ranges != nullptr) {
                    tile.multiply_add_within(d_scores, transposed_ + j, block_size, Cols, j,
                                             [&](Index s) { return taken.ranges[s]; });
                } else {
                    tile.multiply_add(d_scores, transposed_ + j, block_size, Cols);
                }
                tile.store(to, block_size);
            });
        });
    }

    HeadState<T>& state_;
    GradientState<T>& gradients_;
    const BlockRows<T>& rows_;
    BlockOperands<T> sums_;
    const Qkv<ConstMatrixView<T>>& lookahead_;
    PanelScores<T> panel_scores_;
    Index p_;
    Index column_ = 0;  // of the panel, where the cell begins
    Index key_ = 0;     // and which key that is
    Absorbed absorbed_ = Absorbed::none;
    bool diagonal_ =
        false;  // whether the keys are those of the block, not all of which every token sees, or later ones
    bool is_masked_ = false;
    bool sees_all_ = false;              // under a mask: every token sees every key
    BlockWords seen_words_;              // under a mask: keys of the cell that a token sees
    BlockWords absorbed_words_;          // and that absorb it
    BlockWords mass_words_;              // of the panel: keys of the second mask
    ColumnRange visible_[block_size];    // keys that a token sees
    ColumnRange absorbing_[block_size];  // keys that absorb a token
    ColumnRange seeing_[block_size];     // tokens that see a key
    ColumnRange taken_[block_size];      // tokens that a key absorbs
    alignas(64) T gates_[block_size * panel_size];
    alignas(64) T d_gates_[block_size * panel_size];
    alignas(64) T scores_[block_size * panel_size];
    alignas(64) T d_scores_[block_size * panel_size];
    alignas(64) T d_lookahead_scores_[block_size * panel_size];
    alignas(64) T transposed_[panel_size * block_size];
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
