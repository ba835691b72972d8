// SPDX-License-Identifier: Apache-2.0

// What does a whole layer cost, projections included, against standard attention with as many parameters? The sizes
// are those of the paper's small model: d_model 896, heads of 64, 8 of them against 14. tokens/s compares the two;
// FLOP/s counts the projections' products beside the heads'. And what does the backward pass cost against the forward
// pass before it, for a few tokens, where reading weights and adding up their gradients counts, and for many?
#include <chrono>

#include <castle/multi_head.hpp>

#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

constexpr Index d_model = 896;
constexpr Index d_head = 64;
constexpr Index castle_heads = 8;
constexpr Index causal_heads = 14;

castle::MultiHeadConfig config(Index heads) {
    return {.d_model = d_model, .heads = heads, .d_head = d_head, .rotary = castle::Rotary{}, .seed = 1};
}

castle::MultiHeadCastle<float> castle_layer(Index window, Index threads) {
    return castle::MultiHeadCastle<float>(config(castle_heads),
                                          {.lookahead_window = window, .executor = castle_bench::executor(threads)});
}

castle::MultiHeadCausal<float> causal_layer(Index threads) {
    return castle::MultiHeadCausal<float>(config(causal_heads), {.executor = castle_bench::executor(threads)});
}

void count_tokens(benchmark::State& state, Index tokens) {
    state.counters["tokens/s"] =
        benchmark::Counter(castle_bench::number(tokens), benchmark::Counter::kIsIterationInvariantRate);
}

template <class Layer>
void forward(benchmark::State& state, const Layer& layer, double attention_flops) {
    const Index length = state.range(0);
    const Matrix x = Matrix::Random(length, d_model);
    Matrix y(length, d_model);
    for (auto _ : state) {
        layer.forward(x, y);
        benchmark::DoNotOptimize(y.data());
        benchmark::ClobberMemory();
    }
    count_tokens(state, length);
    castle_bench::count_flops(state, attention_flops + 2 * castle_bench::number(length * layer.parameters()),
                              state.range(1));
}

// One token onto a cache of t and up to 63 more; then it is filled anew, which is not timed.
template <class Layer>
void decode(benchmark::State& state, const Layer& layer) {
    const Index first = state.range(0);
    const Index last = first + 64;
    const Matrix x = Matrix::Random(last, d_model);
    Matrix y(last, d_model);
    castle::MultiHeadCache<float> cache = layer.make_cache();
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
    count_tokens(state, 1);
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

// One pass of training; the other one, which every repetition of it needs, is run and not counted.
enum class Pass { forward, backward };

void training(benchmark::State& state, Pass counted) {
    using Clock = std::chrono::steady_clock;
    const Index length = state.range(0), width = 768;
    const castle::MultiHeadCastle<float> layer(
        {.d_model = width, .heads = width / d_head, .d_head = d_head, .rotary = castle::Rotary{}, .seed = 1});
    castle::MultiHeadWorkspace<float> workspace = layer.make_workspace();
    castle::MultiHeadWeights<float> d_weights = layer.weights();
    const Matrix x = Matrix::Random(length, width), d_y = Matrix::Random(length, width);
    Matrix y(length, width), d_x(length, width);
    const auto seconds = [](auto pass) {
        const Clock::time_point start = Clock::now();
        pass();
        benchmark::ClobberMemory();
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double forward = 0, backward = 0;
    for (auto _ : state) {
        const double first = seconds([&] { layer.forward(workspace, x, y); });
        const double second = seconds([&] { layer.backward(workspace, x, d_y, d_x, d_weights); });
        benchmark::DoNotOptimize(y.data());
        benchmark::DoNotOptimize(d_x.data());
        forward += first;
        backward += second;
        state.SetIterationTime(counted == Pass::forward ? first : second);
    }
    state.counters["backward/forward"] = backward / forward;
}

std::vector<Index> threads() {
#ifdef _OPENMP
    return {1, 2};
#else
    return {1};
#endif
}

void forward_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"L", "threads"})->ArgsProduct({{512, 2048}, threads()})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}
void decoding_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"t", "threads"})->ArgsProduct({{2048}, threads()})->Unit(benchmark::kMicrosecond);
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
