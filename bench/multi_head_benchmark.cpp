// SPDX-License-Identifier: Apache-2.0

// What does a whole layer cost, projections included, against standard attention with as many parameters? The sizes
// are those of the paper's small model: d_model 896, heads of 64, 8 of them against 14. tokens/s compares the two;
// FLOP/s counts the projections' products beside the heads'. And what does the backward pass cost against the forward
// pass before it, for a few tokens, where reading weights and adding up their gradients counts, and for many?
#include <castle/layer.hpp>

#include "support.hpp"
#include "training.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;
using castle_bench::Pass;

constexpr Index d_model = 896;
constexpr Index d_head = 64;
constexpr Index castle_heads = 8;
constexpr Index causal_heads = 14;

castle::Layer<float> layer_of(Index heads, Index window, Index threads) {
    return castle::Layer<float>(
        {.d_model = d_model, .heads = heads, .d_head = d_head, .rotary = castle::Rotary{}, .seed = 1},
        {.lookahead_window = window, .executor = castle_bench::executor(threads)});
}

castle::Layer<float> castle_layer(Index window, Index threads) { return layer_of(castle_heads, window, threads); }
castle::Layer<float> causal_layer(Index threads) { return layer_of(causal_heads, /*window=*/0, threads); }

void forward(benchmark::State& state, const castle::Layer<float>& layer, double attention_flops) {
    const Index length = state.range(0);
    const Matrix x = Matrix::Random(length, d_model);
    Matrix y(length, d_model);
    for (auto _ : state) {
        layer.forward(x, y);
        benchmark::DoNotOptimize(y.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_tokens(state, length);
    castle_bench::count_flops(state, attention_flops + 2 * castle_bench::number(length * layer.parameters()),
                              state.range(1));
}

// One token onto a cache of t and up to 63 more; then it is filled anew, which is not timed.
void decode(benchmark::State& state, const castle::Layer<float>& layer) {
    const Index first = state.range(0);
    const Index last = first + 64;
    const Matrix x = Matrix::Random(last, d_model);
    Matrix y(last, d_model);
    castle::LayerCache<float> cache = layer.make_cache();
    cache.reserve(last);
    const auto fill = [&] {
        cache.clear();
        layer.extend(cache, x.topRows(first), y.topRows(first));
    };

    fill();
    for (auto _ : state) {
        if (cache.size() == last) {
            state.PauseTiming();
            fill();
            state.ResumeTiming();
        }
        const Index t = cache.size();
        layer.extend(cache, x.middleRows(t, 1), y.middleRows(t, 1));
        benchmark::DoNotOptimize(y.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_tokens(state, 1);
}

void castle_forward(benchmark::State& state, Index window) {
    forward(state, castle_layer(window, state.range(1)),
            castle_heads * castle_bench::castle_flops(state.range(0), d_head, window));
}
void causal_forward(benchmark::State& state) {
    forward(state, causal_layer(state.range(1)), causal_heads * castle_bench::causal_flops(state.range(0), d_head));
}
void castle_decoding(benchmark::State& state, Index window) { decode(state, castle_layer(window, state.range(1))); }
void causal_decoding(benchmark::State& state) { decode(state, causal_layer(state.range(1))); }

void training(benchmark::State& state, Pass counted) {
    const Index length = state.range(0), width = 768;
    const castle::Layer<float> layer(
        {.d_model = width, .heads = width / d_head, .d_head = d_head, .rotary = castle::Rotary{}, .seed = 1});
    castle::LayerWorkspace<float> workspace = layer.make_workspace();
    castle::LayerWeights<float> d_weights = layer.zero_gradient();
    const Matrix x = Matrix::Random(length, width), d_y = Matrix::Random(length, width);
    Matrix y(length, width), d_x(length, width);
    castle_bench::measure_pass(
        state, counted,
        [&] {
            layer.forward(workspace, x, y);
            benchmark::DoNotOptimize(y.data());
        },
        [&] {
            layer.backward(workspace, x, d_y, d_x, d_weights);
            benchmark::DoNotOptimize(d_x.data());
        });
}

void forward_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"L", "threads"})
        ->ArgsProduct({{512, 2048}, castle_bench::thread_counts()})
        ->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}
void decoding_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"t", "threads"})
        ->ArgsProduct({{2048}, castle_bench::thread_counts()})
        ->Unit(benchmark::kMicrosecond);
    castle_bench::report_best(benchmark);
}

void training_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgName("L")->Arg(16)->Arg(1024)->Unit(benchmark::kMillisecond);
    castle_bench::report_extremes(benchmark)->UseManualTime();
}

BENCHMARK_CAPTURE(castle_forward, no_window, castle::unlimited)->Apply(forward_sizes);
BENCHMARK_CAPTURE(castle_forward, window_128, 128)->Apply(forward_sizes);
BENCHMARK(causal_forward)->Apply(forward_sizes);
BENCHMARK_CAPTURE(castle_decoding, no_window, castle::unlimited)->Apply(decoding_sizes);
BENCHMARK_CAPTURE(castle_decoding, window_128, 128)->Apply(decoding_sizes);
BENCHMARK(causal_decoding)->Apply(decoding_sizes);
BENCHMARK_CAPTURE(training, forward, Pass::forward)->Apply(training_sizes);
BENCHMARK_CAPTURE(training, backward, Pass::backward)->Apply(training_sizes);

}  // namespace
