// SPDX-License-Identifier: Apache-2.0

// What do two threads bring, for a layer's worth of heads and for a single long one? d = 64. of_peak is that of all the
// cores in use.
#include <vector>

#include <castle/detail/forward/append.hpp>
#include <castle/parallel.hpp>

#include "support.hpp"

#ifdef _OPENMP

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

constexpr Index d = 64;

// Heads and their spans of keys are shared out together, as in a layer.
void many_heads(benchmark::State& state) {
    const Index heads = 8, length = state.range(0), threads = state.range(1);
    const castle_bench::RandomHead head(length, d);
    const castle::HeadInput<float> input = head.input();
    std::vector<Matrix> out(static_cast<std::size_t>(heads), Matrix(length, d));
    constexpr castle::HeadShape shape{.d = d, .dv = d};
    std::vector<castle::detail::HeadState<float>> states;
    for (Index h = 0; h < heads; ++h) states.emplace_back(shape, castle::Options(), castle::detail::Keeping());
    const auto head_state = [&](Index h) -> auto& { return states[static_cast<std::size_t>(h)]; };
    const Index numbers = castle::detail::extension_numbers(states.front(), 0, length);
    castle::detail::AlignedBuffer<float> memory(heads * numbers);
    const auto scratch = [&](Index h) { return memory.data() + h * numbers; };
    const castle::Executor executor = castle_bench::executor(threads);
    for (auto _ : state) {
        for (auto& one : states) one.clear();
        castle::detail::Extension<float, decltype(head_state), decltype(scratch)> extension(heads, length, head_state,
                                                                                            scratch, executor);
        extension.for_groups([&](const castle::detail::Group& group) {
            extension.run(
                group, [&](Index) -> auto& { return input; },
                [&](Index h) { return castle::detail::OutputRows<float>{.out = out[static_cast<std::size_t>(h)]}; });
        });
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
