// SPDX-License-Identifier: Apache-2.0
#include "machine.hpp"

#include <algorithm>
#include <chrono>
#include <limits>

#include <benchmark/benchmark.h>
#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/simd.hpp>

namespace castle_bench {
namespace {

using S = castle::detail::Simd<float>;
using castle::detail::unroll;

// The least time of the goes that fit into `seconds`.
template <class F>
double least_seconds(double seconds, const F& f) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double least = std::numeric_limits<double>::infinity();
    for (const auto start = Clock::now(); since(start) < seconds;) {
        const auto go = Clock::now();
        f();
        least = std::min(least, since(go));
    }
    return least;
}

double measured_peak() {
    // One register is factor and addend, and one is left to spare.
    constexpr int chains = S::registers - 2;
    constexpr int steps = 500'000;
    float one = 1;
    benchmark::DoNotOptimize(one);  // unknown to the compiler, which would do the sums itself
    const double least = least_seconds(1.5, [one] {
        S::Packet sums[chains];
        unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::zero(); });
        const auto factor = S::set(one);
        for (int step = 0; step < steps; ++step) {
            unroll<chains>([&](auto i)
                               CASTLE_INLINE_LAMBDA { sums[i] = S::in_register(S::fma(sums[i], factor, factor)); });
        }
        float total = 0;
        unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { total += S::sum(sums[i]); });
        benchmark::DoNotOptimize(total);
    });
    return 2.0 * chains * S::width * steps / least;
}

}  // namespace

double peak() {
    static const double measured = measured_peak();
    return measured;
}

double bandwidth() {
    constexpr castle::Index numbers = castle::Index(512) << 18;  // 512 MiB
    constexpr int streams = 8;
    static const castle::detail::AlignedBuffer<float> array(numbers);
    const double least = least_seconds(0.2, [] {
        S::Packet sums[streams];
        unroll<streams>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::zero(); });
        for (castle::Index at = 0; at < numbers; at += streams * S::width) {
            const float* next = array.data() + at;
            unroll<streams>([&](auto i)
                                CASTLE_INLINE_LAMBDA { sums[i] = S::add(sums[i], S::load(next + i * S::width)); });
        }
        float total = 0;
        unroll<streams>([&](auto i) CASTLE_INLINE_LAMBDA { total += S::sum(sums[i]); });
        benchmark::DoNotOptimize(total);
    });
    return static_cast<double>(numbers) * sizeof(float) / least;
}

}  // namespace castle_bench
