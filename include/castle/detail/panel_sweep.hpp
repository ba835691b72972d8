// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>

#include <castle/detail/absorption.hpp>
#include <castle/detail/head_state.hpp>
#include <castle/detail/layout.hpp>
#include <castle/detail/packet_math.hpp>
#include <castle/detail/tile.hpp>

// The heart of the library: the new rows of one block against one panel of keys.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The rows of a block that a call brings: tokens [first, end) of the block that starts at token `origin`.
template <Scalar T>
struct BlockRows {
    Index origin;
    Index first;
    Index end;
    BlockOperands<T> operands;

    Index count() const { return end - first; }
    bool finishes() const { return end == origin + block_size; }
    // Whether gates of this block outlive the call or come from an earlier one.
    bool is_split() const { return first > origin || !finishes(); }
};

// u[d][panel_size] += sum_j gates[j, :] v^U_j over the `tokens` of the block, `count` of them, in their order.
template <Scalar T>
void fold_block(const HeadState<T>& state, const AbsorbedTokens& tokens, Index count, BlockOperands<T> block,
                const T* gates, Index p, T* u) {
    tokens.for_column_ranges(p, panel_size, [&](auto columns, Index first, Absorbed absorbed) {
        if (absorbed == Absorbed::none) return;
        for_row_tiles(state.shape().d, [&](auto height, Index k) {
            const auto values = Operand<T>{block.lookahead_values(), block_size, 1}.rows_from(k);
            for_column_tiles<T, constant<decltype(columns)>>([&](auto packets, Index column) {
                const Index c = first + column;
                TileOf<T, decltype(height), decltype(packets)> tile;
                tile.load(u + k * panel_size + c, panel_size);
                if (absorbed == Absorbed::all) {
                    tile.multiply_add(values, gates + c, panel_size, count);
                } else if constexpr (constant<decltype(columns)> == block_size) {  // a whole panel is of one kind
                    tile.multiply_add_within(values, gates + c, panel_size, count, c,
                                             [&](Index j) { return tokens.columns(j, p); });
                }
                tile.store(u + k * panel_size + c, panel_size);
            });
        });
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
          tokens_(state.window(), rows.origin, rows.end),
          p_(p),
          first_key_(p * panel_size),
          columns_((std::min)(round_up(rows.end - first_key_, block_size), panel_size)),
          absorbed_(tokens_.by_keys(first_key_, panel_size) != Absorbed::none),
          gates_(absorbed_ && rows.is_split() ? state.gates(p) : own_gates_) {}

    void make_gates() {
        if (absorbed_) compute_gates();
    }

    // Takes the panel into the rows' softmax, whose row `softmax_row` is token rows.first, and folds the block into the
    // panel's lookahead keys if this call finishes it. A softmax has to meet its panels in ascending order, and a panel
    // its blocks; otherwise calls may come in any order, or at once. The gates may have been made before, in the state.
    void run(bool has_gates, SoftmaxRows<T> softmax, Index softmax_row) {
        if (!has_gates) make_gates();
        if (state_.has_lookahead()) compute_lookahead_scores();
        if (columns_ == panel_size) {
            compute_weights<panel_size>(softmax, softmax_row);
        } else {
            compute_weights<block_size>(softmax, softmax_row);
        }
        accumulate_values(softmax, softmax_row);
        if (absorbed_ && rows_.finishes()) {
            const Index block = rows_.origin / block_size;
            if (state_.history().keeps(block)) state_.history().keep_panel(block, p_, state_.lookahead_keys(p_));
            fold_block(state_, tokens_, block_size, rows_.operands, gates_, p_, state_.lookahead_keys(p_));
        }
    }

  private:
    // scale Q^C of the new rows from the i-th on.
    Operand<T> queries(Index i) const {
        return Operand<T>{rows_.operands.causal_queries(), 1, block_size}.rows_from(rows_.first - rows_.origin + i);
    }

    Operand<T> triangle(Index i) const {
        return Operand<T>{rows_.operands.triangle(), block_size, 1}.rows_from(rows_.first - rows_.origin + i);
    }

    // gates[t, s] = sigmoid(scale k^U_t . q^U_s): rows are the absorbed tokens, columns the keys, which is the
    // transpose of dense::gates.
    void compute_gates() {
        const Index skip = rows_.first - rows_.origin;
        const auto keys = Operand<T>{rows_.operands.lookahead_keys(), 1, block_size}.rows_from(skip);
        tokens_.for_column_ranges(p_, columns_, [&](auto columns, Index first, Absorbed absorbed) {
            if (absorbed == Absorbed::none) return;
            T* gates = gates_ + skip * panel_size + first;
            multiply<constant<decltype(columns)>>(rows_.count(), state_.shape().d, keys,
                                                  state_.lookahead_queries(p_) + first, panel_size, gates, panel_size);
            for (Index i = 0; i < rows_.count(); ++i) {
                T* gate = gates + i * panel_size;
                for_packets<T, constant<decltype(columns)>>(
                    [&](Index c) CASTLE_INLINE_LAMBDA { S::store(gate + c, sigmoid<T>(S::load(gate + c))); });
            }
        });
    }

    // s^U[t, s] = scale q^C_t . U_s + sum_{j <= t} triangle[t, j] gates[j, s]
    void compute_lookahead_scores() {
        const T* keys = state_.lookahead_keys(p_);
        tokens_.for_column_ranges(p_, columns_, [&](auto columns, Index first, Absorbed absorbed) {
            for_row_tiles(rows_.count(), [&](auto height, Index i) {
                for_column_tiles<T, constant<decltype(columns)>>([&](auto packets, Index column) {
                    const Index c = first + column;
                    TileOf<T, decltype(height), decltype(packets)> tile;
                    tile.set_zero();
                    tile.multiply_add(queries(i), keys + c, panel_size, state_.shape().d);
                    if (absorbed == Absorbed::all) {
                        add_open_block(tile, i, c);
                    } else if constexpr (constant<decltype(columns)> == block_size) {  // a whole panel is of one kind
                        if (absorbed == Absorbed::some) add_open_block_within(tile, i, c);
                    }
                    tile.store(lookahead_scores_ + i * panel_size + c, panel_size);
                });
            });
        });
    }

    // The part of s^U that the block's own tokens have, for the tile of rows from i and columns from c, every
    // one of which takes the block's tokens up to that of row i.
    template <int R, int V>
    EIGEN_ALWAYS_INLINE void add_open_block(Tile<T, R, V>& tile, Index i, Index c) const {
        const Index common = rows_.first - rows_.origin + i + 1;
        const T* gates = gates_ + c;
        tile.multiply_add(triangle(i), gates, panel_size, common);
        tile.multiply_add_triangle(triangle(i).cols_from(common), gates + common * panel_size, panel_size, block_size);
    }
    // The same where only some keys absorb only some tokens.
    template <int R, int V>
    EIGEN_ALWAYS_INLINE void add_open_block_within(Tile<T, R, V>& tile, Index i, Index c) const {
        const Index common = rows_.first - rows_.origin + i + 1;
        const T* gates = gates_ + c;
        const auto columns = [&](Index j) { return tokens_.columns(j, p_); };
        tile.multiply_add_within(triangle(i), gates, panel_size, common, c, columns);
        tile.multiply_add_triangle_within(triangle(i).cols_from(common), gates + common * panel_size, panel_size, c,
                                          [&](Index j) { return columns(common + j); });
    }

    // Keys of the panel that the i-th new row sees.
    Index visible(Index i) const { return (std::min)(rows_.first + i - first_key_ + 1, panel_size); }

    // scores_ = s^C - SiLU(s^U), as far as they are asked for. Of the panel only the first Cols keys are seen.
    template <Index Cols>
    void compute_scores() {
        if (state_.has_causal_scores()) {
            multiply<Cols>(rows_.count(), state_.shape().d, queries(0), state_.causal_keys(p_), panel_size, scores_,
                           panel_size);
        } else {
            std::fill_n(scores_, rows_.count() * panel_size, T(0));
        }
        if (!state_.has_lookahead()) return;
        const auto subtract = [&](const auto& term) {
            for (Index i = 0; i < rows_.count(); ++i) {
                T* score = scores_ + i * panel_size;
                const T* lookahead = lookahead_scores_ + i * panel_size;
                for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                    S::store(score + c, S::sub(S::load(score + c), term(S::load(lookahead + c))));
                });
            }
        };
        if (state_.has_silu()) {
            subtract([](Packet x) CASTLE_INLINE_LAMBDA { return silu<T>(x); });
        } else {
            subtract([](Packet x) CASTLE_INLINE_LAMBDA { return x; });
        }
    }

    // Scores above the diagonal are excluded; then weights = exp(score - largest) in place of the scores, and what the
    // rows have so far is to be multiplied with rescale_.
    template <Index Cols>
    void compute_weights(SoftmaxRows<T> softmax, Index softmax_row) {
        constexpr T minus_infinity = -std::numeric_limits<T>::infinity();
        compute_scores<Cols>();
        T base[block_size];
        for (Index i = 0; i < rows_.count(); ++i) {
            T* score = scores_ + i * panel_size;
            std::fill(score + (std::min)(visible(i), Cols), score + Cols, minus_infinity);
            T& row_largest = softmax.largest()[softmax_row + i];
            Packet largest = S::set(row_largest);
            for_packets<T, Cols>([&](Index c)
                                     CASTLE_INLINE_LAMBDA { largest = S::larger(S::load(score + c), largest); });
            rescale_[i] = row_largest;
            row_largest = S::largest(largest);
            // Where no score is finite yet, any finite base gives the weights 0 that belong there.
            base[i] = row_largest == minus_infinity ? T(0) : row_largest;
            rescale_[i] -= base[i];
        }
        for (Index i = 0; i < rows_.count(); i += S::width) {
            S::store(rescale_ + i, exp_nonpositive<T>(S::load(rescale_ + i)));
        }
        for (Index i = 0; i < rows_.count(); ++i) {
            T* weight = scores_ + i * panel_size;
            T* row_sum = softmax.sum(softmax_row + i);
            Packet sum = S::mul(S::load(row_sum), S::set(rescale_[i]));
            for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA {
                const Packet w = exp_nonpositive<T>(S::sub(S::load(weight + c), S::set(base[i])));
                sum = S::add(sum, w);
                S::store(weight + c, w);
            });
            S::store(row_sum, sum);
        }
    }

    // out = rescale out + weights V^C
    void accumulate_values(SoftmaxRows<T> softmax, Index softmax_row) {
        const Index dv = state_.dv_padded();
        const T* values = state_.values(p_);
        for_row_tiles(rows_.count(), [&](auto height, Index i) {
            const auto weights = Operand<T>{scores_, panel_size, 1}.rows_from(i);
            const Index common = visible(i);
            T* out = softmax.out(softmax_row + i);
            for_column_tiles<T, widest_tile<T, constant<decltype(height)>>>(dv, [&](auto packets, Index c) {
                TileOf<T, decltype(height), decltype(packets)> tile;
                tile.load_scaled(out + c, dv, rescale_ + i);
                tile.multiply_add(weights, values + c, dv, common);
                tile.multiply_add_triangle(weights.cols_from(common), values + common * dv + c, dv, columns_ - common);
                tile.store(out + c, dv);
            });
        });
    }

    HeadState<T>& state_;
    const BlockRows<T>& rows_;
    AbsorbedTokens tokens_;
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
