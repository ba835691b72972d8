// SPDX-License-Identifier: Apache-2.0

// What do grouped queries save? 8 query heads on 2 key-value heads against 8 on 8, d = 64, one thread: a token onto a
// cache of t tokens and the bytes of that cache (in decoding an iteration is 32 steps), and each pass over a sequence.
#include <utility>
#include <vector>

#include "decoding.hpp"
#include "training.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Pass;

constexpr Index d = 64;

castle::Shape shape_with(Index kv_heads) { return castle_bench::heads_of(d, /*heads=*/8, kv_heads); }

void decoding(benchmark::State& state) {
    const Index t = state.range(1);
    std::vector<castle::UqKvCache<float>> caches;
    caches.emplace_back(shape_with(state.range(0)));
    castle_bench::decode(state, t, std::move(caches), castle_bench::castle_bytes(t, d, castle::unlimited));
}

void pass(benchmark::State& state, Pass counted) {
    castle_bench::TrainedHeads heads(state.range(1), shape_with(state.range(0)), castle::unlimited);
    castle_bench::measure_pass(
        state, counted, [&] { heads.forward(); }, [&] { heads.backward(); });
}
void forward(benchmark::State& state) { pass(state, Pass::forward); }
void backward(benchmark::State& state) { pass(state, Pass::backward); }

void steps(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"kv_heads", "t"})->ArgsProduct({{2, 8}, {1024, 16384}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}
void sequences(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"kv_heads", "L"})->ArgsProduct({{2, 8}, {2048}})->Unit(benchmark::kMillisecond);
    castle_bench::report_extremes(benchmark)->UseManualTime();
}

BENCHMARK(decoding)->Apply(steps);
BENCHMARK(forward)->Apply(sequences);
BENCHMARK(backward)->Apply(sequences);

}  // namespace
