// SPDX-License-Identifier: Apache-2.0
#include "machine.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <vector>

#include <benchmark/benchmark.h>
#include <castle/detail/simd.hpp>
#include <castle/detail/tile.hpp>

namespace castle_bench {
namespace {

using S = castle::detail::Simd<float>;
using castle::detail::unroll;

// The least time of the goes that fit into some seconds: long enough for a moment in which nobody else has the core.
template <class F>
double least_seconds(const F& f) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double least = std::numeric_limits<double>::infinity();
    for (const auto start = Clock::now(); since(start) < 1.5;) {
        const auto go = Clock::now();
        f();
        least = std::min(least, since(go));
    }
    return least;
}

double measured_peak() {
    constexpr int chains = castle::detail::tile_rows * castle::detail::tile_packets<float>;
    constexpr int steps = 500'000;
    float one = 1;
    benchmark::DoNotOptimize(one);  // unknown to the compiler, which would do the sums itself
    const double least = least_seconds([one] {
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
    const double least = least_seconds([&array] {
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
