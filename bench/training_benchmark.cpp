// SPDX-License-Identifier: Apache-2.0

// What does training cost? The backward pass of one head on one thread; and both passes, per head and with as many
// parameters, 8 heads of CASTLE against 14 of standard attention, one after the other.
#include "training.hpp"

namespace {

using castle_bench::castle_heads, castle_bench::causal_heads;
using castle_bench::Index;
using castle_bench::TrainedHeads;

TrainedHeads castle_head(const benchmark::State& state, Index window) {
    return {state.range(0), castle_bench::heads_of(state.range(1)), window};
}
TrainedHeads causal_head(const benchmark::State& state) { return castle_head(state, /*window=*/0); }

void backward(benchmark::State& state, TrainedHeads head, double flops) {
    for (auto _ : state) {
        state.PauseTiming();
        head.forward();
        state.ResumeTiming();
        head.backward();
    }
    castle_bench::count_flops(state, flops);
}

void castle_backward(benchmark::State& state, Index window) {
    backward(state, castle_head(state, window),
             castle_bench::castle_backward_flops(state.range(0), state.range(1), window));
}
void causal_backward(benchmark::State& state) {
    backward(state, causal_head(state), castle_bench::causal_backward_flops(state.range(0), state.range(1)));
}

// Both passes of `heads` heads, which are as long as so many times one head's.
void both(benchmark::State& state, Index heads, TrainedHeads head) {
    for (auto _ : state) {
        for (Index h = 0; h < heads; ++h) {
            head.forward();
            head.backward();
        }
    }
    castle_bench::count_tokens(state, state.range(0));
}

void castle_training(benchmark::State& state, Index window) { both(state, castle_heads, castle_head(state, window)); }
void causal_training(benchmark::State& state) { both(state, causal_heads, causal_head(state)); }

void sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"L", "d"})->ArgsProduct({{512, 2048, 4096}, {64, 128}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(castle_backward, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(castle_backward, window_128, 128)->Apply(sizes);
BENCHMARK(causal_backward)->Apply(sizes);
BENCHMARK_CAPTURE(castle_training, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(castle_training, window_128, 128)->Apply(sizes);
BENCHMARK(causal_training)->Apply(sizes);

}  // namespace
