// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <istream>
#include <ostream>
#include <span>
#include <string_view>
#include <utility>

#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/state/head_state.hpp>
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
/// is what speculative decoding and a corrected answer need; it costs `2 d` elements a token and head without a window,
/// half as much again as a cache without it, and `2 d` for the tokens within the window otherwise. A cache that only
/// ever grows, or is cleared or forked instead, is made with a rollback of 0.
inline constexpr Index default_rollback = 64;

/// Memory, in bytes: what a cache holds alone, and what it shares with its forks, each of which counts it. What several
/// caches hold together is the sum of `owned` and what they share, once. What was reserved by a cache that is gone, and
/// is still there for the sake of its forks, counts when they use it.
struct CacheBytes {
    Index owned = 0;
    Index shared = 0;

    Index total() const { return owned + shared; }
    bool operator==(const CacheBytes&) const = default;
};

/// What the caches of one head, UqKvCache and KvCache, have in common: everything but what is in them.
///
/// A cache moves but does not copy; one that was moved from may only be assigned to or destroyed. A move to itself
/// changes nothing. It may be used from any thread, by one at a time; const calls, `fork` and `save` among them, by
/// several at once.
template <Scalar T>
class HeadCache {
  public:
    using value_type = T;

    HeadCache(const HeadCache&) = delete;
    HeadCache& operator=(const HeadCache&) = delete;
    HeadCache(HeadCache&&) = default;
    ~HeadCache() = default;

    /// Tokens in the cache.
    Index size() const { return state_.size(); }
    /// Tokens that there is memory for.
    Index capacity() const { return state_.capacity(); }
    HeadShape shape() const { return state_.shape(); }

    /// Makes room for `tokens` tokens in all. Up to there, extending by one token at a time into a view allocates
    /// nothing. A fork ends that, as does a rollback of a cache that shares memory: reserve again then, which copies
    /// what these tokens are going to change. Memory of one call goes back as a whole, once no cache holds any of it;
    /// until then those that hold a part use the rest for what they reserve next. Throws std::invalid_argument if
    /// `tokens` is negative or above 2^40, and std::bad_alloc if there is no memory for that; the tokens are as they
    /// were then.
    void reserve(Index tokens) {
        detail::check_tokens("reserve", "tokens", tokens);
        state_.make_room((std::max)(tokens, size()));
    }

    /// Forgets every token and keeps the memory, but for what it shares with forks.
    void clear() { state_.clear(); }

    /// Takes off the last `tokens` tokens: what follows has the same bits as if they had never been there. Tokens of
    /// the open block of 32 cost nothing; each finished block that loses tokens costs a copy of `U` of the keys within
    /// the window, `d` numbers each, and the last of them the making of its gates anew.
    ///
    /// Throws std::invalid_argument if `tokens` is negative or more than `max_rollback()`; nothing has changed then. In
    /// a cache that shares memory with a fork finished blocks need memory of their own; std::bad_alloc if there is
    /// none.
    void rollback(Index tokens) {
        detail::check_rollback(tokens, max_rollback());
        state_.own_for_rollback(size() - tokens);
        detail::rollback(state_, tokens);
    }
    /// How many tokens `rollback` can take off right now: all of them in a cache of standard attention. Otherwise at
    /// least as many as the cache was made for, counted from the most tokens that it has held since it was empty: what
    /// has been taken off comes back only with new tokens.
    Index max_rollback() const { return state_.max_rollback(); }

    CacheBytes bytes() const {
        const Index shared = state_.shared_bytes();
        return {.owned = state_.bytes() - shared, .shared = shared};
    }

    /// Writes the cache, for `load` of a cache of the same kind and scalar: its tokens, how it was made, and what a
    /// rollback needs; with checksums. A cache that is loaded goes on with the same bits in every build that computes
    /// the same bits. Caches can follow one another in a stream. Throws std::runtime_error if the stream cannot be
    /// written.
    void save(std::ostream& out) const {
        detail::save_cache<T>(out, detail::SavedIdentity::of_head(state_, projections_), std::span(&state_, 1));
    }

  protected:
    // Of another cache; UqKvCache and KvCache see to it that it is another one.
    HeadCache& operator=(HeadCache&&) = default;

    // `projections` is 6, or 3 for standard attention.
    HeadCache(std::string_view where, std::uint64_t projections, HeadShape shape, Options options, Index rollback)
        : projections_(projections),
          options_(detail::checked_options<T>(where, shape, std::move(options))),
          state_(shape, options_, {.rollback = detail::checked_rollback(where, rollback)}) {}

    const Options& all_options() const { return options_; }
    const detail::HeadState<T>& state() const { return state_; }

    HeadCache fork_head() const { return HeadCache(projections_, options_, state_.fork()); }

    static HeadCache load(std::istream& in, std::string_view where, std::uint64_t projections, Executor executor,
                          Index rollback) {
        detail::checked_rollback(where, rollback);
        detail::SavedReader reader(in);
        const auto saved = detail::read_identity<T>(reader);
        if (saved.d_model != 0 || saved.heads != 1 || saved.rotated != 0 || saved.rotary_base != 0 ||
            saved.projections != projections ||
            (projections == 3 && (saved.window != 0 || saved.silu != 1 || saved.causal_keys != 1))) {
            detail::refuse_cache(projections == 6 ? "is not that of a head of CASTLE"
                                                  : "is not that of a head of standard attention");
        }
        Options options{.scale = std::bit_cast<double>(saved.scale),
                        .lookahead_window = Index(saved.window),
                        .silu = saved.silu == 1,
                        .causal_keys = saved.causal_keys == 1,
                        .executor = std::move(executor)};
        const HeadShape shape{.d = Index(saved.d), .dv = Index(saved.dv)};
        auto states = detail::read_states<T>(
            reader, saved, [&] { return detail::HeadState<T>(shape, options, detail::Keeping{.rollback = rollback}); });
        return HeadCache(projections, options, std::move(states.front()));
    }

  private:
    friend detail::CacheAccess;
    friend detail::BatchMark;

    HeadCache(std::uint64_t projections, Options options, detail::HeadState<T> state)
        : projections_(projections), options_(std::move(options)), state_(std::move(state)) {}

    std::uint64_t projections_;
    Options options_;
    detail::HeadState<T> state_;
    Index batch_mark_ = 0;  // means something only within check_batch
};

namespace detail {

// The way from a cache to its insides, for the functions that work on it.
struct CacheAccess {
    template <Scalar T>
    static HeadState<T>& state(HeadCache<T>& cache) {
        return cache.state_;
    }
    template <Scalar T>
    static const Executor& executor(const HeadCache<T>& cache) {
        return cache.options_.executor;
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
