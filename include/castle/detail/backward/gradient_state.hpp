// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/score/softmax_rows.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/detail/state/panel_store.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What the backward pass of one head needs of the keys beside the forward pass's HeadState: their values transposed,
// and the gradients of what is theirs, all as panels, [d][panel_size] or [dv][panel_size].
template <Scalar T>
class GradientState {
  public:
    GradientState(HeadShape shape, bool has_lookahead)
        : shape_(shape),
          panels_((2 * shape.dv + (has_lookahead ? 3 : 1) * shape.d) * panel_size),
          has_lookahead_(has_lookahead) {}

    // Changes nothing that can be seen if an allocation throws.
    void reserve(Index tokens) {
        const Index panels = ceil_div(tokens, panel_size);
        if (panels > Index(last_bad_blocks_.size())) last_bad_blocks_.resize(std::size_t(panels));
        panels_.add(panels_.missing(panels));
    }

    Index bytes() const {
        return panels_.numbers() * Index(sizeof(T)) + Index(last_bad_blocks_.size() * sizeof(LastBadBlocks));
    }

    T* values(Index p) { return panels_[p]; }
    T* d_values(Index p) { return values(p) + shape_.dv * panel_size; }
    T* d_causal_keys(Index p) { return d_values(p) + shape_.dv * panel_size; }
    T* d_lookahead_keys(Index p) { return d_causal_keys(p) + shape_.d * panel_size; }
    T* d_lookahead_queries(Index p) { return d_lookahead_keys(p) + shape_.d * panel_size; }

    // Of the keys in columns [column, column + cols) of panel p: the last block of tokens that made more elements of U
    // infinite or NaN, or `unlimited` as long as that is not known.
    Index last_bad_block(Index p, Index column, Index cols) const {
        const LastBadBlocks& blocks = last_bad_blocks_[std::size_t(p)];
        Index last = -1;
        for (Index c = column; c < column + cols; c += block_size) {
            last = (std::max)(last, blocks[std::size_t(c / block_size)]);
        }
        return last;
    }
    void set_last_bad_block(Index p, Index column, Index cols, Index block) {
        LastBadBlocks& blocks = last_bad_blocks_[std::size_t(p)];
        for (Index c = column; c < column + cols; c += block_size) blocks[std::size_t(c / block_size)] = block;
    }

    // Panel p as before the last block: the values in place, every gradient 0.
    void start(Index p, ConstMatrixView<T> values_of_all) {
        const Index first = p * panel_size;
        const Index rows = (std::min)(panel_size, values_of_all.rows() - first);
        last_bad_blocks_[std::size_t(p)].fill(unlimited);
        std::fill_n(panels_[p], shape_.dv * panel_size, T(0));
        transpose(values_of_all, first, rows, T(1), values(p), panel_size);
        const Index rest = shape_.dv + (has_lookahead_ ? 3 : 1) * shape_.d;
        std::fill_n(d_values(p), rest * panel_size, T(0));
    }

  private:
    using LastBadBlocks = std::array<Index, panel_size / block_size>;  // of each block of keys

    HeadShape shape_;
    PanelStore<T> panels_;
    std::vector<LastBadBlocks> last_bad_blocks_;
    bool has_lookahead_;
};

// Of one block's rows: dO^T, [dv][block_size]; delta_i = dO_i . O_i; and the logarithms of the sums of exp(score).
template <Scalar T>
struct BlockCotangents {
    const T* d_out;
    const T* delta;
    LogSumExp<T> log_sum_exp;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
