// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>

#include <castle/detail/absorption.hpp>
#include <castle/detail/head_state.hpp>
#include <castle/detail/layout.hpp>
#include <castle/detail/packet_math.hpp>
#include <castle/detail/tile.hpp>
#include <castle/input.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// U of some keys of a panel, Cols of them from `column` on, where it cannot be recovered by subtraction.
//
// The backward pass recovers U of earlier tokens by subtracting what each block added. An infinity or a NaN of a block
// stays, and would reach the gradients of tokens before it. Where a block added one, elements that are not finite are
// summed up again, as in the forward pass; all others stay as they are. A block then costs as much as the forward pass
// up to it, or up to the first token that makes the same elements infinite or NaN: once a sequence where one token is
// bad, and one block's work where all are.
template <Scalar T, Index Cols>
class RestoredKeys {
    using S = Simd<T>;
    static constexpr Index chunk = block_size;

  public:
    // Scratch: two of [block_size][panel_size], and one of [block_size][chunk].
    struct Scratch {
        T* gates;
        T* sums;
        T* keys;
    };

    RestoredKeys(HeadState<T>& state, const Qkv<T>& lookahead, Index p, Index column, const Scratch& scratch)
        : state_(state), lookahead_(lookahead), p_(p), column_(column), scratch_(scratch) {}

    // After what the block at token `origin` added has been subtracted: its gates [block_size][panel_size] times its
    // values [d][block_size].
    void run(Index origin, const T* gates, const T* values) {
        T* u = state_.lookahead_keys(p_) + column_;
        const Index d = state_.shape().d;
        if (all_finite<Cols, panel_size>(u, d)) return;
        // What earlier blocks added belongs there.
        if (all_finite<Cols, panel_size>(gates, block_size) && all_finite<block_size, block_size>(values, d)) return;
        for (Index k = 0; k < d; k += chunk) {
            const Index rows = (std::min)(chunk, d - k);
            const Index wanting = not_finite(u + k * panel_size, rows);
            if (wanting > 0) sum_up(origin, k, rows, wanting, u + k * panel_size);
        }
    }

  private:
    template <Index Count, Index Stride>
    static bool all_finite(const T* m, Index rows) {
        auto sum = S::zero();
        for (Index i = 0; i < rows; ++i) {
            for_packets<T, Count>([&](Index c) CASTLE_INLINE_LAMBDA {
                const auto x = S::load(m + i * Stride + c);
                sum = S::add(sum, S::sub(x, x));  // 0 or NaN
            });
        }
        return !std::isnan(S::sum(sum));
    }
    static Index not_finite(const T* m, Index rows) {
        Index count = 0;
        for (Index i = 0; i < rows; ++i) {
            for (Index c = 0; c < Cols; ++c) count += std::isfinite(m[i * panel_size + c]) ? 0 : 1;
        }
        return count;
    }

    // Rows [k, k + rows) of U, `wanting` elements of which are not finite in u.
    void sum_up(Index origin, Index k, Index rows, Index wanting, T* u) {
        const Index first_key = p_ * panel_size + column_;
        T* sums = scratch_.sums;
        std::fill_n(sums, block_size * panel_size, T(0));
        for (Index token = round_down(first_key, block_size); token < origin; token += block_size) {
            const AbsorbedTokens tokens(state_.window(), token, token + block_size);
            const Absorbed absorbed = tokens.by_keys(first_key, Cols);
            if (absorbed == Absorbed::none) continue;
            compute_gates(token);
            fold(tokens, absorbed, token, k, rows);
            if (not_finite(sums, rows) == wanting) return;  // as they are in u, for earlier tokens' sake
        }
        for (Index i = 0; i < rows; ++i) {
            for (Index c = 0; c < Cols; ++c) {
                T& x = u[i * panel_size + c];
                if (!std::isfinite(x)) x = sums[i * panel_size + c];
            }
        }
    }

    // Of the block at `token`.
    void compute_gates(Index token) {
        std::fill_n(scratch_.gates, block_size * panel_size, T(0));
        const Index d = state_.shape().d;
        for (Index k = 0; k < d; k += chunk) {
            const Index n = (std::min)(chunk, d - k);
            for (Index j = 0; j < block_size; ++j) {
                for (Index i = 0; i < n; ++i) {
                    scratch_.keys[j * chunk + i] = state_.scale() * lookahead_.k.row(token + j)[k + i];
                }
            }
            multiply_add<Cols, chunk, panel_size>(
                block_size, n, scratch_.keys, state_.lookahead_queries(p_) + k * panel_size + column_, scratch_.gates);
        }
        for (Index j = 0; j < block_size; ++j) {
            T* gate = scratch_.gates + j * panel_size;
            for_packets<T, Cols>([&](Index c)
                                     CASTLE_INLINE_LAMBDA { S::store(gate + c, sigmoid<T>(S::load(gate + c))); });
        }
    }

    void fold(const AbsorbedTokens& tokens, Absorbed absorbed, Index token, Index k, Index rows) {
        const Operand<T> values{lookahead_.v.row(token) + k, 1, lookahead_.v.outer_stride()};
        for_row_tiles(rows, [&](auto height, Index i) {
            for_column_tiles<T, Cols>([&](auto packets, Index c) {
                TileOf<T, decltype(height), decltype(packets)> tile;
                T* sums = scratch_.sums + i * panel_size + c;
                tile.load(sums, panel_size);
                if (absorbed == Absorbed::all) {
                    tile.multiply_add(values.rows_from(i), scratch_.gates + c, panel_size, block_size);
                } else {
                    tile.multiply_add_within(values.rows_from(i), scratch_.gates + c, panel_size, block_size,
                                             column_ + c, [&](Index j) { return tokens.columns(j, p_); });
                }
                tile.store(sums, panel_size);
            });
        });
    }

    HeadState<T>& state_;
    const Qkv<T>& lookahead_;
    Index p_;
    Index column_;
    Scratch scratch_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
