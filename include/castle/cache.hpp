// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <istream>
#include <ostream>
#include <utility>

#include <castle/detail/cache/lookahead_keys.hpp>
#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {
struct CacheAccess;
}

/// How many of its last tokens a cache can roll back, from the most that it has held, unless it is told otherwise. This
/// is what speculative decoding and a corrected answer need; it costs `2 d` elements a token and key-value head without
/// a window, half as much again as a cache without it, and `2 d` for the tokens within the window otherwise. A cache
/// that only ever grows, or is cleared or forked instead, is made with a rollback of 0.
inline constexpr Index default_rollback = 64;

/// Memory, in bytes: what a cache holds alone, and what it shares with its forks. Every fork counts shared memory; when
/// summing caches, count it once. What was reserved by a cache that is gone, and is still there for the sake of its
/// forks, counts when they use it.
struct CacheBytes {
    Index owned = 0;
    Index shared = 0;

    Index total() const { return owned + shared; }
    bool operator==(const CacheBytes&) const = default;
};

/// The UQ-KV cache of some heads (eq. 13, Algorithms 4 and 5): for each key-value head the lookahead keys `U`, and
/// `K^C`, `V^C` and, as far as the window reaches, `Q^U` of every token so far. `extend` appends tokens, `rollback`
/// removes them. With a lookahead window of 0 it is the key-value cache of standard attention.
///
/// `U` is kept with every finished block of 32 tokens folded in, beside the gates, `K^U` and `V^U` of the open block.
///
/// With a 16-bit scalar `K^C`, `V^C`, `Q^U` and gates are stored in it, and `U` of keys that a lookahead window has
/// left behind, rounded once; what is left, `U` that may still change among it, is in float. With a window that is half
/// of a cache of float, and without one 0.61.
///
/// A cache moves but does not copy; one that was moved from may only be assigned to or destroyed. A move to itself
/// changes nothing. It may be used from any thread, by one at a time; const calls, `fork` and `save` among them, by
/// several at once.
template <Scalar T>
class UqKvCache {
  public:
    using value_type = T;

    /// An empty cache for heads of `shape` that can roll back the last `rollback` tokens, see `max_rollback`. For every
    /// 32 of those it keeps a copy of `U`, of the keys within the window: `d` elements a token and key-value head, so
    /// `2 d` with the default of 64. Pass 0 where nothing is ever rolled back beyond the open block of 32; standard
    /// attention rolls back any number, and needs none of it. Options are fixed at construction.
    ///
    /// With a `sliding_window` a row sees its own token and the `sliding_window - 1` before it: every call has the mask
    /// `masks::sliding_window(sliding_window)`, and one that is given another mask sees what both show. Bits are those
    /// of a cache without it whose calls have that mask. Keys that no row to come sees are let go: memory stops growing
    /// where the window and `max(128, rollback + 32)` tokens are full, two panels of 64 later at most. Standard
    /// attention then rolls back no more tokens than lookahead does.
    ///
    /// Throws std::invalid_argument if a size is below 1 or too large (`d` and `dv` above 2^24, `heads` above
    /// 2^12), `heads` is no multiple of `kv_heads`, the window negative, the scale not finite, `rollback`
    /// negative or above 2^24, or `sliding_window` below 1.
    explicit UqKvCache(const Shape& shape, Options options = {}, Index rollback = default_rollback,
                       Index sliding_window = unlimited)
        : options_(std::move(options)),
          state_(detail::AttentionKind::checked<T>("UqKvCache", shape, options_),
                 {.rollback = detail::checked_rollback("UqKvCache", rollback),
                  .sliding_window = detail::checked_sliding_window("UqKvCache", sliding_window)}) {}

    UqKvCache(UqKvCache&&) = default;
    UqKvCache& operator=(UqKvCache&& other) noexcept {
        if (this == &other) return *this;
        options_ = std::move(other.options_);
        state_ = std::move(other.state_);
        return *this;
    }
    ~UqKvCache() = default;

    /// Tokens in the cache.
    Index size() const { return state_.size(); }
    /// Tokens that there is memory for; `unlimited` once there is all that a sliding window takes.
    Index capacity() const { return state_.capacity(); }
    const Shape& shape() const { return state_.kind().shape; }
    const Options& options() const { return options_; }
    /// How many tokens a row sees at most; `unlimited` without a window.
    Index sliding_window() const { return state_.head(0).sliding_window(); }

    /// Makes room for `tokens` tokens in all. Up to there, extending by one token at a time into a view allocates
    /// nothing. A fork ends that, as does a rollback of a cache that shares memory: reserve again then, which copies
    /// what these tokens are going to change. Memory of one call goes back as a whole, once no cache holds any of it;
    /// until then those that hold a part use the rest for what they reserve next. Throws std::invalid_argument if
    /// `tokens` is negative or above 2^40, and std::bad_alloc if there is no memory for that; the tokens are as they
    /// were then.
    void reserve(Index tokens) { state_.reserve(tokens); }

    /// Forgets every token and keeps the memory, but for what it shares with forks.
    void clear() { state_.clear(); }

    /// Removes the last `tokens` tokens: what follows is bitwise identical to a cache that never had them. Tokens of
    /// the open block of 32 cost nothing; each finished block that loses tokens costs a copy of `U` of the keys within
    /// the window, `d` elements each, and the last of them the making of its gates anew.
    ///
    /// Throws std::invalid_argument if `tokens` is negative or more than `max_rollback()`; nothing has changed then. In
    /// a cache that shares memory with a fork finished blocks need memory of their own; std::bad_alloc if there is
    /// none.
    void rollback(Index tokens) { detail::rollback(state_, tokens); }
    /// How many tokens `rollback` can remove right now: all of them in a cache of standard attention without a sliding
    /// window. Otherwise at least as many as the cache was made for, counted from the most tokens that it has held
    /// since it was empty: what has been rolled back comes back only with new tokens.
    Index max_rollback() const { return state_.max_rollback(); }

    /// A second cache with the same tokens, for beams, or for a prompt that several sequences go on from. Both go on
    /// like caches of their own, bitwise, and on threads of their own, one a cache. They share their memory until one
    /// of them writes to it: `K^C`, `V^C` and `Q^U` of finished panels of 64 tokens stay shared; the next token copies
    /// the panel that is not finished, and the gates of an open block; the next full block copies `U` and what a
    /// rollback needs, of the tokens within the window. That is allocated when it is copied; `reserve` does it
    /// beforehand. What was reserved stays with this cache. Throws std::bad_alloc if memory runs out.
    UqKvCache fork() const { return UqKvCache(options_, state_.fork()); }

    CacheBytes bytes() const {
        const Index shared = state_.shared_bytes();
        return {.owned = state_.bytes() - shared, .shared = shared};
    }
    /// What `bytes().total()` is going to be after `reserve(tokens)`, if nothing is shared with a fork. Throws
    /// std::invalid_argument as `reserve`.
    Index bytes_for(Index tokens) const { return state_.bytes_for(tokens); }

    /// Writes the cache: its tokens, how it was made, and what a rollback needs; with checksums. A cache that is loaded
    /// goes on with the same bits in every build that computes the same bits. Caches can follow one another in a
    /// stream. Throws std::runtime_error if the stream cannot be written.
    void save(std::ostream& out) const { detail::save_cache(out, state_); }

    /// The cache that `save` has written, with its shape, options and sliding window, which can roll back as many
    /// tokens again as the saved one could, up to `rollback` or a few more. Throws std::runtime_error if the stream
    /// holds no cache of heads of this scalar, or one that is truncated or corrupted, std::invalid_argument if
    /// `rollback` is negative or above 2^24, and std::bad_alloc if there is no memory for the cache and, beside it, up
    /// to three times the bytes that it is read from.
    static UqKvCache load(std::istream& in, Executor executor = {}, Index rollback = default_rollback) {
        detail::checked_rollback("UqKvCache::load", rollback);
        detail::SavedReader reader(in);
        const auto saved = detail::read_identity<T>(reader);
        if (saved.layer != detail::SavedIdentity::LayerWords()) detail::reject_cache("is that of a layer");
        detail::SequenceState<T> state(saved.kind, {.rollback = rollback, .sliding_window = saved.sliding_window});
        detail::read_state(reader, saved, state);
        return UqKvCache(saved.kind.options(std::move(executor)), std::move(state));
    }

    /// `U^t` of eqs. 3 and 13 of one key-value head, every token so far folded in: row `s` is the lookahead key of
    /// token `s` as the next row reads it, `[size, d]`; zeros in a cache of standard attention, and for keys that no
    /// row to come sees. Throws std::invalid_argument if there is no such head.
    Matrix<Compute<T>> lookahead_keys(Index kv_head = 0) const {
        return detail::lookahead_keys("UqKvCache::lookahead_keys", state_, kv_head);
    }

  private:
    friend detail::CacheAccess;
    friend detail::BatchMark;

    UqKvCache(Options options, detail::SequenceState<T> state)
        : options_(std::move(options)), state_(std::move(state)) {}

    Options options_;
    detail::SequenceState<T> state_;
    Index batch_mark_ = 0;  // means something only within check_batch
};

namespace detail {

// The way from a cache to its insides, for the functions that work on it.
struct CacheAccess {
    template <class Cache>
    static auto& state(Cache& cache) {
        return cache.state_;
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
