// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/score/span_states.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/group.hpp>
#include <castle/detail/state/head_state.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What a sequence's key-value heads remember, and the scratch for appending one token, which allocates nothing then.
// Behind caches and workspaces of every kind.
template <Scalar T>
class SequenceState {
    using C = Compute<T>;

  public:
    using Terms = std::shared_ptr<const TermTables<C>>;

    SequenceState(const AttentionKind& kind, Keeping keeping) : SequenceState(kind, keeping, terms_of(kind)) {}
    SequenceState(const AttentionKind& kind, Keeping keeping, const Terms& terms)
        : window_mask_(keeping.slides() ? masks::sliding_window(keeping.sliding_window) : Mask()) {
        heads_.reserve(std::size_t(kind.shape.kv_heads));
        for (Index h = 0; h < kind.shape.kv_heads; ++h) heads_.emplace_back(kind, keeping, terms, h * kind.group());
    }
    // The tables of the kind's score terms.
    static Terms terms_of(const AttentionKind& kind) {
        return kind.terms != nullptr ? std::make_shared<const TermTables<C>>(*kind.terms) : nullptr;
    }
    SequenceState(SequenceState&&) = default;
    SequenceState& operator=(SequenceState&&) = default;
    ~SequenceState() = default;

    const AttentionKind& kind() const { return heads_.front().kind(); }
    // Of the same shape.
    void set_kind(const AttentionKind& kind, const Terms& terms) {
        for (auto& head : heads_) head.set_kind(kind, terms);
    }
    Index heads() const { return Index(heads_.size()); }
    HeadState<T>& head(Index h) { return heads_[std::size_t(h)]; }
    const HeadState<T>& head(Index h) const { return heads_[std::size_t(h)]; }

    Index size() const { return heads_.front().size(); }
    // Heads get room one after the other; where one had none, the last has the least.
    Index capacity() const { return heads_.back().capacity(); }
    Index max_rollback() const { return heads_.front().max_rollback(); }
    bool is_moved_from() const { return heads_.empty(); }

    // Whether rows see no further back than a window, and its mask, which that of a call is cut to.
    bool slides() const { return window_mask_.rule() != nullptr; }
    const Mask& window_mask() const { return window_mask_; }

    void set_size(Index size) {
        for (auto& head : heads_) head.set_size(size);
    }

    // See HeadState. A call that leaves `after` tokens makes room, the only part that throws, and starts; then comes
    // its work, and it finishes.
    void make_room(Index after, bool has_mask = false) {
        const Index elements = step_elements(heads_.front().capacity_for(after));
        AlignedBuffer<C> step(elements > step_.size() ? elements : 0);
        for (auto& head : heads_) head.make_room(after, has_mask);
        if (step.size() > 0) step_ = std::move(step);
    }
    // Room for so many tokens in all.
    void reserve(Index tokens) {
        check_tokens("reserve", "tokens", tokens);
        make_room((std::max)(tokens, size()));
    }
    void start(Index after, bool has_mask = false) {
        for (auto& head : heads_) head.start(after, has_mask);
    }
    void finish(Index after) {
        for (auto& head : heads_) head.finish(after);
    }
    void clear() {
        for (auto& head : heads_) head.clear();
    }
    void own_for_rollback(Index after) {
        for (auto& head : heads_) head.own_for_rollback(after);
    }

    SequenceState fork() const { return SequenceState(*this); }

    Index bytes() const {
        Index bytes = step_.size() * Index(sizeof(C));
        for (const auto& head : heads_) bytes += head.bytes();
        return bytes;
    }
    Index shared_bytes() const {
        Index bytes = 0;
        for (const auto& head : heads_) bytes += head.shared_bytes();
        return bytes;
    }
    // After reserving so many tokens, if nothing is shared.
    Index bytes_for(Index tokens) const {
        check_tokens("bytes_for", "tokens", tokens);
        Index bytes = (std::max)(step_elements(heads_.front().capacity_for(tokens)), step_.size()) * Index(sizeof(C));
        for (const auto& head : heads_) bytes += head.bytes_for(tokens);
        return bytes;
    }

    // Of head h, for one token: the states of its query heads over every span.
    C* step_scratch(Index h) { return step_.data() + h * (step_.size() / heads()); }

    // Of a call that works on several sequences, while it runs.
    struct Work {
        Index call_row = 0;     // where the call's rows for this sequence begin
        Index first_piece = 0;  // of the step that is under way
        // Where tokens are appended:
        Index before = 0;                // tokens
        Index after = 0;                 // tokens
        Index keys = 0;                  // that are there: `after`, unless they are those of another sequence
        const MaskRule* rule = nullptr;  // the mask of the call
        bool looks_ahead = false;        // whether rows may see keys after their group
        const Mask* mass_over = nullptr;
        Group group = {};      // that is under way; none has no rows
        C* scratch = nullptr;  // of all heads; none for one token, which has its own
        // In a backward pass, of the record's memory:
        Index first_element = 0;
        Index first_panel = 0;
    };
    Work& work() { return work_; }
    const Work& work() const { return work_; }

  private:
    // A fork.
    SequenceState(const SequenceState& from)
        : window_mask_(from.window_mask_), step_(from.step_elements(from.capacity())) {
        heads_.reserve(from.heads_.size());
        for (const auto& head : from.heads_) heads_.push_back(head.fork());
    }

    Index step_elements(Index capacity) const {
        const HeadState<T>& any = heads_.front();
        const Index row = SpanStates<C>::elements(any.group(), any.dv_padded());
        return heads() * row * any.most_spans(capacity);
    }

    SelfMovable<std::vector<HeadState<T>>> heads_{std::vector<HeadState<T>>()};
    Mask window_mask_;  // causal where it does not slide
    AlignedBuffer<C> step_;
    Work work_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
