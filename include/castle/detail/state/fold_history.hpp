// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <utility>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/panel_store.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What it takes to undo the folding of a head's last blocks exactly, which no subtraction would: U as it was before
// each of them, and the blocks' own lookahead keys and values. Ring buffers, over blocks and over panels.
template <ComputeScalar T>
class FoldHistory {
  public:
    // For as many blocks of heads of size d; a block is folded into at most `most_panels` panels. Where nothing is
    // folded d is 0, and blocks are only counted.
    FoldHistory(Index d, Index blocks, Index most_panels)
        : d_(d), blocks_(blocks), most_panels_(most_panels), panels_(blocks * d * panel_size) {}

    // How many of the last blocks can be undone.
    Index undoable() const { return undoable_; }

    struct Room {
        typename PanelStore<T>::Panels panels;
        AlignedBuffer<T> operands;
    };
    // For states of so many panels; see PanelStore.
    Room missing(Index panels) {
        return {.panels = panels_.missing(keeps_any() ? (std::min)(panels, most_panels_) : 0),
                .operands = AlignedBuffer<T>(operands_.size() > 0 ? 0 : blocks_ * operand_elements())};
    }
    void add(Room room) {
        panels_.add(std::move(room.panels));
        if (room.operands.size() > 0) operands_ = std::move(room.operands);
    }
    void own(Index first, Index end) { panels_.own(first, end); }

    // For a fork of so many panels, which are shared.
    FoldHistory fork(Index panels) const {
        FoldHistory other(d_, blocks_, most_panels_);
        other.first_kept_ = first_kept_;
        other.undoable_ = undoable_;
        other.panels_ = panels_.share(panels);
        other.operands_ = operands_.copy();
        return other;
    }

    // Before a call that leaves `size` tokens: which blocks are worth keeping.
    void start(Index size) { first_kept_ = size / block_size - blocks_; }
    bool keeps(Index block) const { return blocks_ > 0 && block >= first_kept_; }
    // After it: from how many finished blocks to how many.
    void finish(Index before, Index after) { undoable_ = (std::min)(blocks_, undoable_ + after - before); }
    void forget() { undoable_ = 0; }
    // Of a cache that was saved, as far as there is room for them.
    void set_undoable(Index blocks) { undoable_ = (std::min)(blocks, blocks_); }

    void keep_operands(Index block, const BlockOperands<T>& from) {
        std::copy_n(from.lookahead_keys(), operand_elements(), operands(block));
    }
    void keep_panel(Index block, Index p, const T* lookahead_keys) {
        std::copy_n(lookahead_keys, d_ * panel_size, panel(block, p));
    }
    // U of panel p as it was before the block, which is the last one that was folded.
    void restore_panel(Index block, Index p, T* lookahead_keys) {
        std::copy_n(panel(block, p), d_ * panel_size, lookahead_keys);
    }
    void restore_operands(Index block, const BlockOperands<T>& to) {
        std::copy_n(operands(block), operand_elements(), to.lookahead_keys());
    }
    void undone() { --undoable_; }

    // Lookahead keys and values of a block, [2 d][block_size]; U of panel p before it, [d][panel_size].
    T* operands(Index block) { return operands_.data() + block % blocks_ * operand_elements(); }
    T* panel(Index block, Index p) { return panels_[p] + block % blocks_ * d_ * panel_size; }

    Index elements() const { return panels_.elements() + operands_.size(); }
    Index elements_for(Index panels) const {
        return keeps_any() ? panels_.elements_for((std::min)(panels, most_panels_)) + blocks_ * operand_elements() : 0;
    }
    Index shared_elements() const { return panels_.shared_elements(); }

  private:
    bool keeps_any() const { return blocks_ > 0 && d_ > 0; }

    // Lookahead keys and values lie side by side.
    Index operand_elements() const { return 2 * d_ * block_size; }

    Index d_;
    Index blocks_;
    Index most_panels_;
    Index first_kept_ = 0;
    Index undoable_ = 0;
    PanelStore<T> panels_;
    AlignedBuffer<T> operands_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
