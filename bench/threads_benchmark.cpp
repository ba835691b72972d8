// SPDX-License-Identifier: Apache-2.0

// What do two threads bring, for a layer's worth of heads and for a single long one? d = 64. of_peak is that of all the
// cores in use.
#include <vector>

#include <castle/executor.hpp>
#include <castle/parallel.hpp>

#include "support.hpp"

#ifdef _OPENMP

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

constexpr Index d = 64;

castle::Executor executor(Index threads) {
    return threads > 1 ? castle::openmp_executor(static_cast<int>(threads)) : castle::Executor{};
}

// Heads are independent: a thread takes one after the other.
void many_heads(benchmark::State& state) {
    const Index heads = 8, length = state.range(0), threads = state.range(1);
    const castle_bench::RandomHead head(length, d);
    std::vector<Matrix> out(static_cast<std::size_t>(heads), Matrix(length, d));
    const castle::Executor run = threads > 1 ? executor(threads) : [](Index n, castle::Task task) {
        for (Index i = 0; i < n; ++i) task(i);
    };
    for (auto _ : state) {
        run(heads, [&](Index h) { castle::parallel(head.input(), out[static_cast<std::size_t>(h)]); });
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, castle_bench::number(heads) * castle_bench::castle_flops(length, d, length),
                              threads);
}

// Within a head the spans of keys are shared out.
void one_head(benchmark::State& state) {
    const Index length = state.range(0), threads = state.range(1);
    const castle_bench::RandomHead head(length, d);
    Matrix out(length, d);
    for (auto _ : state) {
        castle::parallel(head.input(), out, {.executor = executor(threads)});
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, castle_bench::castle_flops(length, d, length), threads);
}

void threads(benchmark::internal::Benchmark* benchmark, Index length) {
    benchmark->ArgNames({"L", "threads"})->ArgsProduct({{length}, {1, 2}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK(many_heads)->Apply([](benchmark::internal::Benchmark* benchmark) { threads(benchmark, 2048); });
BENCHMARK(one_head)->Apply([](benchmark::internal::Benchmark* benchmark) { threads(benchmark, 8192); });

}  // namespace

#endif
