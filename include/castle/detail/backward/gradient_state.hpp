// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/score/log_sum_exp.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/detail/state/block_factors.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Of each block of keys in a panel: the last block of tokens that made more elements of U infinite or NaN.
using LastBadBlocks = std::array<Index, panel_size / block_size>;

// What the backward pass of one key-value head needs of the keys beside the forward pass's HeadState: their values
// transposed, and the gradients of what is theirs, all as panels, [d][panel_size] or [dv][panel_size]. In memory of
// others.
template <ComputeScalar T>
class GradientState {
  public:
    // Of one panel.
    static Index elements(const AttentionKind& kind) {
        return (2 * kind.shape.dv + (kind.has_lookahead() ? 3 : 1) * kind.shape.d) * panel_size;
    }

    GradientState(const AttentionKind& kind, T* memory, LastBadBlocks* last_bad_blocks)
        : d_(kind.shape.d),
          dv_(kind.shape.dv),
          elements_(elements(kind)),
          memory_(memory),
          last_bad_blocks_(last_bad_blocks) {}

    T* values(Index p) { return memory_ + p * elements_; }
    T* d_values(Index p) { return values(p) + dv_ * panel_size; }
    T* d_causal_keys(Index p) { return d_values(p) + dv_ * panel_size; }
    T* d_lookahead_keys(Index p) { return d_causal_keys(p) + d_ * panel_size; }
    T* d_lookahead_queries(Index p) { return d_lookahead_keys(p) + d_ * panel_size; }

    // Of the keys in columns [column, column + cols) of panel p: the last block of tokens that made more elements of U
    // infinite or NaN, or `unlimited` as long as that is not known.
    Index last_bad_block(Index p, Index column, Index cols) const {
        Index last = -1;
        for (Index c = column; c < column + cols; c += block_size) {
            last = (std::max)(last, last_bad_blocks_[p][std::size_t(c / block_size)]);
        }
        return last;
    }
    void set_last_bad_block(Index p, Index column, Index cols, Index block) {
        for (Index c = column; c < column + cols; c += block_size) {
            last_bad_blocks_[p][std::size_t(c / block_size)] = block;
        }
    }

    // Panel p as before the last block: its values, `rows` rows of the keys' values that lie so far apart, in place,
    // and every gradient 0.
    template <Scalar V>
    void start(Index p, const V* values_of_keys, Index stride, Index rows) {
        last_bad_blocks_[p].fill(unlimited);
        // Columns of no token have values of 0.
        std::fill_n(values(p), (rows < panel_size ? dv_ * panel_size : 0), T(0));
        transpose(values_of_keys, stride, rows, dv_, T(1), values(p), panel_size);
        std::fill_n(d_values(p), elements_ - dv_ * panel_size, T(0));
    }

  private:
    Index d_;
    Index dv_;
    Index elements_;
    T* memory_;
    LastBadBlocks* last_bad_blocks_;
};

// The gradients of score tables, for the distances that keys of one span have from the rows of one block: of factors,
// then of biases. Key s and row t, counted from the first of the span and of the block, have place s - t + last_row.
struct TableSums {
    static constexpr Index last_row = block_size - 1;
    static constexpr Index distances = round_up(span_size + block_size, panel_size);
    static constexpr Index elements = 2 * distances;
};

// Of the rows of one block and one query head: dO^T, [dv][block_size]; delta_i = dO_i . O_i; the gradients of masses,
// null where there are none; and the logarithms of the sums of exp(score). The gradients of the tables add up in
// `tables`, see TableSums, null where there are no tables.
template <Scalar T>
struct BlockCotangents {
    using C = Compute<T>;

    const C* d_out;
    LeftFactor<T> d_out_factor;  // dO, [block_size][dv]
    const C* delta;
    const C* d_mass;
    LogSumExp<C> log_sum_exp;
    C* tables;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
