// SPDX-License-Identifier: Apache-2.0

// How do time and memory grow with the length? One head of d = 64 on one thread. numbers/(L d) is the most memory held
// at once beyond the input and the output, in elements per token and dimension.
#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <new>

#include <castle/attention.hpp>

#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

// Bytes that operator new has handed out and not got back, and the most of them since the last reset.
struct Memory {
    static inline std::size_t held = 0;
    static inline std::size_t most = 0;

    static constexpr std::size_t prefix = 64;  // where the size is kept; as much as any type here is aligned to

    static void* take(std::size_t size) {
        const std::size_t whole = (size + 2 * prefix - 1) / prefix * prefix;
        void* start = std::aligned_alloc(prefix, whole);
        if (start == nullptr) throw std::bad_alloc();
        *static_cast<std::size_t*>(start) = size;
        held += size;
        most = std::max(most, held);
        return static_cast<std::byte*>(start) + prefix;
    }
    static void give_back(void* p) noexcept {
        if (p == nullptr) return;
        void* start = static_cast<std::byte*>(p) - prefix;
        held -= *static_cast<std::size_t*>(start);
        std::free(start);
    }
};

constexpr Index d = 64;

template <class Form>
void forward(benchmark::State& state, const Form& form, double flops) {
    const Index length = state.range(0);
    const castle_bench::RandomInput head(length, castle_bench::heads_of(d));
    Matrix out(length, d);
    const std::size_t before = Memory::held;
    Memory::most = before;
    for (auto _ : state) {
        form(head.input(), out);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, flops);
    state.counters["numbers/(L d)"] =
        static_cast<double>(Memory::most - before) / sizeof(float) / castle_bench::number(length * d);
}

void parallel(benchmark::State& state, Index window) {
    forward(
        state,
        [&](const castle::Input<float>& head, Matrix& out) {
            castle::parallel(head, out, {.lookahead_window = window});
        },
        castle_bench::castle_flops(state.range(0), d, window));
}

void causal_attention(benchmark::State& state) {
    forward(
        state, [](const castle::Input<float>& head, Matrix& out) { castle_bench::standard_attention(head, out); },
        castle_bench::causal_flops(state.range(0), d));
}

void lengths(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgName("L")->RangeMultiplier(2)->Range(256, 32768)->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(parallel, no_window, castle::unlimited)->Apply(lengths);
BENCHMARK_CAPTURE(parallel, window_128, 128)->Apply(lengths);
BENCHMARK(causal_attention)->Apply(lengths);

}  // namespace

void* operator new(std::size_t size) { return Memory::take(size); }
void* operator new(std::size_t size, std::align_val_t) { return Memory::take(size); }
void operator delete(void* p) noexcept { Memory::give_back(p); }
void operator delete(void* p, std::size_t) noexcept { Memory::give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { Memory::give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { Memory::give_back(p); }
