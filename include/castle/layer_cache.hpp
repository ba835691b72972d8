// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <ostream>
#include <utility>

#include <castle/cache.hpp>
#include <castle/detail/cache/lookahead_keys.hpp>
#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

template <Scalar T>
class Layer;

/// The cache of a layer's heads; made by the layer's `make_cache`. Moves but does not copy; one that was moved from may
/// only be assigned to or destroyed. A move to itself changes nothing.
template <Scalar T>
class LayerCache {
  public:
    using value_type = T;

    LayerCache(LayerCache&&) = default;
    LayerCache& operator=(LayerCache&& other) noexcept {
        if (this == &other) return *this;
        kind_ = std::move(other.kind_);
        state_ = std::move(other.state_);
        row_elements_ = other.row_elements_;
        row_ = std::move(other.row_);
        return *this;
    }
    ~LayerCache() = default;

    /// Tokens in the cache.
    Index size() const { return state_.size(); }
    /// Tokens that there is memory for; `unlimited` once there is all that a sliding window takes.
    Index capacity() const { return state_.capacity(); }
    /// Of the heads.
    const Shape& shape() const { return state_.kind().shape; }
    /// How many tokens a row sees at most; `unlimited` without a window.
    Index sliding_window() const { return state_.head(0).sliding_window(); }

    /// Makes room for `tokens` tokens in all, see UqKvCache. Throws std::invalid_argument if `tokens` is negative or
    /// above 2^40, and std::bad_alloc if memory runs out; the tokens are as they were then.
    void reserve(Index tokens) { state_.reserve(tokens); }

    /// Forgets every token, see UqKvCache.
    void clear() { state_.clear(); }

    /// Removes the last `tokens` tokens, see UqKvCache: bits, costs and errors are the same.
    void rollback(Index tokens) { detail::rollback(state_, tokens); }
    Index max_rollback() const { return state_.max_rollback(); }

    /// A second cache with the same tokens, see UqKvCache.
    LayerCache fork() const { return {kind_, state_.fork(), row_elements_}; }

    CacheBytes bytes() const {
        const Index shared = state_.shared_bytes();
        return {.owned = row_.size() * Index(sizeof(Compute<T>)) + state_.bytes() - shared, .shared = shared};
    }
    /// What `bytes().total()` is going to be after `reserve(tokens)`, if nothing is shared with a fork. Throws
    /// std::invalid_argument as `reserve`.
    Index bytes_for(Index tokens) const { return row_.size() * Index(sizeof(Compute<T>)) + state_.bytes_for(tokens); }

    /// Writes the cache, for `load_cache` of a layer of the same kind; see UqKvCache.
    void save(std::ostream& out) const { detail::save_cache(out, state_, kind_.to_words()); }

    /// `U` of one key-value head, every token so far folded in, `[size, d_head]`, made of the values after any
    /// rotation; zeros in a cache of standard attention, and for keys that no row to come sees. Throws
    /// std::invalid_argument if there is no such head.
    Matrix<Compute<T>> lookahead_keys(Index kv_head) const {
        return detail::lookahead_keys("LayerCache::lookahead_keys", state_, kv_head);
    }

  private:
    friend Layer<T>;
    friend detail::BatchMark;

    LayerCache(const detail::LayerKind& kind, detail::SequenceState<T> state, Index row_elements)
        : kind_(kind), state_(std::move(state)), row_elements_(row_elements), row_(row_elements) {}

    detail::LayerKind kind_;
    detail::SequenceState<T> state_;
    Index row_elements_;                     // of scratch for a single token
    detail::AlignedBuffer<Compute<T>> row_;  // so much scratch, or more once the cache has led a batch
    Index batch_mark_ = 0;                   // means something only within check_batch
};

}  // namespace CASTLE_ABI
}  // namespace castle
