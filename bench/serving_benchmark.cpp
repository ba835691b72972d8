// SPDX-License-Identifier: Apache-2.0

// What does it cost to roll back a cache of t tokens, to fork it, to save and load it? One head on one thread; bytes
// are the cache's own after that. And how many tokens a second does a layer give to many sequences, one call for all of
// them against a call for each? And does a batch wait for its longest sequence?
#include <optional>
#include <sstream>
#include <vector>

#include <castle/extend.hpp>
#include <castle/layer.hpp>

#include "decoding.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;
using castle_bench::measure;

constexpr Index d = 64;

castle::UqKvCache<float> filled(Index t, Index window) {
    castle::UqKvCache<float> cache(castle_bench::heads_of(d), {.lookahead_window = window});
    castle_bench::fill(cache, t);
    return cache;
}

// Tokens [0, count) of a block, again and again.
void advance(castle::UqKvCache<float>& cache, Index count) {
    static const castle_bench::NewTokens tokens(castle_bench::heads_of(d));
    Matrix out(1, d);
    for (Index i = 0; i < count; ++i) castle::extend(cache, tokens.token(i % castle_bench::block_size), out);
}

// The last eight tokens of `tokens` onto t; t begins a block.
void rollback(benchmark::State& state, Index window, Index tokens) {
    castle::UqKvCache<float> cache = filled(state.range(0), window);
    measure(
        state, [&] { advance(cache, tokens); }, [&] { cache.rollback(8); }, [&] { cache.rollback(tokens - 8); });
}

void fork(benchmark::State& state, Index window) {
    const castle::UqKvCache<float> cache = filled(state.range(0), window);
    std::optional<castle::UqKvCache<float>> other;
    measure(
        state, [] {}, [&] { other = cache.fork(); }, [&] { other.reset(); });
}

// The first tokens onto a fork, which then needs memory of its own.
void after_fork(benchmark::State& state, Index window, Index tokens) {
    const castle::UqKvCache<float> cache = filled(state.range(0), window);
    std::optional<castle::UqKvCache<float>> other;
    double owned = 0, shared = 0;
    measure(
        state, [&] { other = cache.fork(); }, [&] { advance(*other, tokens); },
        [&] {
            owned = castle_bench::number(other->bytes().owned);
            shared = castle_bench::number(other->bytes().shared);
            other.reset();
        });
    state.counters["owned"] = owned;
    state.counters["shared"] = shared;
}

void save(benchmark::State& state, Index window) {
    const castle::UqKvCache<float> cache = filled(state.range(0), window);
    std::stringstream file;
    measure(
        state, [&] { file.str({}); }, [&] { cache.save(file); }, [] {});
    state.counters["bytes"] = castle_bench::number(Index(file.str().size()));
}

void load(benchmark::State& state, Index window) {
    std::stringstream file;
    filled(state.range(0), window).save(file);
    measure(
        state, [&] { file.seekg(0); }, [&] { benchmark::DoNotOptimize(castle::UqKvCache<float>::load(file)); }, [] {});
}

void sizes(benchmark::internal::Benchmark* benchmark) {
    // What is timed is short beside what prepares it, so that the time alone would ask for ever more iterations.
    benchmark->ArgName("t")->Arg(1024)->Arg(16384)->Iterations(20)->Unit(benchmark::kMicrosecond);
    castle_bench::report_extremes(benchmark)->UseManualTime();
}

BENCHMARK_CAPTURE(rollback, open_block_no_window, castle::unlimited, 16)->Apply(sizes);
BENCHMARK_CAPTURE(rollback, finished_block_no_window, castle::unlimited, 36)->Apply(sizes);
BENCHMARK_CAPTURE(rollback, finished_block_window_128, 128, 36)->Apply(sizes);
BENCHMARK_CAPTURE(fork, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(fork, window_128, 128)->Apply(sizes);
BENCHMARK_CAPTURE(after_fork, a_token_no_window, castle::unlimited, 1)->Apply(sizes);
BENCHMARK_CAPTURE(after_fork, a_token_window_128, 128, 1)->Apply(sizes);
BENCHMARK_CAPTURE(after_fork, a_block_no_window, castle::unlimited, 32)->Apply(sizes);
BENCHMARK_CAPTURE(after_fork, a_block_window_128, 128, 32)->Apply(sizes);
BENCHMARK_CAPTURE(save, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(load, no_window, castle::unlimited)->Apply(sizes);

constexpr Index d_model = 896;

// The paper's small model with a window; sequences of t tokens. `together` decides between one call and a call for
// each.
void texts(benchmark::State& state, bool together) {
    const castle::Layer<float> layer({.d_model = d_model, .heads = 8, .d_head = d, .seed = 1},
                                     {.lookahead_window = 128});
    const Index t = state.range(0), count = state.range(1);
    const Matrix prompt = Matrix::Random(t, d_model), x = Matrix::Random(count, d_model);
    Matrix y(count, d_model);
    std::vector<castle::LayerCache<float>> caches;
    std::vector<castle::LayerCache<float>*> batch;
    caches.push_back(layer.make_cache());
    layer.extend(caches.front(), prompt);
    for (Index i = 1; i < count; ++i) caches.push_back(caches.front().fork());
    for (auto& cache : caches) batch.push_back(&cache);
    const std::vector<Index> counts(std::size_t(count), 1);
    for (auto _ : state) {
        if (together) {
            layer.extend(batch, counts, x, y);
        } else {
            for (Index i = 0; i < count; ++i) layer.extend(caches[std::size_t(i)], x.row(i), y.row(i));
        }
        benchmark::DoNotOptimize(y.data());
        benchmark::ClobberMemory();
        if (caches.front().size() - t == castle::default_rollback) {
            state.PauseTiming();
            for (auto& cache : caches) cache.rollback(castle::default_rollback);
            state.ResumeTiming();
        }
    }
    castle_bench::count_tokens(state, count);
}

void text_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"t", "texts"})->ArgsProduct({{512}, {1, 8, 32}})->Unit(benchmark::kMicrosecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(texts, together, true)->Apply(text_sizes);
BENCHMARK_CAPTURE(texts, one_by_one, false)->Apply(text_sizes);

// A token onto each of many caches of a head, of 64 tokens each but for one that has t. Sizes are set back after each
// step.
void uneven(benchmark::State& state, bool together) {
    const Index count = state.range(0);
    const castle::Shape shape = castle_bench::heads_of(d);
    const Matrix x = Matrix::Random(count, castle_bench::columns_of(shape));
    const castle::Input<float> tokens = castle_bench::input_in(x, shape);
    Matrix out(count, d);
    std::vector<Index> lengths(std::size_t(count), 64);
    lengths[std::size_t(count / 2)] = state.range(1);
    std::vector<castle::UqKvCache<float>> caches;
    std::vector<castle::UqKvCache<float>*> batch;
    for (const Index length : lengths) {
        caches.emplace_back(shape, castle::Options{}, /*rollback=*/0);
        castle_bench::fill(caches.back(), length);
    }
    for (auto& cache : caches) batch.push_back(&cache);
    const std::vector<Index> counts(std::size_t(count), 1);
    for (auto _ : state) {
        if (together) {
            castle::extend<float>(batch, counts, tokens, out);
        } else {
            for (Index i = 0; i < count; ++i) castle::extend(caches[std::size_t(i)], tokens.tokens(i, 1), out.row(i));
        }
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
        for (std::size_t i = 0; i < caches.size(); ++i) {
            castle::detail::CacheAccess::state(caches[i]).set_size(lengths[i]);
        }
    }
}

void uneven_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"texts", "t"})->ArgsProduct({{512}, {64, 131072}})->Unit(benchmark::kMicrosecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(uneven, together, true)->Apply(uneven_sizes);
BENCHMARK_CAPTURE(uneven, one_by_one, false)->Apply(uneven_sizes);

}  // namespace
