// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>

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

// Whether some key of panel p absorbs some token of the rows [origin, end) of a block.
template <Scalar T>
bool absorbs(const HeadState<T>& state, Index origin, Index end, Index p) {
    const Index first_key = p * panel_size;
    return origin < end && first_key < end - 1 && first_key + panel_size - 1 >= origin - state.window();
}

// u[d][panel_size] += sum_j gates[j, :] v^U_j over the first `count` tokens of the block, in their order.
template <Scalar T>
void fold_block(const HeadState<T>& state, Index origin, Index count, BlockOperands<T> block, const T* gates, Index p,
                bool at_edge, T* u) {
    for_row_tiles(state.shape().d, [&](auto height, Index k) {
        for_column_tiles<T, panel_size>([&](auto packets, Index c) {
            const auto values = Operand<T>{block.lookahead_values(), block_size, 1}.rows_from(k);
            Tile<T, height, packets> tile;
            tile.load(u + k * panel_size + c, panel_size);
            if (at_edge) {
                tile.multiply_add_within(values, gates + c, panel_size, count, c,
                                         [&](Index j) { return state.absorbing_columns(origin + j, p); });
            } else {
                tile.multiply_add(values, gates + c, panel_size, count);
            }
            tile.store(u + k * panel_size + c, panel_size);
        });
    });
}

template <Scalar T>
class PanelSweep {
    using S = Simd<T>;
    using Packet = typename S::Packet;

  public:
    PanelSweep(HeadState<T>& state, const BlockRows<T>& rows) : state_(state), rows_(rows) {}

    // Takes panel p into the rows' softmax, whose row `softmax_row` is token rows.first, and folds the block into the
    // panel's lookahead keys if this call finishes it. Panels may come in any order across threads, but for one block
    // and one softmax in ascending order.
    void run(Index p, SoftmaxRows<T> softmax, Index softmax_row) {
        p_ = p;
        first_key_ = p * panel_size;
        const Index last_key = first_key_ + panel_size - 1;
        const bool lookahead = state_.has_lookahead() && absorbs(state_, rows_.origin, rows_.end, p);
        // Away from the edges every token of the block is absorbed by every key of the panel.
        at_edge_ = !(last_key < rows_.origin && first_key_ >= rows_.end - 1 - state_.window());

        if (lookahead) {
            gates_ = rows_.is_split() ? state_.gates(p) : own_gates_;
            compute_gates();
        }
        if (state_.has_lookahead()) compute_lookahead_scores(lookahead);
        multiply<panel_size>(rows_.count(), state_.shape().d, queries(0), state_.causal_keys(p), panel_size, scores_,
                             panel_size);
        compute_weights(softmax, softmax_row);
        accumulate_values(softmax, softmax_row);
        if (lookahead && rows_.finishes()) {
            fold_block(state_, rows_.origin, block_size, rows_.operands, gates_, p, at_edge_, state_.lookahead_keys(p));
        }
    }

  private:
    // scale Q^C of the new rows from the i-th on.
    Operand<T> queries(Index i) const {
        return Operand<T>{rows_.operands.causal_queries(), 1, block_size}.rows_from(rows_.first - rows_.origin + i);
    }

    // gates[t, s] = sigmoid(scale k^U_t . q^U_s): rows are the absorbed tokens, columns the keys, which is the
    // transpose of dense::gates.
    void compute_gates() {
        const Index skip = rows_.first - rows_.origin;
        const auto keys = Operand<T>{rows_.operands.lookahead_keys(), 1, block_size}.rows_from(skip);
        T* gates = gates_ + skip * panel_size;
        multiply<panel_size>(rows_.count(), state_.shape().d, keys, state_.lookahead_queries(p_), panel_size, gates,
                             panel_size);
        for (Index i = 0; i < rows_.count() * panel_size; i += S::width) {
            S::store(gates + i, sigmoid<T>(S::load(gates + i)));
        }
    }

    // s^U[t, s] = scale q^C_t . U_s + sum_{j <= t} triangle[t, j] gates[j, s]
    void compute_lookahead_scores(bool with_open_block) {
        const T* u = state_.lookahead_keys(p_);
        const Index d = state_.shape().d;
        if (!with_open_block) {
            multiply<panel_size>(rows_.count(), d, queries(0), u, panel_size, lookahead_scores_, panel_size);
            return;
        }
        for_row_tiles(rows_.count(), [&](auto height, Index i) {
            const Index row = rows_.first - rows_.origin + i;
            const auto triangle = Operand<T>{rows_.operands.triangle(), block_size, 1}.rows_from(row);
            const Index common = row + 1;  // every row of the tile takes these tokens of the block
            for_column_tiles<T, panel_size>([&](auto packets, Index c) {
                Tile<T, height, packets> tile;
                tile.set_zero();
                tile.multiply_add(queries(i), u + c, panel_size, d);
                const T* gates = gates_ + c;
                if (at_edge_) {
                    const auto columns = [&](Index j) { return state_.absorbing_columns(rows_.origin + j, p_); };
                    tile.multiply_add_within(triangle, gates, panel_size, common, c, columns);
                    tile.multiply_add_triangle_within(triangle.cols_from(common), gates + common * panel_size,
                                                      panel_size, c, [&](Index j) { return columns(common + j); });
                } else {
                    tile.multiply_add(triangle, gates, panel_size, common);
                    tile.multiply_add_triangle(triangle.cols_from(common), gates + common * panel_size, panel_size,
                                               block_size);
                }
                tile.store(lookahead_scores_ + i * panel_size + c, panel_size);
            });
        });
    }

    // Keys of the panel that the i-th new row sees.
    Index visible(Index i) const { return std::min(rows_.first + i - first_key_ + 1, panel_size); }

    // score = s^C - SiLU(s^U), excluded above the diagonal; then weights = exp(score - largest) in place of the scores,
    // and what the rows have so far is to be multiplied with rescale_.
    void compute_weights(SoftmaxRows<T> softmax, Index softmax_row) {
        constexpr T minus_infinity = -std::numeric_limits<T>::infinity();
        T base[block_size];
        for (Index i = 0; i < rows_.count(); ++i) {
            T* score = scores_ + i * panel_size;
            const Packet end = S::set(static_cast<T>(visible(i)));
            Packet largest = S::set(softmax.largest()[softmax_row + i]);
            for (Index c = 0; c < panel_size; c += S::width) {
                Packet x = S::load(score + c);
                if (state_.has_lookahead()) {
                    x = S::sub(x, silu<T>(S::load(lookahead_scores_ + i * panel_size + c)));
                }
                x = S::select(S::less(S::iota(static_cast<T>(c)), end), x, S::set(minus_infinity));
                largest = S::max(x, largest);
                S::store(score + c, x);
            }
            T& row_largest = softmax.largest()[softmax_row + i];
            rescale_[i] = row_largest;
            row_largest = S::largest(largest);
            // Where no score is finite yet, any finite base gives the weights 0 that belong there.
            base[i] = row_largest == minus_infinity ? T(0) : row_largest;
            rescale_[i] -= base[i];
        }
        for (Index i = 0; i < rows_.count(); i += S::width)
            S::store(rescale_ + i, exp_nonpositive<T>(S::load(rescale_ + i)));
        for (Index i = 0; i < rows_.count(); ++i) {
            T* weight = scores_ + i * panel_size;
            Packet sum = S::zero();
            for (Index c = 0; c < panel_size; c += S::width) {
                const Packet w = exp_nonpositive<T>(S::sub(S::load(weight + c), S::set(base[i])));
                sum = S::add(sum, w);
                S::store(weight + c, w);
            }
            T& row_sum = softmax.sum()[softmax_row + i];
            row_sum = S::first(S::fma(S::set(row_sum), S::set(rescale_[i]), S::set(S::sum(sum))));
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
            for_column_tiles<T>(dv, [&](auto packets, Index c) {
                Tile<T, height, packets> tile;
                tile.load_scaled(out + c, dv, rescale_ + i);
                tile.multiply_add(weights, values + c, dv, common);
                tile.multiply_add_triangle(weights.cols_from(common), values + common * dv + c, dv,
                                           panel_size - common);
                tile.store(out + c, dv);
            });
        });
    }

    HeadState<T>& state_;
    const BlockRows<T>& rows_;
    Index p_ = 0;
    Index first_key_ = 0;
    bool at_edge_ = false;
    T* gates_ = nullptr;
    alignas(64) T own_gates_[block_size * panel_size];
    alignas(64) T lookahead_scores_[block_size * panel_size];
    alignas(64) T scores_[block_size * panel_size];
    alignas(64) T rescale_[block_size] = {};
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
