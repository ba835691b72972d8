// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/base/span_share.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/score/score_terms.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/detail/state/block_factors.hpp>
#include <castle/detail/state/block_operands.hpp>
#include <castle/detail/state/fold_history.hpp>
#include <castle/detail/state/panel_store.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What a head remembers beyond what the tokens that are to come need.
struct Keeping {
    Index rollback = 0;        // so many of the last tokens can be rolled back, and often a few more
    bool every_query = false;  // Q^U of tokens that have left the window behind as well
    // A row sees at most so many tokens, its own the last of them, and what is behind those of all rows that are to
    // come is let go.
    Index sliding_window = unlimited;
    // The spans whose keys are here. Every rank has all tokens of the open block, and of those that can be undone.
    SpanShare share = {};

    bool slides() const { return sliding_window != unlimited; }
};

// How many later tokens a key absorbs at most: those within the window that see it.
inline Index absorbing_window(Index lookahead_window, Index sliding_window) {
    return (std::min)(lookahead_window, sliding_window - 1);
}

// What one key-value head remembers, for all query heads of its group. Without lookahead (a window of 0) it is the
// key-value cache of standard attention.
//
// Keys live in panels, transposed, [d][panel_size]; values as they are, [panel_size][dv_padded]. A panel stays
// where it is unless it is shared. U has every finished block folded in; of the open block there are the gates,
// K^U and V^U, and, while its group runs, the other operands.
//
// Where T has 16 bits, K^C, V^C, Q^U and gates are stored so, and everything else is in float. U is then in two places:
// as long as its keys may absorb tokens it is in float, in a ring; once the window has left them behind it is final,
// and stored as T beside K^C. Rows read the one or the other by where their block is, so that bits depend on positions
// alone.
template <Scalar T>
class HeadState {
    using C = Compute<T>;

  public:
    // Whether U is in two places.
    static constexpr bool has_narrow_keys = StorageScalar<T>;

    // The first query head of its group is `first_head` of all.
    HeadState(const AttentionKind& kind, Keeping keeping, std::shared_ptr<const TermTables<C>> terms, Index first_head)
        : kind_(kind),
          terms_(std::move(terms)),
          first_head_(first_head),
          dv_padded_(round_up(kind.shape.dv, Simd<C>::width)),
          history_blocks_(has_lookahead() || keeping.slides() ? ceil_div(keeping.rollback, block_size) : 0),
          keeping_(keeping),
          panels_(((has_stored_keys() ? 2 : 1) * d() + dv_padded_) * panel_size),
          changing_keys_(d() * panel_size),
          query_panels_(d() * panel_size),
          gate_tiles_(block_size * panel_size),
          word_panels_(word_slots() * block_size),
          history_(has_lookahead() ? d() : 0, history_blocks_,
                   keeping.share.most_panels(most_panels(window(), block_size))) {}

    HeadState(HeadState&&) = default;
    HeadState& operator=(HeadState&&) = default;
    ~HeadState() = default;

    const AttentionKind& kind() const { return kind_; }
    Index d() const { return kind_.shape.d; }
    Index dv() const { return kind_.shape.dv; }
    Index dv_padded() const { return dv_padded_; }
    Index group() const { return kind_.group(); }
    C scale() const { return static_cast<C>(kind_.scale); }
    Index window() const { return absorbing_window(kind_.lookahead_window, keeping_.sliding_window); }
    Index sliding_window() const { return keeping_.sliding_window; }
    const SpanShare& share() const { return keeping_.share; }
    bool has_lookahead() const { return kind_.has_lookahead(); }
    bool has_silu() const { return kind_.silu; }
    bool has_causal_scores() const { return kind_.causal_keys; }
    // Null where scores are plain.
    const TermTables<C>* terms() const { return terms_.get(); }
    // Of the same shape.
    void set_kind(const AttentionKind& kind, std::shared_ptr<const TermTables<C>> terms) {
        kind_ = kind;
        terms_ = std::move(terms);
    }
    Index first_head() const { return first_head_; }
    OperandSizes operand_sizes() const { return {.d = d(), .group = group(), .has_lookahead = has_lookahead()}; }

    Index size() const { return size_; }
    // Without limit once there is all memory that a sliding window takes.
    Index capacity() const { return capacity_of(panel_count()); }
    // The same after reserving so many tokens.
    Index capacity_for(Index tokens) const { return capacity_of(panels_for(tokens)); }
    void set_size(Index size) { size_ = size; }

    // Forgets the tokens after the first `size`. A panel that has none left begins anew, which zeroes its U: one in
    // own_keys_, which may be shared and is not owned before that, is let go. So own_keys_ only ever has panels with
    // tokens.
    void cut(Index size) {
        const Index first = place(ceil_div(size, panel_size)),
                    end = (std::min)(place(ceil_div(size_, panel_size)), first + panel_count());
        for (Index at = first; has_stored_keys() && at < end; ++at) own_key(at) = Panel<T>();
        size_ = size;
    }

    // A call that leaves `after` tokens makes room, the only part that throws, and starts; then comes its work, and it
    // finishes. Where making room throws, no token has changed.
    //
    // From the first call that has a mask on, what keys have absorbed of the blocks that are not final is written down.
    void make_room(Index after, bool has_mask) {
        reserve(after, has_mask);
        own(size_, after);
        if (!has_mask || is_masked_ || !has_lookahead()) return;
        word_panels_.own(place(oldest_panel(window(), (size_ / block_size - history_.undoable()) * block_size)),
                         place(ceil_div(after, panel_size)));
    }
    // Before the first call that has a mask: the words of what causal calls have left, which nobody has written down.
    void start_words() {
        if (is_masked_ || !has_lookahead()) return;
        is_masked_ = true;
        const Index open = size_ / block_size;
        for (Index block = open - history_.undoable(); block <= open; ++block) {
            const Index origin = block * block_size, end = (std::min)(origin + block_size, size_);
            for (Index p = oldest_panel(window(), origin); p * panel_size < end; ++p) {
                if (!share().has_panel(p)) continue;
                const BlockWords absorbed = absorbed_words(nullptr, window(), origin, origin, end, p, size_);
                std::copy_n(absorbed.begin(), block_size, words(block, p));
            }
        }
    }
    void start(Index after, bool has_mask) {
        if (has_mask) start_words();
        history_.start(after);
    }
    void finish(Index after) {
        history_.finish(size_ / block_size, after / block_size);
        size_ = after;
    }

    // How many tokens can be rolled back, and whether that is less than all of them.
    Index max_rollback() const {
        return has_limited_rollback() ? size_ % block_size + history_.undoable() * block_size : size_;
    }
    bool has_limited_rollback() const { return has_lookahead() || keeping_.slides(); }

    // How many spans of a share, or of this one, the rows of a group may see at most in a sequence of so many tokens.
    Index most_spans(Index tokens, const SpanShare& of) const {
        if (keeping_.slides()) {
            const Index most = ceil_div(keeping_.sliding_window + group_size, span_size) + 1;
            if (tokens >= most * span_size) return of.most_spans(most);
        }
        return of.spans_before(ceil_div(tokens, span_size));
    }
    Index most_spans(Index tokens) const { return most_spans(tokens, share()); }

    // Makes room for `tokens` tokens in all; after it, extending by single tokens up to there allocates nothing, but
    // for what has to be owned. Changes nothing that can be seen if an allocation throws. Before it there is no memory
    // at all, so sizes that come from an untrusted file are safe.
    void reserve(Index tokens, bool has_mask = false) {
        const Index panels = panels_for(tokens);
        const Index word_panels =
            has_lookahead() && (has_mask || is_masked_) ? (std::min)(panels, most_query_panels()) : 0;
        const bool has_open_block = open_block_.size() > 0 || tokens == 0;
        if (panels <= panel_count() && word_panels <= word_panels_.size() && has_open_block) return;
        const Index query_panels = has_lookahead() ? (std::min)(panels, most_query_panels()) : 0;
        const Index gate_tiles = has_lookahead() ? (std::min)(panels, most_gate_tiles()) : 0;
        auto fresh_panels = panels_.missing(panels);
        auto fresh_keys = changing_keys_.missing(has_narrow_keys ? query_panels : 0);
        auto fresh_queries = query_panels_.missing(query_panels);
        auto fresh_tiles = gate_tiles_.missing(gate_tiles);
        auto fresh_words = word_panels_.missing(word_panels);
        auto fresh_history = history_.missing(panels);
        if (has_stored_keys()) own_keys_.resize(std::size_t(panels));
        AlignedBuffer<C> block(has_open_block ? 0 : open_block_elements());
        // Nothing throws from here on.
        panels_.add(std::move(fresh_panels));
        changing_keys_.add(std::move(fresh_keys));
        query_panels_.add(std::move(fresh_queries));
        gate_tiles_.add(std::move(fresh_tiles));
        word_panels_.add(std::move(fresh_words));
        history_.add(std::move(fresh_history));
        if (block.size() > 0) open_block_ = std::move(block);
    }

    // The bytes that there would be after reserving so many tokens, if nothing is shared.
    Index bytes_for(Index tokens) const {
        const Index panels = panels_for(tokens);
        if (tokens == 0 && open_block_.size() == 0) return 0;
        const Index query_panels = (std::min)(panels, most_query_panels());
        Index stored = panels_.elements_for(panels), computed = open_block_elements();
        if (has_lookahead()) {
            stored += query_panels_.elements_for(query_panels) +
                      gate_tiles_.elements_for((std::min)(panels, most_gate_tiles()));
            computed += changing_keys_.elements_for(has_narrow_keys ? query_panels : 0) + history_.elements_for(panels);
        }
        const Index words = is_masked_ ? word_panels_.elements_for(query_panels) : 0;
        return bytes_of(stored, computed, words);
    }

    // As before the first token, with the memory kept. What is not zeroed is written before it is read.
    void clear() {
        cut(0);
        history_.forget();
        is_masked_ = false;
    }

    // The same tokens once more, in memory that is shared until one of the two writes there. What is reserved for more
    // of them stays behind.
    HeadState fork() const { return HeadState(*this); }

    // Before tokens are appended, from `before` to `after`: what that writes to is shared with nobody any more. Tokens
    // go to their panels, gates to every panel within the window, and so do U and the history where a block is
    // finished. Where it throws, no tokens have changed. For a state that has never been forked it is but a look.
    void own(Index before, Index after) {
        const Index first = place(before / panel_size), end = place(ceil_div(after, panel_size));
        panels_.own(first, end);
        if (!has_lookahead()) return;
        query_panels_.own(first, end);
        const Index oldest = place(oldest_panel(window(), before));
        gate_tiles_.own(oldest, end);
        if (is_masked_) word_panels_.own(oldest, end);
        const bool finishes = before / block_size != after / block_size;
        if (finishes) history_.own(oldest, end);
        if constexpr (has_narrow_keys) {
            if (finishes || before % panel_size == 0) changing_keys_.own(finishes ? oldest : first, end);
            if (has_stored_keys()) own_keys(oldest, place(oldest_panel(window(), after)));
        } else {
            // A panel that begins takes the place of one that has been let go, U of which may be shared.
            if (finishes || end > panel_count()) own_keys(oldest, end);
        }
    }
    // The same before tokens are rolled back down to `after`.
    void own_for_rollback(Index after) {
        if (!has_lookahead() || after / block_size == size_ / block_size) return;
        const Index oldest = place(oldest_panel(window(), after)), end = place(ceil_div(size_, panel_size));
        gate_tiles_.own(oldest, end);
        if constexpr (has_narrow_keys) {
            changing_keys_.own(oldest, end);
        } else {
            own_keys(oldest, end);
        }
    }

    // Of all memory, and of that which forks hold too; their coming and going on other threads changes only the latter.
    Index bytes() const {
        Index stored = panels_.elements() + query_panels_.elements() + gate_tiles_.elements();
        for (const Panel<T>& keys : own_keys_) stored += keys ? key_elements() : 0;
        return bytes_of(stored, changing_keys_.elements() + open_block_.size() + history_.elements(),
                        word_panels_.elements());
    }
    Index shared_bytes() const {
        Index stored = panels_.shared_elements() + query_panels_.shared_elements() + gate_tiles_.shared_elements();
        for (const Panel<T>& keys : own_keys_) stored += keys.is_shared() ? key_elements() : 0;
        return bytes_of(stored, changing_keys_.shared_elements() + history_.shared_elements(),
                        word_panels_.shared_elements());
    }

    // Panel p, which is one of the share, [d][panel_size] each; the values [panel_size][dv_padded]. Q^U is a ring
    // buffer: panels that the window has left behind, also that of what may be rolled back, make room.
    T* lookahead_queries(Index p) { return query_panels_[place(p)]; }
    C* lookahead_keys(Index p) {
        if constexpr (has_narrow_keys) {
            return changing_keys_[place(p)];
        } else {
            return stored_keys(p);
        }
    }
    T* causal_keys(Index p) { return panels_[place(p)] + (has_stored_keys() ? key_elements() : 0); }
    T* values(Index p) { return causal_keys(p) + key_elements(); }
    const C* lookahead_keys(Index p) const { return const_cast<HeadState*>(this)->lookahead_keys(p); }

    // Where U stands beside K^C: always, or where it is final.
    T* stored_keys(Index p) { return stored_keys_at(place(p)); }
    const T* stored_keys(Index p) const { return const_cast<HeadState*>(this)->stored_keys(p); }
    // Whether rows of the block at `origin` read what is stored of a panel whose keys absorb none of them any more.
    bool has_final_keys(Index p, Index origin) const { return has_narrow_keys && p < oldest_panel(window(), origin); }
    // Calls f with U of panel p as those rows read it.
    template <class F>
    void with_lookahead_keys(Index p, Index origin, const F& f) const {
        if constexpr (has_narrow_keys) {
            if (has_final_keys(p, origin)) {
                f(stored_keys(p));
                return;
            }
        }
        f(lookahead_keys(p));
    }
    // Once the block at `origin`, all of which is there, has been folded into panel p: stores U if that was the last.
    void finish_block_of_panel(Index p, Index origin) {
        if constexpr (has_narrow_keys) {
            if (has_final_keys(p, origin + block_size) && !has_final_keys(p, origin)) {
                copy_numbers(lookahead_keys(p), key_elements(), stored_keys(p));
            }
        }
    }

    // The gates of the open block's rows against panel p, [block_size][panel_size]. Tiles are a ring buffer: a window
    // keeps gates from reaching back further than the tiles do.
    T* gates(Index p) { return gate_tiles_[place(p)]; }
    const T* gates(Index p) const { return const_cast<HeadState*>(this)->gates(p); }

    // Whether a call had a mask, and so words say which keys of a panel absorb which tokens of a block: of the open one
    // and of those that can be undone. Panels that the window has left behind absorb none.
    bool is_masked() const { return is_masked_; }
    std::uint64_t* words(Index block, Index p) { return word_panels_[place(p)] + block % word_slots() * block_size; }
    BlockWords words_of(Index block, Index p) const {
        BlockWords words{};
        if (p >= oldest_panel(window(), block * block_size)) {
            std::copy_n(const_cast<HeadState*>(this)->words(block, p), block_size, words.begin());
        }
        return words;
    }

    BlockOperands<C> open_block() { return {open_block_.data(), operand_sizes()}; }
    BlockOperands<C> open_block() const { return const_cast<HeadState*>(this)->open_block(); }
    BlockFactors<T> open_factors() {
        return {open_block(), operand_sizes(), open_block_.data() + operand_sizes().elements()};
    }

    FoldHistory<C>& history() { return history_; }
    const FoldHistory<C>& history() const { return history_; }

    // U of panel p before the block, [d][panel_size], as the history has it.
    C* kept_keys(Index block, Index p) { return history_.panel(block, place(p)); }
    void keep_keys(Index block, Index p) { history_.keep_panel(block, place(p), lookahead_keys(p)); }
    // U as it was before the block, which is the last one that was folded.
    void undo_fold(Index block) {
        const Index origin = block * block_size;
        const AbsorbedTokens tokens(window(), origin, origin + block_size);
        for (Index p = oldest_panel(window(), origin); p * panel_size < origin + block_size; ++p) {
            if (!share().has_panel(p) || tokens.by_keys(p * panel_size, panel_size) == Absorbed::none) continue;
            if (is_masked_ && cover_of(words_of(block, p), 0, block_size) == Cover::none) continue;
            history_.restore_panel(block, place(p), lookahead_keys(p));
        }
        history_.undone();
    }

  private:
    // A fork.
    HeadState(const HeadState& from)
        : kind_(from.kind_),
          terms_(from.terms_),
          first_head_(from.first_head_),
          dv_padded_(from.dv_padded_),
          history_blocks_(from.history_blocks_),
          keeping_(from.keeping_),
          is_masked_(from.is_masked_),
          size_(from.size_),
          panels_(from.panels_.share(place(ceil_div(size_, panel_size)))),
          changing_keys_(from.changing_keys_.share(panels_.size())),
          query_panels_(from.query_panels_.share(panels_.size())),
          gate_tiles_(from.gate_tiles_.share(panels_.size())),
          word_panels_(from.word_panels_.share(panels_.size())),
          open_block_(from.open_block_.copy()),
          history_(from.history_.fork(panels_.size())) {
        own_keys_.reserve(std::size_t(panels_.size()));
        for (Index p = 0; has_stored_keys() && p < panels_.size(); ++p) {
            own_keys_.push_back(from.own_keys_[std::size_t(p)].share());
        }
    }

    // Without a window, or with one that no sequence reaches, U is never final.
    bool has_stored_keys() const { return has_lookahead() && !(has_narrow_keys && window() >= most_tokens); }
    Index key_elements() const { return d() * panel_size; }
    Index open_block_elements() const {
        return operand_sizes().elements() + BlockFactors<T>::elements(operand_sizes());
    }
    static Index bytes_of(Index stored, Index computed, Index words) {
        return stored * Index(sizeof(T)) + computed * Index(sizeof(C)) + words * Index(sizeof(std::uint64_t));
    }
    Index panel_count() const { return panels_.size(); }
    Index capacity_of(Index panels) const {
        return panels < most_key_panels() ? share().panel_at(panels) * panel_size : unlimited;
    }
    // Where panel p of the sequence is among those of the share: stores know only these.
    Index place(Index p) const { return share().panels_before(p); }
    // Those that there are after reserving so many tokens.
    Index panels_for(Index tokens) const {
        return (std::max)((std::min)(place(ceil_div(tokens, panel_size)), most_key_panels()), panel_count());
    }
    Panel<T>& own_key(Index at) { return own_keys_[std::size_t(panels_.slot(at))]; }
    T* stored_keys_at(Index at) {
        const Panel<T>& own = own_key(at);
        return own ? own.data() : panels_[at];
    }

    // Where U of the panels at the places [first, end) is stored is to be written to.
    void own_keys(Index first, Index end) {
        end = (std::min)(end, first + panel_count());
        const auto is_shared = [&](Index at) {
            const Panel<T>& own = own_key(at);
            return own ? own.is_shared() : panels_.is_shared(at);
        };
        Index shared = 0;
        for (Index at = first; at < end; ++at) shared += is_shared(at) ? 1 : 0;
        auto fresh = PanelStore<T>::make_lone_panels(shared, key_elements());
        for (Index at = end; at-- > first && !fresh.empty();) {
            if (!is_shared(at)) continue;
            std::copy_n(stored_keys_at(at), key_elements(), fresh.back().data());
            own_key(at) = std::move(fresh.back());
            fresh.pop_back();
        }
    }

    // Panels that are asked for together, so that no two of them share a place: keys from a window before the first of
    // `tokens` tokens to the last, which need not begin with a panel.
    static Index most_panels(Index window, Index tokens) {
        constexpr Index every_panel = (std::numeric_limits<Index>::max)();
        if (window >= every_panel - tokens - panel_size) return every_panel;
        return ceil_div(window + tokens, panel_size) + 1;
    }
    // Tokens of a group, or what is rolled back together with the open block.
    Index tokens_together() const { return (std::max)(group_size, (history_blocks_ + 1) * block_size); }
    // Those of all blocks of one group, of the share.
    Index most_gate_tiles() const { return share().most_panels(most_panels(window(), group_size)); }
    // Those of a group, or of what is left once all has been rolled back that can be.
    Index most_query_panels() const {
        return keeping_.every_query ? unlimited : share().most_panels(most_panels(window(), tokens_together()));
    }
    Index most_key_panels() const {
        return share().most_panels(most_panels(keeping_.sliding_window, tokens_together()));
    }

    // Blocks whose words are kept at the same time: those of a group under way, and those that can be undone.
    Index word_slots() const { return history_blocks_ + group_blocks; }

    AttentionKind kind_;
    std::shared_ptr<const TermTables<C>> terms_;
    Index first_head_;
    Index dv_padded_;
    Index history_blocks_;
    Keeping keeping_;
    bool is_masked_ = false;
    Index size_ = 0;
    PanelStore<T> panels_;  // U if it is stored, K^C, V^C, in the order in which a step of decoding reads them
    std::vector<Panel<T>> own_keys_;  // where there is one, U in place of that in panels_, whose K^C and V^C are shared
    PanelStore<C> changing_keys_;     // U that is not final, where that is not stored as T
    PanelStore<T> query_panels_;      // Q^U
    PanelStore<T> gate_tiles_;
    PanelStore<std::uint64_t> word_panels_;
    AlignedBuffer<C> open_block_;
    FoldHistory<C> history_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
