// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include <castle/cache.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/extend.hpp>

#include "support.hpp"

// Single tokens onto caches of t tokens, and the bytes that this has to touch. One thread; several caches take their
// token one after the other.
//
// A cache of t tokens by way of prefill would cost O(t^2 d) each time. What a step costs depends on how many tokens
// there are and not on their values, so the cache's insides are filled with random ones instead, and its size is set
// back after every block: every block of 32 steps starts at t, which is at the start of a block, and holds one folding.
namespace castle_bench {

using castle::base::block_size;

/// Bytes that an average step of a block must touch in the cache of one key-value head, its first token being t, with
/// dv = d. However many query heads read it, it is touched once.
///
/// Of every token there the lookahead key (d), the causal key (d) and the causal value (d) are read. Where it absorbs
/// the new token, the lookahead query (d) and the gates of the block's earlier tokens are read and one gate is written;
/// once a block, the lookahead key (d) is written.
inline double castle_bytes(Index t, Index d, Index window) {
    double elements = 0;
    for (Index i = 0; i < block_size; ++i) {
        const Index size = t + i;
        const Index absorbing = std::min(size, window);
        elements += number(size * 3 * d + absorbing * (d + i + 1));
    }
    const Index folding = std::min(t + block_size, window);
    elements += number(folding * d);
    return elements / block_size * sizeof(float);
}

/// The same of standard attention: keys and values.
inline double causal_bytes(Index t, Index d) {
    return (number(t) + (block_size - 1) / 2.0) * 2 * number(d) * sizeof(float);
}

/// A cache of any kind, or what one rank has of it.
template <class Cache>
void fill(Cache& cache, Index tokens) {
    auto& state = castle::detail::CacheAccess::state(cache);
    cache.reserve(tokens + block_size);
    std::minstd_rand generator(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const auto randomise = [&]<class Number>(Number* panel, Index columns) {
        std::generate_n(panel, columns * castle::base::panel_size,
                        [&] { return static_cast<Number>(uniform(generator)); });
    };
    for (Index h = 0; h < cache.shape().kv_heads; ++h) {
        auto& head = state.head(h);
        for (Index p = 0; p < tokens / castle::base::panel_size; ++p) {
            if (!head.share().has_panel(p)) continue;
            randomise(head.causal_keys(p), head.d());
            randomise(head.values(p), head.dv());
            if (!head.has_lookahead()) continue;
            randomise(head.lookahead_keys(p), head.d());
            if (head.has_final_keys(p, tokens)) randomise(head.stored_keys(p), head.d());
            randomise(head.lookahead_queries(p), head.d());
        }
    }
    state.set_size(tokens);
}

/// The tokens of a block. Their lookahead values are tiny, since they are added to the same lookahead keys in every
/// round, which would grow without end otherwise.
class NewTokens {
  public:
    explicit NewTokens(const castle::Shape& shape)
        : elements_(Matrix::Random(block_size, columns_of(shape))), shape_(shape) {
        elements_.rightCols(shape.kv_heads * shape.d) *= 1e-6F;
    }

    castle::Input<float> token(Index i) const { return input_in(elements_, shape_).tokens(i, 1); }

  private:
    Matrix elements_;
    castle::Shape shape_;
};

/// Blocks of steps onto `caches`, empty ones of one shape; `bytes` are those of a key-value head's average step. An
/// iteration is a whole block. `owned` are the bytes that the caches hold.
inline void decode(benchmark::State& state, Index t, std::vector<castle::UqKvCache<float>> caches, double bytes) {
    for (auto& cache : caches) fill(cache, t);
    const castle::Shape shape = caches.front().shape();
    const NewTokens tokens(shape);
    Matrix out(1, shape.heads * shape.dv);
    const double bandwidth_now = bandwidth();
    for (auto _ : state) {
        for (auto& cache : caches) castle::detail::CacheAccess::state(cache).set_size(t);
        for (Index i = 0; i < block_size; ++i) {
            for (auto& cache : caches) {
                castle::extend(cache, tokens.token(i), out);
                benchmark::DoNotOptimize(out.data());
                benchmark::ClobberMemory();
            }
        }
    }
    count_bytes(state, bytes * number(block_size * shape.kv_heads * Index(caches.size())), bandwidth_now);
    double owned = 0;
    for (const auto& cache : caches) owned += number(cache.bytes().owned);
    state.counters["owned"] = owned;
    state.counters["s/step"] = benchmark::Counter(
        number(block_size), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

/// So many caches of one head each. A window of 0 is standard attention.
inline std::vector<castle::UqKvCache<float>> lone_heads(Index d, Index heads, Index window) {
    std::vector<castle::UqKvCache<float>> caches;
    for (Index h = 0; h < heads; ++h) caches.emplace_back(heads_of(d), castle::Options{.lookahead_window = window});
    return caches;
}

inline void decode_castle(benchmark::State& state, Index t, Index d, Index heads, Index window) {
    decode(state, t, lone_heads(d, heads, window), castle_bytes(t, d, window));
}

inline void decode_causal(benchmark::State& state, Index t, Index d, Index heads) {
    decode(state, t, lone_heads(d, heads, /*window=*/0), causal_bytes(t, d));
}

}  // namespace castle_bench
