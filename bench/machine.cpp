// SPDX-License-Identifier: Apache-2.0
#include "machine.hpp"

#include <algorithm>
#include <chrono>
#include <limits>

#include <benchmark/benchmark.h>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/types.hpp>

namespace castle_bench {
namespace {

using S = castle::detail::Simd<float>;
using castle::detail::unroll;

struct Goes {
    double least;  // seconds of the fastest
    double mean;   // and on average
};

// The goes that fit into `seconds`, and the one that is under way then.
template <class F>
Goes time_goes(double seconds, const F& f) {
    using Clock = std::chrono::steady_clock;
    const auto since = [](Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double least = std::numeric_limits<double>::infinity();
    const auto start = Clock::now();
    int goes = 0;
    for (; since(start) < seconds; ++goes) {
        const auto go = Clock::now();
        f();
        least = std::min(least, since(go));
    }
    return {.least = least, .mean = since(start) / goes};
}

double measured_peak() {
    // One register is factor and addend, and one is left to spare.
    constexpr int chains = S::registers - 2;
    constexpr int steps = 500'000;
    float one = 1;
    benchmark::DoNotOptimize(one);  // unknown to the compiler, which would do the sums itself
    const Goes goes = time_goes(1.5, [one] {
        S::Packet sums[chains];
        unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::zero(); });
        const auto factor = S::set(one);
        for (int step = 0; step < steps; ++step) {
            unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::opaque(S::fma(sums[i], factor, factor)); });
        }
        float total = 0;
        unroll<chains>([&](auto i) CASTLE_INLINE_LAMBDA { total += S::sum(sums[i]); });
        benchmark::DoNotOptimize(total);
    });
    return 2.0 * chains * S::width * steps / goes.least;
}

}  // namespace

double peak() {
    static const double measured = measured_peak();
    return measured;
}

double bandwidth() {
    constexpr castle::Index elements = castle::Index(512) << 18;  // 512 MiB
    constexpr int streams = 8;
    static const castle::detail::AlignedBuffer<float> array(elements);
    const Goes goes = time_goes(0.2, [] {
        S::Packet sums[streams];
        unroll<streams>([&](auto i) CASTLE_INLINE_LAMBDA { sums[i] = S::zero(); });
        for (castle::Index at = 0; at < elements; at += streams * S::width) {
            const float* next = array.data() + at;
            unroll<streams>([&](auto i)
                                CASTLE_INLINE_LAMBDA { sums[i] = S::add(sums[i], S::load(next + i * S::width)); });
        }
        float total = 0;
        unroll<streams>([&](auto i) CASTLE_INLINE_LAMBDA { total += S::sum(sums[i]); });
        benchmark::DoNotOptimize(total);
    });
    return static_cast<double>(elements) * sizeof(float) / goes.mean;
}

}  // namespace castle_bench
