// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/block_operands.hpp>
#include <castle/detail/layout.hpp>
#include <castle/detail/simd.hpp>
#include <castle/detail/softmax_rows.hpp>
#include <castle/input.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What one head remembers. Without lookahead (a window of 0) it is the key-value cache of standard attention.
//
// Keys live in panels, transposed, [d][panel_size]; values as they are, [panel_size][dv_padded]. A panel never moves
// once it is there. U has every finished block folded in; of the open block it keeps the operands and the gates.
template <Scalar T>
class HeadState {
  public:
    HeadState(HeadShape shape, T scale, Index window)
        : shape_(shape),
          dv_padded_(round_up(shape.dv, Simd<T>::width)),
          scale_(scale),
          window_(window),
          open_block_(BlockOperands<T>::numbers(shape.d)) {}

    HeadShape shape() const { return shape_; }
    Index dv_padded() const { return dv_padded_; }
    T scale() const { return scale_; }
    Index window() const { return window_; }
    bool has_lookahead() const { return window_ > 0; }

    Index size() const { return size_; }
    Index capacity() const { return Index(panels_.size()) * panel_size; }
    void set_size(Index size) { size_ = size; }

    // Makes room for `tokens` tokens in all; after it, extending by single tokens up to there allocates nothing.
    // Changes nothing if an allocation throws.
    void reserve(Index tokens) {
        const Index panels = ceil_div(tokens, panel_size);
        const Index old_panels = Index(panels_.size());
        if (panels <= old_panels) return;
        std::vector<AlignedBuffer<T>> fresh, fresh_queries;
        fresh.reserve(std::size_t(panels - old_panels));
        for (Index p = old_panels; p < panels; ++p) fresh.emplace_back(panel_numbers());
        if (has_lookahead()) {
            fresh_queries.reserve(std::size_t(panels - old_panels));
            for (Index p = old_panels; p < panels; ++p) fresh_queries.emplace_back(shape_.d * panel_size);
        }

        const Index old_tiles = Index(gate_tiles_.size());
        const Index tiles = has_lookahead() ? std::min(panels, most_gate_tiles()) : 0;
        std::vector<AlignedBuffer<T>> fresh_tiles;
        if (tiles > old_tiles) fresh_tiles.reserve(std::size_t(tiles - old_tiles));
        for (Index i = old_tiles; i < tiles; ++i) fresh_tiles.emplace_back(block_size * panel_size);

        AlignedBuffer<T> row(row_scratch_numbers(panels));
        grow(panels_, panels);
        if (has_lookahead()) grow(query_panels_, panels);
        grow(gate_tiles_, tiles);
        // Nothing throws from here on.
        for (auto& panel : fresh) panels_.push_back(std::move(panel));
        for (auto& panel : fresh_queries) query_panels_.push_back(std::move(panel));
        for (auto& tile : fresh_tiles) gate_tiles_.push_back(std::move(tile));
        row_scratch_ = std::move(row);
    }

    // As before the first token, with the memory kept. Only U has to begin at zero again; the rest is written before it
    // is read.
    void clear() {
        size_ = 0;
        if (!has_lookahead()) return;
        for (Index p = 0; p < Index(panels_.size()); ++p) {
            std::fill_n(lookahead_keys(p), shape_.d * panel_size, T(0));
        }
    }

    Index bytes() const {
        Index numbers = open_block_.size() + row_scratch_.size();
        for (const auto& panel : panels_) numbers += panel.size();
        for (const auto& panel : query_panels_) numbers += panel.size();
        for (const auto& tile : gate_tiles_) numbers += tile.size();
        return numbers * Index(sizeof(T));
    }

    // Panel p, [d][panel_size] each; the values [panel_size][dv_padded].
    T* lookahead_queries(Index p) { return query_panels_[std::size_t(p)].data(); }
    T* lookahead_keys(Index p) { return panels_[std::size_t(p)].data(); }
    T* causal_keys(Index p) { return lookahead_keys(p) + (has_lookahead() ? shape_.d * panel_size : 0); }
    T* values(Index p) { return causal_keys(p) + shape_.d * panel_size; }
    const T* lookahead_keys(Index p) const { return const_cast<HeadState*>(this)->lookahead_keys(p); }

    // The gates of the open block's rows against panel p, [block_size][panel_size]. Tiles go round: a window keeps
    // gates from reaching back further than the tiles do.
    T* gates(Index p) { return gate_tiles_[std::size_t(p % Index(gate_tiles_.size()))].data(); }
    const T* gates(Index p) const { return const_cast<HeadState*>(this)->gates(p); }

    BlockOperands<T> open_block() { return {open_block_.data(), shape_.d}; }
    BlockOperands<T> open_block() const { return const_cast<HeadState*>(this)->open_block(); }

    // Scratch for extending by one row.
    T* row_scratch() { return row_scratch_.data(); }

  private:
    Index panel_numbers() const {
        const Index causal = (shape_.d + dv_padded_) * panel_size;
        return has_lookahead() ? causal + shape_.d * panel_size : causal;
    }

    // Panels that the gates of all blocks of one group can touch together, so that no two of them share a tile.
    Index most_gate_tiles() const {
        constexpr Index every_panel = std::numeric_limits<Index>::max();
        if (window_ >= every_panel - 2 * group_size) return every_panel;
        return ceil_div(window_ + group_size + block_size, panel_size) + 1;
    }

    Index row_scratch_numbers(Index panels) const {
        return SoftmaxRows<T>::numbers(1, dv_padded_) * ceil_div(panels, span_panels);
    }

    static void grow(std::vector<AlignedBuffer<T>>& buffers, Index size) {
        const auto wanted = std::size_t(size);
        if (wanted > buffers.capacity()) buffers.reserve(std::max(wanted, 2 * buffers.capacity()));
    }

    HeadShape shape_;
    Index dv_padded_;
    T scale_;
    Index window_;
    Index size_ = 0;
    std::vector<AlignedBuffer<T>> panels_;        // U, K^C, V^C, in the order in which a step of decoding reads them
    std::vector<AlignedBuffer<T>> query_panels_;  // Q^U, which only panels within the window are asked for
    std::vector<AlignedBuffer<T>> gate_tiles_;
    AlignedBuffer<T> open_block_;
    AlignedBuffer<T> row_scratch_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
