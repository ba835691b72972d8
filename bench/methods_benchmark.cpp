// SPDX-License-Identifier: Apache-2.0

// What the methods cost beside causal attention. Standard attention, heads of 64, one thread.
//
// Light future-aware attention and its full form: prefill of a prompt of which three quarters are visual, and a
// generated token, 8 heads. Dynamic windowed attention over time: a long series, 2 heads, the forward pass and the
// whole step.
#include <string>
#include <vector>

#include <castle/attention.hpp>
#include <castle/backward.hpp>
#include <castle/cache.hpp>
#include <castle/extend.hpp>
#include <castle/methods/future_aware.hpp>
#include <castle/methods/temporal.hpp>
#include <castle/workspace.hpp>

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

// With the gradient of the decay, where there is one.
struct Series {
    static constexpr castle::Shape shape{.d = 64, .dv = 64, .heads = 2, .kv_heads = 2};

    explicit Series(Index length) : out(length, shape.heads * shape.dv), d_out(Matrix::Random(length, out.cols())) {
        const castle_bench::RandomInput random(length, shape);
        const auto& causal = random.input().causal;
        q = causal.q.map();
        k = causal.k.map();
        v = causal.v.map();
    }

    castle::Input<float> input() const { return {.causal = {.q = q, .k = k, .v = v}, .lookahead = {}}; }

    Matrix q, k, v, out, d_out;
};
void series_causal(benchmark::State& state) {
    Series series(state.range(0));
    castle::UqKvCache<float> cache(Series::shape, standard);
    for (auto _ : state) {
        cache.clear();
        castle::extend(cache, series.input(), series.out);
        benchmark::ClobberMemory();
    }
}
void series_windowed(benchmark::State& state) {
    Series series(state.range(0));
    const castle::methods::Temporal temporal{.window = 32};
    // Some rows at a time, for which a cache that lets go of what is behind the window is made.
    constexpr Index piece = 256;
    const castle::Input<float> input = series.input();
    castle::methods::TemporalInput<float> wide(Series::shape, input.tokens(0, piece), temporal, standard);
    castle::UqKvCache<float> cache(wide.shape(), wide.options(), 0, temporal.window / 2 + 1);
    for (auto _ : state) {
        cache.clear();
        for (Index first = 0; first < state.range(0); first += piece) {
            wide.set_input(input.tokens(first, piece), first);
            castle::extend(cache, wide.input(), castle::MatrixView<float>(series.out).middle_rows(first, piece));
        }
        benchmark::ClobberMemory();
    }
}
void series_step_causal(benchmark::State& state) {
    Series series(state.range(0));
    castle::Workspace<float> workspace(Series::shape, standard);
    castle::Gradient<float> gradient(state.range(0), Series::shape, false);
    for (auto _ : state) {
        castle::forward(workspace, series.input(), series.out);
        castle::backward(workspace, series.input(), series.d_out, gradient.view());
        benchmark::ClobberMemory();
    }
}
void series_step_windowed(benchmark::State& state) {
    Series series(state.range(0));
    const castle::methods::Temporal temporal{.window = 32};
    castle::methods::TemporalInput<float> wide(Series::shape, series.input(), temporal, standard);
    castle::Workspace<float> workspace(wide.shape(), wide.options());
    castle::Gradient<float> of_input(state.range(0), wide.shape(), false);
    castle::Gradient<float> gradient(state.range(0), Series::shape, false);
    Matrix table = Matrix::Zero(1, temporal.window / 2 + 1);
    for (auto _ : state) {
        wide.set_input(series.input());
        wide.set_gammas(temporal.gammas);
        workspace.set_terms(wide.options().terms);
        castle::forward(workspace, wide.input(), {.out = series.out}, wide.mask());
        castle::backward(workspace, wide.input(), castle::OutputGradient<float>{.out = series.d_out}, of_input.view(),
                         castle::TermsGradientView<float>{.factor = table});
        wide.gradient(of_input, gradient.view());
        benchmark::DoNotOptimize(wide.gamma_gradient(table));
        benchmark::ClobberMemory();
    }
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

void long_series(benchmark::internal::Benchmark* benchmark) {
    castle_bench::report_best(benchmark->ArgName("L")->Arg(8192)->Unit(benchmark::kMillisecond));
}

BENCHMARK(series_causal)->Apply(long_series);
BENCHMARK(series_windowed)->Apply(long_series);
BENCHMARK(series_step_causal)->Apply(long_series);
BENCHMARK(series_step_windowed)->Apply(long_series);

}  // namespace
