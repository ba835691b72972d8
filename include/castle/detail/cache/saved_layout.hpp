// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/cache/saved_identity.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/state/head_state.hpp>

// Which arrays of a head a saved cache has. Size, writer and reader of a file all follow from this.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

enum class SavedPart {
    stored_keys,
    lookahead_keys,
    causal_keys,
    values,
    open_block,
    open_words,
    lookahead_queries,
    fold_operands,
    fold_words,
    fold_keys
};

// `count` arrays, one after the other, from panel `first` on. Each is [rows, cols] of elements of so many bytes, those
// of a column (of a row, for values) belonging to one token; what belongs to no token before `end` counts as 0.
struct SavedArrays {
    SavedPart part;
    Index first;
    Index count;
    Index rows;
    Index cols;
    Index element;  // bytes
    Index end;
    Index block = 0;  // of the history, for its parts

    Index row_bytes() const { return cols * element; }
    // Whether it belongs to a block, which every rank has, and not to a panel.
    bool is_of_block() const { return part == SavedPart::open_block || part == SavedPart::fold_operands; }
};

// Calls f(arrays) for all arrays of a head of which the last `undoable` finished blocks can be undone. What undoes
// blocks comes last, the last block first: whoever can undo fewer has no use for the end.
template <Scalar T, class F>
void for_saved_arrays(const SavedIdentity& saved, Index undoable, const F& f) {
    const AttentionKind& kind = saved.kind;
    const Index size = saved.size;
    if (size == 0) return;
    const Index d = kind.shape.d, dv = kind.shape.dv;
    const Index window = absorbing_window(kind.lookahead_window, saved.sliding_window);
    const Index panels = ceil_div(size, panel_size);
    constexpr Index stored = Index(sizeof(T)), computed = Index(sizeof(Compute<T>));
    constexpr bool has_narrow_keys = HeadState<T>::has_narrow_keys;
    const auto panels_of = [&](SavedPart part, Index element, Index first, Index end, Index tokens, Index block = 0) {
        f(SavedArrays{.part = part,
                      .first = first,
                      .count = (std::max)(end - first, Index(0)),
                      .rows = d,
                      .cols = panel_size,
                      .element = element,
                      .end = tokens,
                      .block = block});
    };
    const auto operands = [&](SavedPart part, Index block, Index tokens) {
        f(SavedArrays{.part = part,
                      .first = block * block_size / panel_size,
                      .count = 1,
                      .rows = 2 * d,
                      .cols = block_size,
                      .element = computed,
                      .end = tokens,
                      .block = block});
    };
    // Of a block, for each panel that may absorb its tokens.
    const auto words = [&](SavedPart part, Index block, Index tokens) {
        if (!saved.is_masked || tokens == block * block_size) return;
        const Index oldest = oldest_panel(window, block * block_size);
        f(SavedArrays{.part = part,
                      .first = oldest,
                      .count = ceil_div(tokens, panel_size) - oldest,
                      .rows = block_size,
                      .cols = 1,
                      .element = Index(sizeof(std::uint64_t)),
                      .end = tokens,
                      .block = block});
    };
    const auto keys_of = [&](Index first, Index end) {
        if (kind.has_lookahead()) {
            const Index final_end = has_narrow_keys ? (std::min)(end, oldest_panel(window, size)) : end;
            panels_of(SavedPart::stored_keys, stored, first, final_end, size);
        }
        panels_of(SavedPart::causal_keys, stored, first, end, size);
        f(SavedArrays{.part = SavedPart::values,
                      .first = first,
                      .count = (std::max)(end - first, Index(0)),
                      .rows = panel_size,
                      .cols = dv,
                      .element = stored,
                      .end = size});
    };
    // What is there as far as keys absorb tokens.
    const auto changing = [&](Index first, Index end) {
        panels_of(SavedPart::lookahead_queries, stored, first, end, size);
        if (has_narrow_keys) panels_of(SavedPart::lookahead_keys, computed, first, end, size);
    };
    const auto first_seen = [&](Index token) { return oldest_panel(saved.sliding_window - 1, token); };
    keys_of(first_seen(size), panels);
    const Index open = size / block_size;
    if (kind.has_lookahead()) {
        operands(SavedPart::open_block, open, size);
        words(SavedPart::open_words, open, size);
        changing(oldest_panel(window, size), panels);
    }
    // Block by block further back, with the keys and queries that it asks for once it is undone.
    for (Index b = open - 1; b >= open - undoable; --b) {
        const Index origin = b * block_size, end = origin + block_size, oldest = oldest_panel(window, origin);
        keys_of(first_seen(origin), (std::min)(first_seen(end), panels));
        if (!kind.has_lookahead()) continue;
        changing(oldest, (std::min)(oldest_panel(window, end), panels));
        operands(SavedPart::fold_operands, b, end);
        words(SavedPart::fold_words, b, end);
        panels_of(SavedPart::fold_keys, computed, oldest, ceil_div(end, panel_size), end, b);
    }
}

// Where array i of them is in a head's state, and how many bytes its rows lie apart.
struct SavedArray {
    unsigned char* data;
    Index stride;
    Index used_rows;
    Index used_cols;

    template <Scalar T>
    static SavedArray of(HeadState<T>& state, const SavedArrays& arrays, Index i) {
        const Index p = arrays.first + i;
        const Index used = (std::min)(panel_size, arrays.end - p * panel_size);
        const Index of_block = (std::min)(block_size, arrays.end - arrays.block * block_size);
        const auto array = [&](auto* from, Index elements, Index rows, Index cols) {
            return SavedArray{reinterpret_cast<unsigned char*>(from), elements * Index(sizeof(*from)), rows, cols};
        };
        const auto keys = [&](auto* from) { return array(from, panel_size, arrays.rows, used); };
        const auto operands = [&](auto* from) { return array(from, block_size, arrays.rows, of_block); };
        switch (arrays.part) {
            case SavedPart::stored_keys:
                return keys(state.stored_keys(p));
            case SavedPart::lookahead_keys:
                return keys(state.lookahead_keys(p));
            case SavedPart::causal_keys:
                return keys(state.causal_keys(p));
            case SavedPart::values:
                return array(state.values(p), state.dv_padded(), used, arrays.cols);
            case SavedPart::open_block:
                return operands(state.open_block().lookahead_keys());
            case SavedPart::open_words:
            case SavedPart::fold_words:
                return array(state.words(arrays.block, p), 1, of_block, arrays.cols);
            case SavedPart::lookahead_queries:
                return keys(state.lookahead_queries(p));
            case SavedPart::fold_operands:
                return operands(state.history().operands(arrays.block));
            case SavedPart::fold_keys: {
                // What was not folded was not kept: there is still what an older block left.
                const bool was_folded =
                    !state.is_masked() || cover_of(state.words_of(arrays.block, p), 0, block_size) != Cover::none;
                return array(state.kept_keys(arrays.block, p), panel_size, was_folded ? arrays.rows : 0, used);
            }
        }
        return {};
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
