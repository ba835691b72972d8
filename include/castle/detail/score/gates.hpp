// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/detail/simd/tile.hpp>

// Gates of a block's tokens against keys of one panel, [block_size][panel_size], and what they add to U.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// sigmoid in place of the first Cols elements of each of `rows` rows of logits.
template <Index Cols, Scalar T>
void open_gates(Index rows, T* logits) {
    using S = Simd<T>;
    for (Index i = 0; i < rows; ++i) {
        T* row = logits + i * panel_size;
        for_packets<T, Cols>([&](Index c) CASTLE_INLINE_LAMBDA { S::store(row + c, sigmoid<T>(S::load(row + c))); });
    }
}

enum class Fold { add, subtract };

// u[d][Cols] +- sum_j values(:, j) gates[j, :] over the first `count` of the tokens, in their order. The keys are the
// Cols columns of panel p from `column` on, to which u and gates point; what they do not absorb is left out.
template <Index Cols, Fold fold = Fold::add, Scalar T>
void fold_tokens(const AbsorbedTokens& tokens, Absorbed absorbed, Index p, Index column, Index d, Operand<T> values,
                 const T* gates, Index count, T* u) {
    if (absorbed == Absorbed::none) return;
    for_row_tiles(d, [&](auto height, Index k) {
        for_column_tiles<T, Cols>([&](auto packets, Index c) {
            TileOf<T, decltype(height), decltype(packets)> tile;
            tile.load(u + k * panel_size + c, panel_size);
            if constexpr (fold == Fold::subtract) tile.negate();
            if (absorbed == Absorbed::all) {
                tile.multiply_add(values.rows_from(k), gates + c, panel_size, count);
            } else {
                tile.multiply_add_within(values.rows_from(k), gates + c, panel_size, count, column + c,
                                         [&](Index j) { return tokens.columns(j, p); });
            }
            if constexpr (fold == Fold::subtract) tile.negate();
            tile.store(u + k * panel_size + c, panel_size);
        });
    });
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
