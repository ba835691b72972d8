// SPDX-License-Identifier: Apache-2.0

// How fast is each form over a whole sequence, one head on one thread? FLOP/s are useful ones, see support.hpp.
#include <castle/attention.hpp>
#include <castle/reference/dense.hpp>
#include <castle/reference/recurrent.hpp>

#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

template <class Form>
void forward(benchmark::State& state, const Form& form, double flops) {
    const Index length = state.range(0), d = state.range(1);
    const castle_bench::RandomInput head(length, castle_bench::heads_of(d));
    Matrix out(length, d);
    for (auto _ : state) {
        form(head.input(), out);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, flops);
}

void parallel(benchmark::State& state, Index window) {
    forward(
        state,
        [&](const castle::Input<float>& head, Matrix& out) {
            castle::parallel(head, out, {.lookahead_window = window});
        },
        castle_bench::castle_flops(state.range(0), state.range(1), window));
}

void causal_attention(benchmark::State& state) {
    forward(
        state, [](const castle::Input<float>& head, Matrix& out) { castle_bench::standard_attention(head, out); },
        castle_bench::causal_flops(state.range(0), state.range(1)));
}

void recurrent(benchmark::State& state) {
    forward(
        state, [](const castle::Input<float>& head, Matrix& out) { castle::recurrent(head, out); },
        castle_bench::castle_flops(state.range(0), state.range(1), castle::unlimited));
}

// O(L^3), counted as if it were not: the rate is comparable with the others'.
void dense(benchmark::State& state) {
    Eigen::setNbThreads(1);  // where there is OpenMP, Eigen would take all of them
    forward(
        state, [](const castle::Input<float>& head, Matrix& out) { out = castle::dense::output(head); },
        castle_bench::castle_flops(state.range(0), state.range(1), castle::unlimited));
}

void over(benchmark::internal::Benchmark* benchmark, const std::vector<Index>& lengths) {
    benchmark->ArgNames({"L", "d"})->ArgsProduct({lengths, {64, 128}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}
void all_lengths(benchmark::internal::Benchmark* benchmark) { over(benchmark, {512, 2048, 4096}); }
void short_lengths(benchmark::internal::Benchmark* benchmark) { over(benchmark, {512}); }

BENCHMARK_CAPTURE(parallel, no_window, castle::unlimited)->Apply(all_lengths);
BENCHMARK_CAPTURE(parallel, window_128, 128)->Apply(all_lengths);
BENCHMARK(causal_attention)->Apply(all_lengths);
BENCHMARK(recurrent)->Apply(short_lengths);
BENCHMARK(dense)->Apply(short_lengths);

}  // namespace
