// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include <castle/detail/cache/lookahead_keys.hpp>
#include <castle/head_cache.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The UQ-KV cache of one head (eq. 13, Algorithms 4 and 5): the lookahead keys `U`, and `K^C`, `V^C` and, as far as
/// the window reaches, `Q^U` of every token so far. `extend` puts tokens onto it, `rollback` takes them off.
///
/// `U` is kept with every finished block of 32 tokens folded in, beside the gates, `K^U` and `V^U` of the open block.
/// The executor of its options is kept with it.
template <Scalar T>
class UqKvCache : public HeadCache<T> {
  public:
    /// An empty cache for heads of `shape` that can roll back the last `rollback` tokens, as `max_rollback` tells. For
    /// every 32 of those it keeps a copy of `U`, of the keys within the window: `d` elements a token, so `2 d` with the
    /// default of 64. Pass 0 where nothing is ever rolled back beyond the open block of 32. Throws
    /// std::invalid_argument if a size is below 1 or above 2^24, the window negative, the scale not finite, or
    /// `rollback` negative or above 2^24.
    explicit UqKvCache(HeadShape shape, Options options = {}, Index rollback = default_rollback)
        : HeadCache<T>("UqKvCache", 6, shape, std::move(options), rollback) {}

    UqKvCache(UqKvCache&&) = default;
    UqKvCache& operator=(UqKvCache&& other) noexcept {
        if (this != &other) HeadCache<T>::operator=(std::move(other));
        return *this;
    }
    ~UqKvCache() = default;

    const Options& options() const { return this->all_options(); }

    /// A second cache with the same tokens, for beams, or for a prompt that several texts go on from. Both go on like
    /// caches of their own, to the bit, and on threads of their own, one a cache. They share their memory until one of
    /// them writes to it: `K^C`, `V^C` and `Q^U` of finished panels of 64 tokens stay shared; the next token copies the
    /// panel that is not finished, and the gates of an open block; the next full block copies `U` and what a rollback
    /// needs, of the tokens within the window. That is allocated when it is copied; `reserve` does it beforehand. What
    /// was reserved stays with this cache. Throws std::bad_alloc if memory runs out.
    UqKvCache fork() const { return UqKvCache(this->fork_head()); }

    /// `U^t` of eqs. 3 and 13, every token so far folded in: row `s` is the lookahead key of token `s`, `[size, d]`.
    Matrix<T> lookahead_keys() const { return detail::lookahead_keys(this->state()); }

    /// The cache that `save` has written, which can take off as many tokens again as the saved one could, up to
    /// `rollback` or a few more. Throws std::runtime_error if the stream holds no cache of this kind and scalar, or one
    /// that is truncated or corrupted, std::invalid_argument if `rollback` is negative or above 2^24, and
    /// std::bad_alloc if there is no memory for the cache and, beside it, up to three times the bytes that it is read
    /// from.
    static UqKvCache load(std::istream& in, Executor executor = {}, Index rollback = default_rollback) {
        return UqKvCache(HeadCache<T>::load(in, "UqKvCache::load", 6, std::move(executor), rollback));
    }

  private:
    explicit UqKvCache(HeadCache<T> cache) : HeadCache<T>(std::move(cache)) {}
};

}  // namespace CASTLE_ABI
}  // namespace castle
