// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include <castle/cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/mpi/ranked_state.hpp>
#include <castle/detail/mpi/split_output.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace mpi {

template <Scalar T>
class SplitLayer;

/// What one rank keeps of a sequence: keys and values of its own heads, of all tokens. Made by the layer's `make_cache`
/// on every rank.
///
/// `reserve`, `rollback` and `fork` are collective, and happen on all ranks or, where they throw, on none; they
/// exchange 24 bytes. `clear` exchanges nothing, but is to be called on all ranks too.
///
/// Moves but does not copy; one that was moved from may only be assigned to or destroyed.
template <Scalar T>
class SplitLayerCache {
  public:
    using value_type = T;

    /// Tokens in the cache.
    Index size() const { return state_.size(); }
    /// Tokens that there is memory for; `unlimited` once there is all that a sliding window takes.
    Index capacity() const { return state_.capacity(); }
    /// Of this rank's heads.
    const Shape& shape() const { return state_.kind().shape; }
    /// How many tokens a row sees at most; `unlimited` without a window.
    Index sliding_window() const { return state_.head(0).sliding_window(); }

    /// Makes room for `tokens` tokens in all, see UqKvCache. Throws std::invalid_argument if `tokens` is negative or
    /// above 2^40, and std::bad_alloc if memory runs out; the tokens are as they were then.
    void reserve(Index tokens) {
        detail::reserve_on_all(communicator_, identifier_, state_, tokens, [] {});
    }

    /// Forgets every token, see UqKvCache.
    void clear() { state_.clear(); }

    /// Removes the last `tokens` tokens, see UqKvCache: bits, costs and errors are the same.
    void rollback(Index tokens) { detail::rollback_on_all(communicator_, identifier_, state_, tokens); }
    Index max_rollback() const { return state_.max_rollback(); }

    /// A second cache with the same tokens, see UqKvCache.
    SplitLayerCache fork() const {
        return {kind_, communicator_, detail::fork_on_all(communicator_, identifier_, state_, [] {})};
    }

    /// Of this rank.
    CacheBytes bytes() const {
        const Index shared = state_.shared_bytes();
        return {.owned = scratch_bytes() + state_.bytes() - shared, .shared = shared};
    }
    /// What `bytes().total()` is going to be after `reserve(tokens)`, if nothing is shared with a fork. Throws
    /// std::invalid_argument as `reserve`.
    Index bytes_for(Index tokens) const { return scratch_bytes() + state_.bytes_for(tokens); }

  private:
    friend SplitLayer<T>;
    friend detail::BatchMark;

    SplitLayerCache(const detail::LayerKind& kind, const Communicator& communicator, detail::SequenceState<T> state)
        : kind_(kind),
          communicator_(communicator),
          state_(std::move(state)),
          identifier_(detail::Identifiers::next(communicator)) {}

    Index scratch_bytes() const { return row_.size() * Index(sizeof(Compute<T>)) + output_memory_.bytes(); }

    detail::LayerKind kind_;  // of the whole layer
    Communicator communicator_;
    detail::SequenceState<T> state_;  // of this rank's heads
    Index identifier_;                // the same on all ranks
    // Scratch for a single token, or for more once the cache has led a batch of them:
    detail::AlignedBuffer<Compute<T>> row_;
    detail::OutputMemory<T> output_memory_;
    Index batch_mark_ = 0;  // means something only within check_batch
};

}  // namespace mpi
}  // namespace CASTLE_ABI
}  // namespace castle
