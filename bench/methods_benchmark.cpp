// SPDX-License-Identifier: Apache-2.0

// What light future-aware attention costs beside causal attention, and what its full form does: prefill of a prompt of
// which three quarters are visual, and a generated token. Standard attention, 8 heads of 64, one thread.
#include <string>
#include <vector>

#include <castle/attention.hpp>
#include <castle/cache.hpp>
#include <castle/extend.hpp>
#include <castle/methods/future_aware.hpp>

#include "support.hpp"

namespace {

using castle::Index;
using castle::methods::LightFuture;
using castle::methods::LightFutureInput;
using castle::methods::Pooling;
using castle_bench::Matrix;

constexpr castle::Shape shape{.d = 64, .dv = 64, .heads = 8, .kv_heads = 8};
const castle::Options standard{.lookahead_window = 0};

// Text, images, text.
std::vector<bool> prompt(Index length) {
    std::vector<bool> visual(std::size_t(length), false);
    for (Index t = length / 8; t < length * 7 / 8; ++t) visual[std::size_t(t)] = true;
    return visual;
}

const castle_bench::RandomInput& input_of(Index length) {
    static const castle_bench::RandomInput random(length, shape);
    return random;
}

template <class Form>
void prefill(benchmark::State& state, const Form& form) {
    const Index length = state.range(0);
    Matrix out(length, shape.heads * shape.dv);
    for (auto _ : state) {
        form(castle::Input<float>{.causal = input_of(length).input().causal}, out);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
}

void prefill_causal(benchmark::State& state) {
    prefill(state,
            [](const castle::Input<float>& input, Matrix& out) { castle::parallel(shape, input, out, standard); });
}
void prefill_light(benchmark::State& state, Pooling pooling) {
    const LightFuture light{.visual = prompt(state.range(0)), .pooling = pooling};
    prefill(state, [&](const castle::Input<float>& input, Matrix& out) {
        const LightFutureInput<float> wide(shape, input, light, standard);
        castle::parallel(wide.shape(), wide.input(), out, wide.options());
    });
}
// The prompt's rows see later ones, so a generated token makes all of it be computed again in a model of many layers.
void prefill_full(benchmark::State& state) {
    const castle::Mask mask = castle::masks::modality(prompt(state.range(0)), castle::Future::all);
    prefill(state, [&](const castle::Input<float>& input, Matrix& out) {
        castle::parallel(shape, input, out, standard, mask);
    });
}

// 32 tokens after the prompt, which are taken back.
template <class Token>
void decode(benchmark::State& state, const castle::Shape& own, const castle::Options& options, const Token& token) {
    const Index length = state.range(0);
    constexpr Index steps = 32;
    castle::UqKvCache<float> cache(own, options, steps);
    cache.reserve(length + steps);
    token(cache, 0, length);
    castle_bench::measure(
        state, [] {},
        [&] {
            for (Index t = 0; t < steps; ++t) token(cache, length, 1);
        },
        [&] { cache.rollback(steps); });
}
void decode_causal(benchmark::State& state) {
    const castle::Input<float> input{.causal = input_of(state.range(0)).input().causal};
    Matrix out(state.range(0), shape.heads * shape.dv);
    decode(state, shape, standard, [&](castle::UqKvCache<float>& cache, Index, Index count) {
        castle::extend(cache, input.tokens(0, count), castle::MatrixView<float>(out).middle_rows(0, count));
    });
}
void decode_light(benchmark::State& state) {
    const castle::Input<float> input{.causal = input_of(state.range(0)).input().causal};
    const LightFuture light{.visual = prompt(state.range(0))};
    Matrix out(state.range(0), shape.heads * shape.dv);
    const LightFutureInput<float> whole(shape, input, light, standard);
    decode(state, whole.shape(), whole.options(), [&](castle::UqKvCache<float>& cache, Index first, Index count) {
        const LightFutureInput<float> rows(shape, input.tokens(0, count), light, standard, first);
        castle::extend(cache, rows.input(), castle::MatrixView<float>(out).middle_rows(0, count));
    });
}

void lengths(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgName("L")->Arg(2048)->Unit(benchmark::kMillisecond);
}
void by_wall_clock(benchmark::internal::Benchmark* benchmark) {
    lengths(benchmark);
    castle_bench::report_best(benchmark);
}
void by_hand(benchmark::internal::Benchmark* benchmark) {
    lengths(benchmark);
    castle_bench::report_extremes(benchmark)->UseManualTime();
}

BENCHMARK(prefill_causal)->Apply(by_wall_clock);
BENCHMARK_CAPTURE(prefill_light, max, Pooling::max)->Apply(by_wall_clock);
BENCHMARK_CAPTURE(prefill_light, mean, Pooling::mean)->Apply(by_wall_clock);
BENCHMARK(prefill_full)->Apply(by_wall_clock);
BENCHMARK(decode_causal)->Apply(by_hand);
BENCHMARK(decode_light)->Apply(by_hand);

}  // namespace
