// SPDX-License-Identifier: Apache-2.0
#include "machine.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

#include <benchmark/benchmark.h>
#include <castle/detail/simd.hpp>
#include <castle/detail/tile.hpp>

namespace castle_bench {
namespace {

using S = castle::detail::Simd<float>;
using castle::detail::unroll;

// The least time of several goes.
template <class F>
double seconds(int goes, const F& f) {
    using Clock = std::chrono::steady_clock;
    double least = 0;
    for (int i = 0; i < goes; ++i) {
        const auto start = Clock::now();
        f();
        const double passed = std::chrono::duration<double>(Clock::now() - start).count();
        least = i == 0 ? passed : std::min(least, passed);
    }
    return least;
}

double measured_peak() {
    constexpr int chains = castle::detail::tile_rows * castle::detail::tile_packets<float>;
    constexpr int steps = 500'000;
    float one = 1;
    benchmark::DoNotOptimize(one);  // unknown to the compiler, which would do the sums itself
    const double least = seconds(50, [one] {
        S::Packet sums[chains];
        unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::zero(); });
        const auto factor = S::set(one), addend = S::set(one);
        for (int step = 0; step < steps; ++step) {
            unroll<chains>([&](auto i)
                               CASTLE_INLINE_LAMBDA { sums[i] = S::in_register(S::fma(sums[i], factor, addend)); });
        }
        float total = 0;
        unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { total += S::sum(sums[i]); });
        benchmark::DoNotOptimize(total);
    });
    return 2.0 * chains * S::width * steps / least;
}

double measured_bandwidth() {
    constexpr std::size_t numbers = std::size_t(512) << 18;  // 512 MiB
    constexpr int streams = 8;
    const std::vector<float> array(numbers, 1.0F);
    const double least = seconds(10, [&array] {
        S::Packet sums[streams];
        unroll<streams>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::zero(); });
        for (std::size_t at = 0; at < numbers; at += streams * S::width) {
            const float* next = array.data() + at;
            unroll<streams>([&](auto i)
                                CASTLE_INLINE_LAMBDA { sums[i] = S::add(sums[i], S::load(next + i * S::width)); });
        }
        float total = 0;
        unroll<streams>([&](auto i) CASTLE_INLINE_LAMBDA { total += S::sum(sums[i]); });
        benchmark::DoNotOptimize(total);
    });
    return numbers * sizeof(float) / least;
}

}  // namespace

double peak() {
    static const double measured = measured_peak();
    return measured;
}

double bandwidth() {
    static const double measured = measured_bandwidth();
    return measured;
}

}  // namespace castle_bench
