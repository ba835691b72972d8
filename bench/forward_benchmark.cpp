// SPDX-License-Identifier: Apache-2.0

// How fast is each form over a whole sequence, one head on one thread? FLOP/s are useful ones, see support.hpp;
// bytes/s are those that no form can avoid: every projection read once and the output written once.
#include <castle/causal.hpp>
#include <castle/dense.hpp>
#include <castle/parallel.hpp>
#include <castle/recurrent.hpp>

#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

template <class Form>
void forward(benchmark::State& state, const Form& form, Index projections, double flops) {
    const Index length = state.range(0), d = state.range(1);
    const castle_bench::RandomHead head(length, d);
    Matrix out(length, d);
    for (auto _ : state) {
        form(head.input(), out);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, flops);
    castle_bench::count_bytes(state, castle_bench::number((projections + 1) * length * d) * sizeof(float));
}

void parallel(benchmark::State& state, Index window) {
    forward(
        state,
        [&](const castle::HeadInput<float>& head, Matrix& out) {
            castle::parallel(head, out, {.lookahead_window = window});
        },
        6, castle_bench::castle_flops(state.range(0), state.range(1), window));
}

void causal_attention(benchmark::State& state) {
    forward(
        state, [](const castle::HeadInput<float>& head, Matrix& out) { castle::causal_attention(head.causal, out); }, 3,
        castle_bench::causal_flops(state.range(0), state.range(1)));
}

void recurrent(benchmark::State& state) {
    forward(
        state, [](const castle::HeadInput<float>& head, Matrix& out) { castle::recurrent(head, out); }, 6,
        castle_bench::castle_flops(state.range(0), state.range(1), castle::unlimited));
}

// O(L^3), counted as if it were not: the rate is comparable with the others'.
void dense(benchmark::State& state) {
    Eigen::setNbThreads(1);  // where there is OpenMP, Eigen would take all of them
    forward(
        state, [](const castle::HeadInput<float>& head, Matrix& out) { out = castle::dense::output(head); }, 6,
        castle_bench::castle_flops(state.range(0), state.range(1), castle::unlimited));
}

void over(benchmark::internal::Benchmark* benchmark, const std::vector<Index>& lengths) {
    benchmark->ArgNames({"L", "d"})->ArgsProduct({lengths, {64, 128}})->UseRealTime()->Unit(benchmark::kMillisecond);
}
void long_lengths(benchmark::internal::Benchmark* benchmark) { over(benchmark, {128, 512, 2048, 8192}); }
void middle_lengths(benchmark::internal::Benchmark* benchmark) { over(benchmark, {128, 512, 2048}); }
void short_lengths(benchmark::internal::Benchmark* benchmark) { over(benchmark, {128, 512}); }

BENCHMARK_CAPTURE(parallel, no_window, castle::unlimited)->Apply(long_lengths);
BENCHMARK_CAPTURE(parallel, window_128, 128)->Apply(long_lengths);
BENCHMARK(causal_attention)->Apply(long_lengths);
BENCHMARK(recurrent)->Apply(middle_lengths);
BENCHMARK(dense)->Apply(short_lengths);

}  // namespace
