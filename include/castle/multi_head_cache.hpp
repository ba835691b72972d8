// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/cache/lookahead_keys.hpp>
#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/cache/saved_cache.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/head_cache.hpp>
#include <castle/rotary.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

template <Scalar T>
class MultiHeadLayer;

namespace detail {

// What a cache and a layer have to have in common.
struct LayerKind {
    Index d_model;
    Index projections;  // 6, or 3 for standard attention
    Index heads;
    Index d_head;
    Index lookahead_window;
    bool silu;
    bool causal_keys;
    double scale;
    std::optional<Rotary> rotary;

    bool operator==(const LayerKind&) const = default;

    static LayerKind of(const SavedIdentity& saved) {
        return {.d_model = Index(saved.d_model),
                .projections = Index(saved.projections),
                .heads = Index(saved.heads),
                .d_head = Index(saved.d),
                .lookahead_window = Index(saved.window),
                .silu = saved.silu == 1,
                .causal_keys = saved.causal_keys == 1,
                .scale = std::bit_cast<double>(saved.scale),
                .rotary = saved.rotary()};
    }

    // What sets it apart from a layer of another kind, with what that one has.
    std::string difference(const LayerKind& other) const {
        std::string words;
        const auto compare = [&](std::string_view name, auto own, auto others) {
            if (words.empty() && own != others) words = text(name, " ", own, " but the layer has ", others);
        };
        compare("d_model", d_model, other.d_model);
        compare("a number of heads of", heads, other.heads);
        compare("d_head", d_head, other.d_head);
        compare("a number of projections of", projections, other.projections);
        compare("lookahead_window", lookahead_window, other.lookahead_window);
        compare("silu", Index(silu), Index(other.silu));
        compare("causal_keys", Index(causal_keys), Index(other.causal_keys));
        if (words.empty() && rotary != other.rotary) words = "other rotary settings than the layer";
        compare("scale", scale, other.scale);
        return words.empty() ? "other settings than the layer" : words;
    }
};

}  // namespace detail

/// The caches of all heads of a layer; made by the layer's `make_cache`. Moves but does not copy; one that was moved
/// from may only be assigned to or destroyed. A move to itself changes nothing.
template <Scalar T>
class MultiHeadCache {
  public:
    using value_type = T;

    /// Tokens in the cache.
    Index size() const { return heads_.front().size(); }
    /// Tokens that there is memory for.
    Index capacity() const { return heads_.back().capacity(); }
    Index heads() const { return Index(heads_.size()); }

    /// Makes room for `tokens` tokens in all, as of HeadCache. Throws std::invalid_argument if `tokens` is negative or
    /// above 2^40, and std::bad_alloc if memory runs out; the tokens are as they were then.
    void reserve(Index tokens) {
        detail::check_tokens("reserve", "tokens", tokens);
        for (auto& head : heads_) head.make_room((std::max)(tokens, size()));
    }

    /// Forgets every token, as of HeadCache.
    void clear() {
        for (auto& head : heads_) head.clear();
    }

    /// Takes off the last `tokens` tokens, as of HeadCache: bits, costs and errors are the same.
    void rollback(Index tokens) {
        detail::check_rollback(tokens, max_rollback());
        for (auto& head : heads_) head.own_for_rollback(size() - tokens);
        for (auto& head : heads_) detail::rollback(head, tokens);
    }
    Index max_rollback() const { return heads_.front().max_rollback(); }

    /// A second cache with the same tokens, as of UqKvCache.
    MultiHeadCache fork() const {
        std::vector<detail::HeadState<T>> heads;
        heads.reserve(heads_.size());
        for (const auto& head : heads_) heads.push_back(head.fork());
        return {kind_, std::move(heads), row_numbers_};
    }

    CacheBytes bytes() const {
        CacheBytes total{.owned = row_.size() * Index(sizeof(T))};
        for (const auto& head : heads_) {
            const Index shared = head.shared_bytes();
            total.owned += head.bytes() - shared;
            total.shared += shared;
        }
        return total;
    }

    /// Writes the cache, for `load_cache` of a layer of the same kind; otherwise as of HeadCache.
    void save(std::ostream& out) const { detail::save_cache<T>(out, identity(), heads_); }

    /// `U` of one head, every token so far folded in, `[size, d_head]`, made of the values after any rotation; zeros in
    /// a cache of standard attention. Throws std::invalid_argument if there is no such head.
    Matrix<T> lookahead_keys(Index head) const {
        if (head < 0 || head >= heads()) {
            detail::fail("MultiHeadCache::lookahead_keys", "head is ", head, " but must be within [0, ", heads(), ")");
        }
        return detail::lookahead_keys(heads_[std::size_t(head)]);
    }

  private:
    friend MultiHeadLayer<T>;
    friend detail::BatchMark;

    MultiHeadCache(const detail::LayerKind& kind, std::vector<detail::HeadState<T>> heads, Index row_numbers)
        : kind_(kind), heads_(std::move(heads)), row_numbers_(row_numbers), row_(row_numbers) {}

    detail::SavedIdentity identity() const {
        auto identity = detail::SavedIdentity::of_head(heads_.front(), std::uint64_t(kind_.projections));
        identity.d_model = std::uint64_t(kind_.d_model);
        identity.heads = std::uint64_t(heads());
        if (kind_.rotary) identity.set_rotary(*kind_.rotary);
        return identity;
    }

    detail::LayerKind kind_;
    detail::SelfMovable<std::vector<detail::HeadState<T>>> heads_;
    Index row_numbers_;             // of scratch for a single token
    detail::AlignedBuffer<T> row_;  // so much scratch, or more once the cache has led a batch
    Index batch_mark_ = 0;          // means something only within check_batch
};

}  // namespace CASTLE_ABI
}  // namespace castle
