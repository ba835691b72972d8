// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string_view>
#include <utility>

#include <castle/detail/checks.hpp>
#include <castle/detail/extend_heads.hpp>
#include <castle/detail/head_state.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {

struct CacheAccess;

// What the caches of one head have in common: everything but what is in them.
template <Scalar T>
class HeadCache {
  public:
    using value_type = T;

    /// Tokens in the cache.
    Index size() const { return state_.size(); }
    /// Tokens that it holds without allocating again.
    Index capacity() const { return state_.capacity(); }
    HeadShape shape() const { return state_.shape(); }

    /// Makes room for `tokens` tokens in all. Up to there, extending by one token at a time allocates nothing.
    /// Throws std::invalid_argument if `tokens` is negative or above 2^40, and std::bad_alloc if there is no memory for
    /// that; nothing has changed then.
    void reserve(Index tokens) {
        check_tokens("reserve", tokens);
        state_.reserve(tokens);
    }

    /// Forgets every token and keeps the memory.
    void clear() { state_.clear(); }

    /// Memory that the cache holds, in bytes.
    Index bytes() const { return state_.bytes(); }

  protected:
    HeadCache(std::string_view where, HeadShape shape, Options options)
        : options_(checked(where, shape, std::move(options))),
          state_(shape, static_cast<T>(scale_for(options_, shape.d)), options_.lookahead_window) {}

    const Options& all_options() const { return options_; }
    const HeadState<T>& state() const { return state_; }

  private:
    friend CacheAccess;

    static Options checked(std::string_view where, HeadShape shape, Options options) {
        check_head_shape(where, shape);
        check_options(where, options);
        return options;
    }

    Options options_;
    HeadState<T> state_;
};

// U with the open block folded in as well, [size, d].
template <Scalar T>
Matrix<T> lookahead_keys(const HeadState<T>& state) {
    const Index size = state.size();
    const Index d = state.shape().d;
    Matrix<T> u = Matrix<T>::Zero(size, d);
    if (!state.has_lookahead()) return u;

    const Index origin = round_down(size, block_size);
    AlignedBuffer<T> panel(d * panel_size);
    for (Index p = 0; p * panel_size < size; ++p) {
        std::copy_n(state.lookahead_keys(p), panel.size(), panel.data());
        if (absorbs(state, origin, size, p)) {
            constexpr bool at_edge = true;  // right everywhere, if not fast
            fold_block(state, origin, size - origin, state.open_block(), state.gates(p), p, at_edge, panel.data());
        }
        const Index first = p * panel_size;
        const Index rows = std::min(panel_size, size - first);
        u.middleRows(first, rows) = Eigen::Map<const Matrix<T>>(panel.data(), d, panel_size).leftCols(rows).transpose();
    }
    return u;
}

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

/// The UQ-KV cache of one head (eq. 13, Algorithms 4 and 5): the lookahead keys `U`, and `Q^U`, `K^C`, `V^C` of every
/// token so far. `extend` puts tokens onto it.
///
/// `U` is kept with every finished block of 32 tokens folded in, beside the gates and lookahead values of the open
/// block. A cache moves but does not copy; one that was moved from
/// can only be assigned to or destroyed. It may be used from any thread, by one at a time.
template <Scalar T>
class UqKvCache : public detail::HeadCache<T> {
  public:
    /// An empty cache for heads of `shape`. Throws std::invalid_argument if a size is below 1, the window negative or
    /// the scale not finite.
    explicit UqKvCache(HeadShape shape, Options options = {})
        : detail::HeadCache<T>("UqKvCache", shape, std::move(options)) {}

    const Options& options() const { return this->all_options(); }

    /// `U^t` of eqs. 3 and 13, every token so far folded in: row `s` is the lookahead key of token `s`, `[size, d]`.
    Matrix<T> lookahead_keys() const { return detail::lookahead_keys(this->state()); }
};

}  // namespace CASTLE_ABI
}  // namespace castle
