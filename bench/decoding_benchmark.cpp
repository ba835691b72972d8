// SPDX-License-Identifier: Apache-2.0

// How long does one token take onto a cache of t tokens, and how near does that come to reading memory once? 8 heads
// on one thread. An iteration is a block of 32 steps; s/step is the time of one.
#include "decoding.hpp"

namespace {

constexpr castle_bench::Index heads = 8;

void castle_step(benchmark::State& state, castle_bench::Index window) {
    castle_bench::decode_castle(state, state.range(0), state.range(1), heads, window);
}
void causal_step(benchmark::State& state) { castle_bench::decode_causal(state, state.range(0), state.range(1), heads); }

void sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"t", "d"})->ArgsProduct({{1024, 4096, 16384}, {64, 128}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(castle_step, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(castle_step, window_128, 128)->Apply(sizes);
BENCHMARK(causal_step)->Apply(sizes);

}  // namespace
