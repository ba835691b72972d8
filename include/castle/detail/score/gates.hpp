// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/simd.hpp>

// Gates of a block's tokens against keys of one panel, [block_size][panel_size], and what they add to U.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// gates = sigmoid(logits) for the first Cols elements of each of `rows` rows; they may be in the same place.
template <Index Cols, ComputeScalar T, Scalar Gate>
void open_gates(Index rows, const T* logits, Gate* gates) {
    using S = Simd<T>;
    for (Index i = 0; i < rows; ++i) {
        const Index row = i * panel_size;
        for_packets<T, Cols>(
            [&](Index c) CASTLE_INLINE_LAMBDA { S::store(gates + row + c, sigmoid<T>(S::load(logits + row + c))); });
    }
}

enum class Fold { add, subtract };

// u[d][Cols] +- sum_j values(:, j) gates[j, :] over the first `count` of the tokens, in their order. The keys are the
// Cols columns of panel p from `column` on, to which u and gates point; what they do not absorb is left out.
template <Index Cols, Fold fold = Fold::add, class Left, Scalar Gate, ComputeScalar T>
void fold_tokens(const AbsorbedTokens& tokens, Absorbed absorbed, Index p, Index column, Index d, Left values,
                 const Gate* gates, Index count, T* u) {
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

// 0 in place of the gates of the first `count` tokens that keys, Cols of them from `column` on, do not absorb.
template <Index Cols, Scalar T>
void close_gates(const BlockWords& words, Index column, Index count, T* gates) {
    for (Index j = 0; j < count; ++j) {
        keep_columns<Cols>(words[std::size_t(j)] >> column, Compute<T>(0), gates + j * panel_size);
    }
}

// fold_tokens under a mask: `words` say which of the panel's columns absorb which tokens, and gates of others are 0.
template <Index Cols, Fold fold = Fold::add, class Left, Scalar Gate, ComputeScalar T>
void fold_words(const BlockWords& words, Index column, Index d, Left values, const Gate* gates, Index count, T* u) {
    if (is_finite(values, d, count)) {
        fold_tokens<Cols, fold>(AbsorbedTokens(every_key, 0, 0), Absorbed::all, 0, column, d, values, gates, count, u);
        return;
    }
    BlockWords own = words;
    for (auto& word : own) word = word >> column & range_word(0, Cols, 0);
    const auto negate = [&] {
        for (Index k = 0; k < d; ++k) {
            for (Index c = 0; c < Cols; ++c) u[k * panel_size + c] = -u[k * panel_size + c];
        }
    };
    if (fold == Fold::subtract) negate();
    multiply_add_where<Cols>(d, count, values, gates, panel_size, u, panel_size, own.data());
    if (fold == Fold::subtract) negate();
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
