// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/gates.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/score/score_terms.hpp>
#include <castle/detail/score/span_states.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/state/head_state.hpp>

// The heart of the library: the new rows of one block, of all query heads of a group, against one panel of keys.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// u[d][panel_size] += sum_j gates[j, :] v^U_j over the `tokens` of the block, `count` of them, in their order.
template <Scalar T>
void fold_block(const HeadState<T>& state, const AbsorbedTokens& tokens, Index count, const BlockFactors<T>& block,
                const T* gates, Index p, Compute<T>* u) {
    tokens.for_column_ranges(p, panel_size, [&](auto columns, Index first, Absorbed absorbed) {
        fold_tokens<constant<decltype(columns)>>(tokens, absorbed, p, first, state.d(), block.lookahead_values(),
                                                 gates + first, count, u + first);
    });
}

template <Scalar T>
class PanelSweep {
    using C = Compute<T>;
    using S = Simd<C>;
    using Packet = typename S::Packet;

  public:
    PanelSweep(HeadState<T>& state, const BlockRows<T>& rows, Index p)
        : state_(state),
          rows_(rows),
          panel_scores_(state, rows, p),
          p_(p),
          first_key_(p * panel_size),
          columns_((std::min)(round_up(rows.end - first_key_, block_size), panel_size)),
          absorbed_(tokens().by_keys(first_key_, panel_size) != Absorbed::none),
          is_masked_(rows.sight.rule != nullptr || state.is_masked()) {
        gates_ = absorbed_ && rows.is_split() ? state.gates(p) : own_gates_.data();
        if (is_masked_) set_words();
        if (rows.sight.mass_over != nullptr) {
            see(rows.sight.mass_over->rule(), rows.origin, rows.first, rows.end, p, rows.sight.keys, mass_words_);
        }
    }

    void make_gates() {
        if (absorbed_) compute_gates();
    }

    // Takes the panel into the rows' softmax and folds the block into the panel's lookahead keys if this call finishes
    // it. Token rows.first of query head h is row `softmax_row + h head_stride` of the softmax. A softmax has to meet
    // its panels in ascending order, and a panel its blocks; otherwise calls may come in any order, or at once. The
    // gates may have been made before, in the state.
    void run(bool has_gates, SpanStates<C> softmax, Index softmax_row, Index head_stride) {
        if (!has_gates) make_gates();
        if (is_masked_ && absorbing_ == Cover::some) {
            close_gates<panel_size>(absorbed_words_, 0, block_rows(), gates_);
        }
        const Index heads = state_.group();
        if (is_masked_ && seen_ == Cover::none) {
            // Earlier rows of the block may have seen the panel, which takes them in below.
        } else if (rows_.count() > 1 || heads == 1) {
            for (Index h = 0; h < heads; ++h) {
                attend(QueryRows<T>::of_head(rows_, h), {softmax, softmax_row + h * head_stride, 1});
            }
        } else {
            for (Index h = 0; h < heads; h += block_size) {
                attend(QueryRows<T>::of_heads(rows_, h, (std::min)(block_size, heads - h)),
                       {softmax, softmax_row + h * head_stride, head_stride});
            }
        }
        if (absorbed_ && rows_.finishes()) {
            const Index block = rows_.origin / block_size;
            C* u = state_.lookahead_keys(p_);
            if (state_.history().keeps(block)) state_.keep_keys(block, p_);
            if (is_masked_) {
                fold_words<panel_size>(absorbed_words_, 0, state_.d(), rows_.factors.lookahead_values(), gates_,
                                       block_size, u);
            } else {
                fold_block(state_, tokens(), block_size, rows_.factors, gates_, p_, u);
            }
        }
        if (rows_.finishes() && state_.has_lookahead()) state_.finish_block_of_panel(p_, rows_.origin);
    }

  private:
    const AbsorbedTokens& tokens() const { return panel_scores_.tokens(); }

    // Tokens of the block up to the last that is there.
    Index block_rows() const { return rows_.end - rows_.origin; }

    // What the rows see of the panel and what the panel absorbs, by the mask. Of earlier rows of the block the state
    // knows it.
    void set_words() {
        const Index first = rows_.first - rows_.origin;
        see(rows_.sight.rule, rows_.origin, rows_.first, rows_.end, p_, rows_.sight.keys, seen_words_);
        seen_ = cover_of(seen_words_, first, block_rows());
        const ColumnRange blocks = blocks_with(seen_words_, first, block_rows());
        first_column_ = blocks.begin;
        columns_ = blocks.end;
        if (!absorbed_) return;
        if (first > 0) absorbed_words_ = state_.words_of(rows_.origin / block_size, p_);
        absorb(seen_words_, state_.window(), rows_.origin, rows_.first, rows_.end, p_, absorbed_words_);
        absorbing_ = cover_of(absorbed_words_, 0, block_rows());
        absorbed_ = absorbing_ != Cover::none;
    }

    void compute_gates() {
        tokens().for_column_ranges(p_, is_masked_ ? panel_size : columns_,
                                   [&](auto columns, Index first, Absorbed absorbed) {
                                       if (absorbed != Absorbed::none) {
                                           panel_scores_.template compute_gates<constant<decltype(columns)>>(
                                               first, gates_ + first, lookahead_scores_);
                                       }
                                   });
    }

    // Where the softmax of some rows is.
    struct Softmax {
        SpanStates<C> rows;
        Index first;
        Index step;

        Index row(Index i) const { return first + i * step; }
    };

    void attend(const QueryRows<T>& rows, const Softmax& softmax) {
        if (state_.has_lookahead()) compute_lookahead_scores(rows);
        if (columns_ - first_column_ == panel_size) {
            compute_weights<panel_size>(rows, softmax);
        } else {
            compute_weights<block_size>(rows, softmax);
        }
        accumulate_values(rows, softmax);
    }

    void compute_lookahead_scores(const QueryRows<T>& rows) {
        if (HeadState<T>::has_narrow_keys && first_key_ >= rows_.end) {
            // Keys after the block, whose place in the ring is still that of others, have absorbed nothing.
            std::fill_n(lookahead_scores_, rows.count * panel_size, C(0));
            return;
        }
        if (is_masked_) {
            panel_scores_.template compute_lookahead_scores<panel_size>(rows, 0, absorbing_, absorbed_words_, gates_,
                                                                        lookahead_scores_);
            return;
        }
        tokens().for_column_ranges(p_, columns_, [&](auto columns, Index first, Absorbed absorbed) {
            panel_scores_.template compute_lookahead_scores<constant<decltype(columns)>>(
                rows, first, absorbed, gates_ + first, lookahead_scores_ + first);
        });
    }

    // Keys of the panel that row i sees, from the first on, without a mask.
    Index visible(const QueryRows<T>& rows, Index i) const {
        return (std::min)(rows_.origin + rows.tokens(i) - first_key_, panel_size);
    }
    // Keys whose values `count` rows from i multiply with together: those that all of them see or, under a mask, from
    // the first to the last that any of them does.
    ColumnRange common_keys(const QueryRows<T>& rows, Index i, Index count) const {
        if (!is_masked_) return {0, visible(rows, i)};
        std::uint64_t seen = 0;
        for (Index j = i; j < i + count; ++j) seen |= seen_word(rows, j);
        const ColumnRange range = range_of(seen);
        return {multiplies_pairs<T> ? round_down(range.begin, 2) : range.begin, range.end};
    }

    // The word of row i.
    std::uint64_t seen_word(const QueryRows<T>& rows, Index i) const {
        return seen_words_[std::size_t(rows.tokens(i) - 1)];
    }

    // Of the panel only Cols keys are seen, from first_column_ on.
    template <Index Cols>
    void compute_scores(const QueryRows<T>& rows) {
        C* scores = scores_ + first_column_;
        panel_scores_.template compute_causal_scores<Cols>(rows, first_column_, scores);
        panel_scores_.template subtract_lookahead<Cols>(rows, lookahead_scores_ + first_column_, scores);
        const TermTables<C>* terms = state_.terms();
        if (terms == nullptr || !terms->changes_scores()) return;
        for (Index i = 0; i < rows.count; ++i) {
            terms->template apply<Cols>(state_.first_head() + rows.head_of(i), rows_.origin + rows.tokens(i) - 1,
                                        first_key_ + first_column_, scores + i * panel_size);
        }
    }

    // What a row does not see is excluded; then weights = exp(score - largest) in place of the scores, and what the
    // rows have so far is to be multiplied with rescale_.
    template <Index Cols>
    void compute_weights(const QueryRows<T>& rows, const Softmax& softmax) {
        constexpr C minus_infinity = -std::numeric_limits<C>::infinity();
        compute_scores<Cols>(rows);
        C base[block_size];
        for (Index i = 0; i < rows.count; ++i) {
            C* score = scores_ + i * panel_size + first_column_;
            C& row_largest = softmax.rows.largest()[softmax.row(i)];
            Packet largest = S::set(row_largest);
            if (is_masked_ && seen_ == Cover::some) {
                const Lanes<C> lanes(seen_word(rows, i) >> first_column_);
                for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                    const Packet seen = S::select(lanes[c], S::load(score + c), S::set(minus_infinity));
                    S::store(score + c, seen);
                    largest = S::larger(seen, largest);
                });
            } else {
                if (!is_masked_) std::fill(score + (std::min)(visible(rows, i), Cols), score + Cols, minus_infinity);
                for_packets<C, Cols>([&](Index c)
                                         CASTLE_INLINE_LAMBDA { largest = S::larger(S::load(score + c), largest); });
            }
            rescale_[i] = row_largest;
            row_largest = S::largest(largest);
            // Where no score is finite yet, any finite base gives the weights 0 that belong there.
            base[i] = row_largest == minus_infinity ? C(0) : row_largest;
            rescale_[i] -= base[i];
        }
        for (Index i = 0; i < rows.count; i += S::width) {
            S::store(rescale_ + i, exp_nonpositive<C>(S::load(rescale_ + i)));
        }
        for (Index i = 0; i < rows.count; ++i) {
            C* weight = scores_ + i * panel_size + first_column_;
            C* row_sum = softmax.rows.sum(softmax.row(i));
            Packet sum = S::mul(S::load(row_sum), S::set(rescale_[i]));
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const auto w = exp_nonpositive_parts<C>(S::sub(S::load(weight + c), S::set(base[i])));
                sum = S::fma(w.significand, w.power, sum);
                S::store(weight + c, w.value());
            });
            S::store(row_sum, sum);
        }
        if (rows_.sight.mass_over != nullptr) add_mass<Cols>(rows, softmax);
        if constexpr (multiplies_pairs<T>) round_weights<Cols>(rows);
    }

    // The weights as a left factor of pairs.
    template <Index Cols>
    void round_weights(const QueryRows<T>& rows) {
        for (Index i = 0; i < rows.count; ++i) {
            const Index row = i * panel_size + first_column_;
            for_packets<C, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                PairProducts<T>::round(S::load(scores_ + row + c), rounded_weights_.data() + row + c);
            });
        }
    }
    LeftFactor<T> weights() const {
        if constexpr (multiplies_pairs<T>) {
            return {rounded_weights_.data(), panel_size, 1};
        } else {
            return {scores_, panel_size, 1};
        }
    }

    // The weights of keys that the second mask shows; those of others that are not seen are 0.
    template <Index Cols>
    void add_mass(const QueryRows<T>& rows, const Softmax& softmax) {
        for (Index i = 0; i < rows.count; ++i) {
            const C* weight = scores_ + i * panel_size + first_column_;
            C* row_mass = softmax.rows.mass(softmax.row(i));
            const Lanes<C> lanes(mass_words_[std::size_t(rows.tokens(i) - 1)] >> first_column_);
            // In two sums, so that neither waits for the other.
            const auto kept = [&](Index c)
                                  CASTLE_INLINE_LAMBDA { return S::select(lanes[c], S::load(weight + c), S::zero()); };
            // What there is so far is rounded before the first addition, which may be one of nothing.
            Packet even = S::opaque(S::mul(S::load(row_mass), S::set(rescale_[i]))), odd = S::zero();
            for (Index c = 0; c < Cols; c += 2 * S::width) {
                even = S::add(even, S::opaque(kept(c)));
                odd = S::add(odd, S::opaque(kept(c + S::width)));
            }
            S::store(row_mass, S::add(even, odd));
        }
    }

    // out = rescale out + weights V^C
    void accumulate_values(const QueryRows<T>& rows, const Softmax& softmax) {
        const Index dv = state_.dv_padded();
        const T* values = state_.values(p_);
        const Index stride = softmax.step * dv;
        if (is_masked_ && seen_ == Cover::some &&
            !is_finite(values + first_column_ * dv, columns_ - first_column_, dv, dv)) {
            accumulate_seen_values(rows, softmax);
            return;
        }
        const auto tiles = [&](auto height, Index i) {
            const auto own_weights = weights().rows_from(i);
            const ColumnRange common = common_keys(rows, i, constant<decltype(height)>);
            const Index more = is_masked_ ? 0 : rows.step * (columns_ - common.end);
            C* out = softmax.rows.out(softmax.row(i));
            for_column_tiles<C, widest_tile<C, constant<decltype(height)>, T>>(dv, [&](auto packets, Index c) {
                TileOf<C, decltype(height), decltype(packets)> tile;
                tile.load_scaled(out + c, stride, rescale_ + i);
                tile.multiply_add_steps(own_weights.cols_from(common.begin), values + common.begin * dv + c, dv,
                                        common.end - common.begin, more);
                tile.store(out + c, stride);
            });
        };
        for_row_tiles(rows.count, tiles, rows.highest_tile());
    }

    // The same where values of keys that are not seen may be infinite or NaN, and are left out.
    void accumulate_seen_values(const QueryRows<T>& rows, const Softmax& softmax) {
        const Index dv = state_.dv_padded();
        const T* values = state_.values(p_);
        for (Index i = 0; i < rows.count; ++i) {
            C* out = softmax.rows.out(softmax.row(i));
            for_column_tiles<C, 1>(dv, [&](auto packets, Index c) {
                Tile<C, 1, constant<decltype(packets)>> tile;
                tile.load_scaled(out + c, dv, rescale_ + i);
                multiply_add_rows(weights().rows_from(i), values + c, dv, seen_word(rows, i), tile);
                tile.store(out + c, dv);
            });
        }
    }

    HeadState<T>& state_;
    const BlockRows<T>& rows_;
    PanelScores<T> panel_scores_;
    Index p_;
    Index first_key_;
    // Columns of the panel that some row sees, in whole blocks: from the first up to columns_.
    Index first_column_ = 0;
    Index columns_;
    bool absorbed_;  // whether keys absorb tokens of the block
    bool is_masked_;
    T* gates_;
    Cover seen_ = Cover::all;  // where it is masked
    Cover absorbing_ = Cover::none;
    BlockWords seen_words_;
    BlockWords absorbed_words_;
    BlockWords mass_words_;
    Uninitialized<T, block_size * panel_size> own_gates_;
    alignas(64) C lookahead_scores_[block_size * panel_size];
    alignas(64) C scores_[block_size * panel_size];
    Uninitialized<T, multiplies_pairs<T> ? block_size * panel_size : 1> rounded_weights_;
    alignas(64) C rescale_[block_size] = {};
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
