// SPDX-License-Identifier: Apache-2.0

// What do two threads bring, for a layer's worth of heads and for a single long one? d = 64. of_peak is that of all the
// cores in use.
#include <castle/attention.hpp>
#include <castle/extend.hpp>

#include "support.hpp"

#ifdef _OPENMP

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

constexpr Index d = 64;

// Heads and their spans of keys are shared out together, as in a layer.
void many_heads(benchmark::State& state) {
    const Index heads = 8, length = state.range(0), threads = state.range(1);
    const castle::Shape shape = castle_bench::heads_of(d, heads, heads);
    const castle_bench::RandomInput input(length, shape);
    Matrix out(length, heads * d);
    castle::UqKvCache<float> cache(shape, {.executor = castle_bench::executor(threads)}, /*rollback=*/0);
    for (auto _ : state) {
        cache.clear();
        castle::extend(cache, input.input(), out);
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, castle_bench::number(heads) * castle_bench::castle_flops(length, d, length),
                              threads);
}

// Within a head the spans of keys are shared out.
void one_head(benchmark::State& state) {
    const Index length = state.range(0), threads = state.range(1);
    const castle_bench::RandomInput head(length, castle_bench::heads_of(d));
    Matrix out(length, d);
    for (auto _ : state) {
        castle::parallel(head.input(), out, {.executor = castle_bench::executor(threads)});
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
