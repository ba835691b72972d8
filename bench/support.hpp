// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>

#include "machine.hpp"

// What the benchmarks share: random input, how useful work is counted, and against what.
namespace castle_bench {

using castle::Index;
using Matrix = castle::Matrix<float>;

/// Random projections of one head, normally distributed.
class RandomHead {
  public:
    RandomHead(Index length, Index d) : numbers_(length, 6 * d), d_(d) {
        std::mt19937 generator(1);
        std::normal_distribution<float> normal;
        for (Index i = 0; i < numbers_.size(); ++i) numbers_.data()[i] = normal(generator);
    }

    castle::HeadInput<float> input() const {
        const auto part = [&](Index i) { return numbers_.middleCols(i * d_, d_); };
        return {.causal = {.q = part(0), .k = part(1), .v = part(2)},
                .lookahead = {.q = part(3), .k = part(4), .v = part(5)}};
    }

  private:
    Matrix numbers_;
    Index d_;
};

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

/// `threads` threads, or the calling one alone.
inline castle::Executor executor([[maybe_unused]] Index threads) {
#ifdef _OPENMP
    if (threads > 1) return castle::openmp_executor(static_cast<int>(threads));
#endif
    return {};
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
