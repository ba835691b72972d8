// SPDX-License-Identifier: Apache-2.0

// How long does one token take onto a cache of t tokens, and how near does that come to reading memory once? One
// thread; several heads run one after the other, as a layer's do.
//
// A cache of t tokens by way of prefill would cost O(t^2 d) each time. What a step costs depends on how many tokens
// there are and not on their numbers, so the cache's insides are filled with random ones instead, and its size is set
// back after every block: every block of 32 steps starts at t, which is at the start of a block, and holds one folding.
#include <random>
#include <vector>

#include <castle/causal.hpp>
#include <castle/detail/layout.hpp>
#include <castle/extend.hpp>

#include "support.hpp"

namespace {

using castle::detail::block_size;
using castle_bench::Index;
using castle_bench::Matrix;

constexpr Index d = 64;  // and dv

// Bytes that an average step of a block must touch in the cache of one head, its first token being t.
//
// Of every token there the lookahead key (d), the causal key (d) and the causal value (dv = d) are read. Where it
// absorbs the new token, the lookahead query (d) and the gates of the block's earlier tokens are read and one gate is
// written; once a block, its gates are read again and the lookahead key is read and written.
double castle_bytes(Index t, Index window) {
    double numbers = 0;
    for (Index i = 0; i < block_size; ++i) {
        const Index size = t + i;
        const Index absorbing = std::min(size, window);
        numbers += castle_bench::number(size * 3 * d + absorbing * (d + i + 1));
    }
    const Index folding = std::min(t + block_size, window);
    numbers += castle_bench::number(folding * (2 * d + block_size));
    return numbers / block_size * sizeof(float);
}

// The same of standard attention: keys and values.
double causal_bytes(Index t) { return (castle_bench::number(t) + (block_size - 1) / 2.0) * 2 * d * sizeof(float); }

template <class Cache>
void fill(Cache& cache, Index tokens) {
    auto& state = castle::detail::CacheAccess::state(cache);
    cache.reserve(tokens + block_size);
    std::minstd_rand generator(1);
    std::uniform_real_distribution<float> number(-1, 1);
    const Index per_token = state.has_lookahead() ? 4 * d : 2 * d;
    for (Index p = 0; p < tokens / castle::detail::panel_size; ++p) {
        std::generate_n(state.causal_keys(p), per_token * castle::detail::panel_size,
                        [&] { return number(generator); });
    }
    state.set_size(tokens);
}

// The head's new tokens. Their lookahead values are tiny, since they are added to the same lookahead keys in every
// round, which would grow without end otherwise.
class NewTokens {
  public:
    NewTokens() : numbers_(Matrix::Random(block_size, 6 * d)) { numbers_.rightCols(d) *= 1e-6F; }

    castle::HeadInput<float> token(Index i) const {
        const auto part = [&](Index k) { return numbers_.block(i, k * d, 1, d); };
        return {.causal = {.q = part(0), .k = part(1), .v = part(2)},
                .lookahead = {.q = part(3), .k = part(4), .v = part(5)}};
    }

  private:
    Matrix numbers_;
};

void step(castle::UqKvCache<float>& cache, const castle::HeadInput<float>& token, Matrix& out) {
    castle::extend(cache, token, out);
}
void step(castle::KvCache<float>& cache, const castle::HeadInput<float>& token, Matrix& out) {
    castle::extend(cache, token.causal, out);
}

// make_cache() gives an empty cache, bytes are those of a head's step.
template <class MakeCache>
void decode(benchmark::State& state, const MakeCache& make_cache, double bytes) {
    const Index t = state.range(0), heads = state.range(1);
    std::vector<decltype(make_cache())> caches;
    for (Index h = 0; h < heads; ++h) fill(caches.emplace_back(make_cache()), t);
    const NewTokens tokens;
    Matrix out(1, d);

    Index i = 0;
    for (auto _ : state) {
        for (auto& cache : caches) {
            if (i == 0) castle::detail::CacheAccess::state(cache).set_size(t);
            step(cache, tokens.token(i), out);
            benchmark::DoNotOptimize(out.data());
            benchmark::ClobberMemory();
        }
        i = (i + 1) % block_size;
    }
    castle_bench::count_bytes(state, castle_bench::number(heads) * bytes);
}

void castle_step(benchmark::State& state, Index window) {
    decode(
        state, [&] { return castle::UqKvCache<float>({.d = d, .dv = d}, {.lookahead_window = window}); },
        castle_bytes(state.range(0), window));
}

void causal_step(benchmark::State& state) {
    decode(
        state, [] { return castle::KvCache<float>({.d = d, .dv = d}); }, causal_bytes(state.range(0)));
}

void sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"t", "heads"})
        ->ArgsProduct({{1024, 4096, 16384}, {1, 8}})
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(castle_step, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(castle_step, window_128, 128)->Apply(sizes);
BENCHMARK(causal_step)->Apply(sizes);

}  // namespace
