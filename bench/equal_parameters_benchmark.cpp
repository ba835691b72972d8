// SPDX-License-Identifier: Apache-2.0

// With as many parameters, 8 heads of CASTLE against 14 of standard attention: what does a sequence cost, and what does
// a token (in decoding an iteration is 32 steps)? One thread, the heads one after the other; the projections, which are
// the same on both sides, left out.
#include <vector>

#include <castle/attention.hpp>

#include "decoding.hpp"
#include "support.hpp"

namespace {

using castle_bench::castle_heads, castle_bench::causal_heads;
using castle_bench::Index;
using castle_bench::Matrix;

// One sequence through `heads` heads: the same input to each, and an output of its own.
template <class Form>
void forward(benchmark::State& state, Index heads, const Form& form, double flops) {
    const Index length = state.range(0), d = state.range(1);
    const castle_bench::RandomInput head(length, castle_bench::heads_of(d));
    std::vector<Matrix> out(static_cast<std::size_t>(heads), Matrix(length, d));
    for (auto _ : state) {
        for (Matrix& o : out) {
            form(head.input(), o);
            benchmark::DoNotOptimize(o.data());
            benchmark::ClobberMemory();
        }
    }
    castle_bench::count_flops(state, castle_bench::number(heads) * flops);
}

void castle_forward(benchmark::State& state, Index window) {
    forward(
        state, castle_heads,
        [&](const castle::Input<float>& head, Matrix& out) {
            castle::parallel(head, out, {.lookahead_window = window});
        },
        castle_bench::castle_flops(state.range(0), state.range(1), window));
}

void causal_forward(benchmark::State& state) {
    forward(
        state, causal_heads,
        [](const castle::Input<float>& head, Matrix& out) { castle_bench::standard_attention(head, out); },
        castle_bench::causal_flops(state.range(0), state.range(1)));
}

void castle_decoding(benchmark::State& state, Index window) {
    castle_bench::decode_castle(state, state.range(0), state.range(1), castle_heads, window);
}
void causal_decoding(benchmark::State& state) {
    castle_bench::decode_causal(state, state.range(0), state.range(1), causal_heads);
}

void sequences(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"L", "d"})->ArgsProduct({{2048, 4096, 8192}, {64, 128}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}
void steps(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"t", "d"})->ArgsProduct({{4096, 16384}, {64, 128}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(castle_forward, no_window, castle::unlimited)->Apply(sequences);
BENCHMARK_CAPTURE(castle_forward, window_128, 128)->Apply(sequences);
BENCHMARK(causal_forward)->Apply(sequences);
BENCHMARK_CAPTURE(castle_decoding, no_window, castle::unlimited)->Apply(steps);
BENCHMARK_CAPTURE(castle_decoding, window_128, 128)->Apply(steps);
BENCHMARK(causal_decoding)->Apply(steps);

}  // namespace
