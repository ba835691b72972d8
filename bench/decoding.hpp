// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include <castle/causal.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/extend.hpp>

#include "support.hpp"

// Single tokens onto caches of t tokens, and the bytes that this has to touch. One thread; several heads run one after
// the other, as a layer's do.
//
// A cache of t tokens by way of prefill would cost O(t^2 d) each time. What a step costs depends on how many tokens
// there are and not on their numbers, so the cache's insides are filled with random ones instead, and its size is set
// back after every block: every block of 32 steps starts at t, which is at the start of a block, and holds one folding.
namespace castle_bench {

using castle::detail::block_size;

/// Bytes that an average step of a block must touch in the cache of one head, its first token being t, with dv = d.
///
/// Of every token there the lookahead key (d), the causal key (d) and the causal value (d) are read. Where it absorbs
/// the new token, the lookahead query (d) and the gates of the block's earlier tokens are read and one gate is written;
/// once a block, the lookahead key (d) is written.
inline double castle_bytes(Index t, Index d, Index window) {
    double numbers = 0;
    for (Index i = 0; i < block_size; ++i) {
        const Index size = t + i;
        const Index absorbing = std::min(size, window);
        numbers += number(size * 3 * d + absorbing * (d + i + 1));
    }
    const Index folding = std::min(t + block_size, window);
    numbers += number(folding * d);
    return numbers / block_size * sizeof(float);
}

/// The same of standard attention: keys and values.
inline double causal_bytes(Index t, Index d) {
    return (number(t) + (block_size - 1) / 2.0) * 2 * number(d) * sizeof(float);
}

template <class Cache>
void fill(Cache& cache, Index tokens) {
    auto& state = castle::detail::CacheAccess::state(cache);
    cache.reserve(tokens + block_size);
    std::minstd_rand generator(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const auto randomise = [&](float* panel, Index numbers) {
        std::generate_n(panel, numbers, [&] { return uniform(generator); });
    };
    const Index matrix = state.shape().d * castle::detail::panel_size;
    for (Index p = 0; p < tokens / castle::detail::panel_size; ++p) {
        randomise(state.causal_keys(p), matrix);
        randomise(state.values(p), matrix);
        if (!state.has_lookahead()) continue;
        randomise(state.lookahead_keys(p), matrix);
        randomise(state.lookahead_queries(p), matrix);
    }
    state.set_size(tokens);
}

/// The tokens of a block. Their lookahead values are tiny, since they are added to the same lookahead keys in every
/// round, which would grow without end otherwise.
class NewTokens {
  public:
    explicit NewTokens(Index d) : numbers_(Matrix::Random(block_size, 6 * d)), d_(d) { numbers_.rightCols(d) *= 1e-6F; }

    castle::HeadInput<float> token(Index i) const {
        const auto part = [&](Index k) { return numbers_.block(i, k * d_, 1, d_); };
        return {.causal = {.q = part(0), .k = part(1), .v = part(2)},
                .lookahead = {.q = part(3), .k = part(4), .v = part(5)}};
    }

  private:
    Matrix numbers_;
    Index d_;
};

inline void step(castle::UqKvCache<float>& cache, const castle::HeadInput<float>& token, Matrix& out) {
    castle::extend(cache, token, out);
}
inline void step(castle::KvCache<float>& cache, const castle::HeadInput<float>& token, Matrix& out) {
    castle::extend(cache, token.causal, out);
}

/// Blocks of steps onto `caches`, empty ones of the heads; `bytes` are those of a head's average step. An iteration is
/// a whole block.
template <class Cache>
void decode(benchmark::State& state, Index t, std::vector<Cache> caches, double bytes) {
    for (Cache& cache : caches) fill(cache, t);
    const Index d = caches.front().shape().d;
    const NewTokens tokens(d);
    Matrix out(1, d);
    const double bandwidth_now = bandwidth();
    for (auto _ : state) {
        for (Cache& cache : caches) castle::detail::CacheAccess::state(cache).set_size(t);
        for (Index i = 0; i < block_size; ++i) {
            for (Cache& cache : caches) {
                step(cache, tokens.token(i), out);
                benchmark::DoNotOptimize(out.data());
                benchmark::ClobberMemory();
            }
        }
    }
    count_bytes(state, bytes * number(block_size * Index(caches.size())), bandwidth_now);
    state.counters["s/step"] = benchmark::Counter(
        number(block_size), benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

inline void decode_castle(benchmark::State& state, Index t, Index d, Index heads, Index window) {
    std::vector<castle::UqKvCache<float>> caches;
    for (Index h = 0; h < heads; ++h)
        caches.emplace_back(castle::HeadShape{d, d}, castle::Options{.lookahead_window = window});
    decode(state, t, std::move(caches), castle_bytes(t, d, window));
}

inline void decode_causal(benchmark::State& state, Index t, Index d, Index heads) {
    std::vector<castle::KvCache<float>> caches;
    for (Index h = 0; h < heads; ++h) caches.emplace_back(castle::HeadShape{d, d});
    decode(state, t, std::move(caches), causal_bytes(t, d));
}

}  // namespace castle_bench
