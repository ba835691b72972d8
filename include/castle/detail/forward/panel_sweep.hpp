// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/gates.hpp>
#include <castle/detail/score/softmax_rows.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/tile.hpp>
#include <castle/detail/state/head_state.hpp>

// The heart of the library: the new rows of one block, of all query heads of a group, against one panel of keys.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// u[d][panel_size] += sum_j gates[j, :] v^U_j over the `tokens` of the block, `count` of them, in their order.
template <Scalar T>
void fold_block(const HeadState<T>& state, const AbsorbedTokens& tokens, Index count, BlockOperands<T> block,
                const T* gates, Index p, T* u) {
    tokens.for_column_ranges(p, panel_size, [&](auto columns, Index first, Absorbed absorbed) {
        fold_tokens<constant<decltype(columns)>>(tokens, absorbed, p, first, state.d(),
                                                 Operand<T>{block.lookahead_values(), block_size, 1}, gates + first,
                                                 count, u + first);
    });
}

template <Scalar T>
class PanelSweep {
    using S = Simd<T>;
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
          gates_(absorbed_ && rows.is_split() ? state.gates(p) : own_gates_) {}

    void make_gates() {
        if (absorbed_) compute_gates();
    }

    // Takes the panel into the rows' softmax and folds the block into the panel's lookahead keys if this call finishes
    // it. Token rows.first of query head h is row `softmax_row + h head_stride` of the softmax. A softmax has to meet
    // its panels in ascending order, and a panel its blocks; otherwise calls may come in any order, or at once. The
    // gates may have been made before, in the state.
    void run(bool has_gates, SoftmaxRows<T> softmax, Index softmax_row, Index head_stride) {
        if (!has_gates) make_gates();
        const Index heads = state_.group();
        if (rows_.count() > 1 || heads == 1) {
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
            if (state_.history().keeps(block)) state_.history().keep_panel(block, p_, state_.lookahead_keys(p_));
            fold_block(state_, tokens(), block_size, rows_.operands, gates_, p_, state_.lookahead_keys(p_));
        }
    }

  private:
    const AbsorbedTokens& tokens() const { return panel_scores_.tokens(); }

    void compute_gates() {
        tokens().for_column_ranges(p_, columns_, [&](auto columns, Index first, Absorbed absorbed) {
            if (absorbed != Absorbed::none) {
                panel_scores_.template compute_gates<constant<decltype(columns)>>(first, gates_ + first);
            }
        });
    }

    // Where the softmax of some rows is.
    struct Softmax {
        SoftmaxRows<T> rows;
        Index first;
        Index step;

        Index row(Index i) const { return first + i * step; }
    };

    void attend(const QueryRows<T>& rows, const Softmax& softmax) {
        if (state_.has_lookahead()) compute_lookahead_scores(rows);
        if (columns_ == panel_size) {
            compute_weights<panel_size>(rows, softmax);
        } else {
            compute_weights<block_size>(rows, softmax);
        }
        accumulate_values(rows, softmax);
    }

    void compute_lookahead_scores(const QueryRows<T>& rows) {
        tokens().for_column_ranges(p_, columns_, [&](auto columns, Index first, Absorbed absorbed) {
            panel_scores_.template compute_lookahead_scores<constant<decltype(columns)>>(
                rows, first, absorbed, gates_ + first, lookahead_scores_ + first);
        });
    }

    // Keys of the panel that row i sees.
    Index visible(const QueryRows<T>& rows, Index i) const {
        return (std::min)(rows_.origin + rows.tokens(i) - first_key_, panel_size);
    }

    // scores_ = s^C - SiLU(s^U), as far as they are asked for. Of the panel only the first Cols keys are seen.
    template <Index Cols>
    void compute_scores(const QueryRows<T>& rows) {
        panel_scores_.template compute_causal_scores<Cols>(rows, 0, scores_);
        if (!state_.has_lookahead()) return;
        panel_scores_.with_lookahead_term([&](const auto& term) {
            for (Index i = 0; i < rows.count; ++i) {
                T* score = scores_ + i * panel_size;
                const T* lookahead = lookahead_scores_ + i * panel_size;
                for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                    S::store(score + c, term(S::load(lookahead + c)).subtracted_from(S::load(score + c)));
                });
            }
        });
    }

    // Scores above the diagonal are excluded; then weights = exp(score - largest) in place of the scores, and what the
    // rows have so far is to be multiplied with rescale_.
    template <Index Cols>
    void compute_weights(const QueryRows<T>& rows, const Softmax& softmax) {
        constexpr T minus_infinity = -std::numeric_limits<T>::infinity();
        compute_scores<Cols>(rows);
        T base[block_size];
        for (Index i = 0; i < rows.count; ++i) {
            T* score = scores_ + i * panel_size;
            std::fill(score + (std::min)(visible(rows, i), Cols), score + Cols, minus_infinity);
            T& row_largest = softmax.rows.largest()[softmax.row(i)];
            Packet largest = S::set(row_largest);
            for_packets<T, Cols>([&](Index c)
                                     CASTLE_INLINE_LAMBDA { largest = S::larger(S::load(score + c), largest); });
            rescale_[i] = row_largest;
            row_largest = S::largest(largest);
            // Where no score is finite yet, any finite base gives the weights 0 that belong there.
            base[i] = row_largest == minus_infinity ? T(0) : row_largest;
            rescale_[i] -= base[i];
        }
        for (Index i = 0; i < rows.count; i += S::width) {
            S::store(rescale_ + i, exp_nonpositive<T>(S::load(rescale_ + i)));
        }
        for (Index i = 0; i < rows.count; ++i) {
            T* weight = scores_ + i * panel_size;
            T* row_sum = softmax.rows.sum(softmax.row(i));
            Packet sum = S::mul(S::load(row_sum), S::set(rescale_[i]));
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const auto w = exp_nonpositive_parts<T>(S::sub(S::load(weight + c), S::set(base[i])));
                sum = S::fma(w.significand, w.power, sum);
                S::store(weight + c, w.value());
            });
            S::store(row_sum, sum);
        }
    }

    // out = rescale out + weights V^C
    void accumulate_values(const QueryRows<T>& rows, const Softmax& softmax) {
        const Index dv = state_.dv_padded();
        const T* values = state_.values(p_);
        const Index stride = softmax.step * dv;
        const auto tiles = [&](auto height, Index i) {
            const auto weights = Operand<T>{scores_, panel_size, 1}.rows_from(i);
            const Index common = visible(rows, i);
            const Index more = rows.step * (columns_ - common);
            T* out = softmax.rows.out(softmax.row(i));
            for_column_tiles<T, widest_tile<T, constant<decltype(height)>>>(dv, [&](auto packets, Index c) {
                TileOf<T, decltype(height), decltype(packets)> tile;
                tile.load_scaled(out + c, stride, rescale_ + i);
                tile.multiply_add(weights, values + c, dv, common);
                tile.multiply_add_triangle(weights.cols_from(common), values + common * dv + c, dv, more);
                tile.store(out + c, stride);
            });
        };
        for_row_tiles(rows.count, tiles, rows.highest_tile());
    }

    HeadState<T>& state_;
    const BlockRows<T>& rows_;
    PanelScores<T> panel_scores_;
    Index p_;
    Index first_key_;
    Index columns_;  // of the panel that some row sees, in whole blocks
    bool absorbed_;
    T* gates_;
    alignas(64) T own_gates_[block_size * panel_size];
    alignas(64) T lookahead_scores_[block_size * panel_size];
    alignas(64) T scores_[block_size * panel_size];
    alignas(64) T rescale_[block_size] = {};
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
