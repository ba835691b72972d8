// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>
#include <castle/attention.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>

#include "machine.hpp"

// What the benchmarks share: random input, how useful work is counted, and against what.
namespace castle_bench {

using castle::Index;
using Matrix = castle::Matrix<float>;

/// Query heads of size `d` on key-value heads of the same size, side by side.
inline castle::Shape heads_of(Index d, Index heads = 1, Index kv_heads = 1) {
    return {.d = d, .dv = d, .heads = heads, .kv_heads = kv_heads};
}

/// The six projections of `shape` in one matrix, side by side, `[L, columns_of(shape)]`, where `dv = d`.
inline Index columns_of(const castle::Shape& shape) { return (shape.heads + 5 * shape.kv_heads) * shape.d; }
inline castle::Input<float> input_in(castle::ConstMatrixView<float> projections, const castle::Shape& shape) {
    const auto part = [&](Index i) {
        return projections.middle_cols((shape.heads + i * shape.kv_heads) * shape.d, shape.kv_heads * shape.d);
    };
    return {.causal = {.q = projections.middle_cols(0, shape.heads * shape.d), .k = part(0), .v = part(1)},
            .lookahead = {.q = part(2), .k = part(3), .v = part(4)}};
}

/// Random projections, normally distributed.
class RandomInput {
  public:
    RandomInput(Index length, const castle::Shape& shape) : elements_(length, columns_of(shape)), shape_(shape) {
        std::mt19937 generator(1);
        std::normal_distribution<float> normal;
        for (Index i = 0; i < elements_.size(); ++i) elements_.data()[i] = normal(generator);
    }

    castle::Input<float> input() const { return input_in(elements_, shape_); }

  private:
    Matrix elements_;
    castle::Shape shape_;
};

/// Standard attention, which reads the causal projections alone.
inline void standard_attention(const castle::Input<float>& input, castle::MatrixView<float> out) {
    castle::parallel(castle::Input<float>{.causal = input.causal}, out, {.lookahead_window = 0});
}

/// Heads that come to as many parameters: seven matrices a head of CASTLE, four of standard attention.
inline constexpr Index castle_heads = 8;
inline constexpr Index causal_heads = 14;

inline double number(Index n) { return static_cast<double>(n); }

/// Useful operations of CASTLE over L tokens, counting a multiplication with its addition as two, and nothing but
/// products: exponentials, masks and packing are overhead.
///
/// Of the L^2 / 2 pairs of a query t and an earlier key s each takes three products of size d: two for the scores,
/// q^C.k^C and q^C.U_s, and one for the output. Where s absorbs t, that is t - s <= W, the gate k^U.q^U and the
/// addition of gate v^U to U_s are two more. Pairs within the window: L W - W^2 / 2. In all
///     3 L^2 d + 2 (2 L W - W^2) d,
/// which is 5 L^2 d without a window (W >= L).
inline double castle_flops(Index length, Index d, Index window) {
    const double l = number(length);
    const double w = number(std::min(window, length));
    return (3 * l * l + 2 * (2 * l * w - w * w)) * number(d);
}

/// The same of standard causal attention, q.k and the output: 2 L^2 d.
inline double causal_flops(Index length, Index d) { return 2 * number(length) * number(length) * number(d); }

/// Of the backward pass: of such a pair eight products, and six more where s absorbs t; 14 L^2 d without a window.
inline double castle_backward_flops(Index length, Index d, Index window) {
    const double l = number(length);
    const double w = number(std::min(window, length));
    return (8 * l * l + 6 * (2 * l * w - w * w)) * number(d);
}

/// The same of standard causal attention: 5 L^2 d.
inline double causal_backward_flops(Index length, Index d) { return 2.5 * causal_flops(length, d); }

/// Useful operations a second, from those of one iteration, and the fraction that they are of `threads` cores' peak.
inline void count_flops(benchmark::State& state, double flops, Index threads = 1) {
    constexpr auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["FLOP/s"] = benchmark::Counter(flops, rate);
    state.counters["of_peak"] = benchmark::Counter(flops / (peak() * number(threads)), rate);
}

/// Bytes a second, from those of one iteration, or of an average one, and the fraction of one core's bandwidth, which
/// was measured just before.
inline void count_bytes(benchmark::State& state, double bytes, double bandwidth) {
    constexpr auto rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["bytes/s"] = benchmark::Counter(bytes, rate, benchmark::Counter::OneK::kIs1024);
    state.counters["bandwidth"] =
        benchmark::Counter(bandwidth, benchmark::Counter::kDefaults, benchmark::Counter::OneK::kIs1024);
    state.counters["of_bandwidth"] = benchmark::Counter(bytes / bandwidth, rate);
}

/// Tokens a second, from those of one iteration.
inline void count_tokens(benchmark::State& state, Index tokens) {
    state.counters["tokens/s"] = benchmark::Counter(number(tokens), benchmark::Counter::kIsIterationInvariantRate);
}

/// Times call() alone, between prepare() before it and restore() after it; for benchmarks with UseManualTime.
template <class Prepare, class Call, class Restore>
void measure(benchmark::State& state, const Prepare& prepare, const Call& call, const Restore& restore) {
    for (auto _ : state) {
        prepare();
        const auto start = std::chrono::steady_clock::now();
        call();
        benchmark::ClobberMemory();
        state.SetIterationTime(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
        restore();
    }
}

/// `threads` threads, or the calling one alone.
inline castle::Executor executor([[maybe_unused]] Index threads) {
#ifdef _OPENMP
    if (threads > 1) return castle::openmp_executor(static_cast<int>(threads));
#endif
    return {};
}

/// The numbers of threads to compare.
inline std::vector<Index> thread_counts() {
#ifdef _OPENMP
    return {1, 2};
#else
    return {1};
#endif
}

/// Has the best of all repetitions reported beside their mean: on a machine that others use as well, it is what
/// disturbs the least. Times as their minimum, rates as their maximum.
inline benchmark::internal::Benchmark* report_extremes(benchmark::internal::Benchmark* benchmark) {
    return benchmark
        ->ComputeStatistics("min", [](const std::vector<double>& v) { return *std::min_element(v.begin(), v.end()); })
        ->ComputeStatistics("max", [](const std::vector<double>& v) { return *std::max_element(v.begin(), v.end()); });
}
inline void report_best(benchmark::internal::Benchmark* benchmark) { report_extremes(benchmark)->UseRealTime(); }

}  // namespace castle_bench
