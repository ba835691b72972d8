// SPDX-License-Identifier: Apache-2.0

// What does training cost? The backward pass of one head on one thread; and both passes, per head and with as many
// parameters, 8 heads of CASTLE against 14 of standard attention, one after the other.
#include <type_traits>
#include <utility>

#include <castle/backward.hpp>

#include "support.hpp"

namespace {

using castle_bench::castle_heads, castle_bench::causal_heads;
using castle_bench::Index;
using castle_bench::Matrix;

// A head in training, of CASTLE or of standard attention as its workspace is.
template <class Workspace>
class TrainedHead {
  public:
    TrainedHead(Index length, Index d, Workspace workspace)
        : head_(length, d),
          workspace_(std::move(workspace)),
          out_(length, d),
          d_out_(Matrix::Random(length, d)),
          d_head_(length, {.d = d, .dv = d}) {}

    void forward() {
        if constexpr (is_castle) {
            castle::forward(workspace_, head_.input(), out_);
        } else {
            castle::forward(workspace_, head_.input().causal, out_);
        }
    }
    void backward() {
        if constexpr (is_castle) {
            castle::backward(workspace_, head_.input(), d_out_, d_head_.view());
        } else {
            castle::backward(workspace_, head_.input().causal, d_out_, d_head_.causal.view());
        }
        benchmark::DoNotOptimize(d_head_.causal.q.data());
        benchmark::ClobberMemory();
    }

  private:
    static constexpr bool is_castle = std::is_same_v<Workspace, castle::Workspace<float>>;

    castle_bench::RandomHead head_;
    Workspace workspace_;
    Matrix out_;
    Matrix d_out_;
    castle::HeadGradient<float> d_head_;
};

auto castle_head(const benchmark::State& state, Index window) {
    const Index length = state.range(0), d = state.range(1);
    return TrainedHead(length, d, castle::Workspace<float>({.d = d, .dv = d}, {.lookahead_window = window}));
}
auto causal_head(const benchmark::State& state) {
    const Index length = state.range(0), d = state.range(1);
    return TrainedHead(length, d, castle::CausalWorkspace<float>({.d = d, .dv = d}));
}

template <class Head>
void backward(benchmark::State& state, Head head, double flops) {
    for (auto _ : state) {
        state.PauseTiming();
        head.forward();
        state.ResumeTiming();
        head.backward();
    }
    castle_bench::count_flops(state, flops);
}

void castle_backward(benchmark::State& state, Index window) {
    backward(state, castle_head(state, window),
             castle_bench::castle_backward_flops(state.range(0), state.range(1), window));
}
void causal_backward(benchmark::State& state) {
    backward(state, causal_head(state), castle_bench::causal_backward_flops(state.range(0), state.range(1)));
}

// Both passes of `heads` heads, which are as long as so many times one head's.
template <class Head>
void both(benchmark::State& state, Index heads, Head head) {
    for (auto _ : state) {
        for (Index h = 0; h < heads; ++h) {
            head.forward();
            head.backward();
        }
    }
    state.counters["tokens/s"] =
        benchmark::Counter(castle_bench::number(state.range(0)), benchmark::Counter::kIsIterationInvariantRate);
}

void castle_training(benchmark::State& state, Index window) { both(state, castle_heads, castle_head(state, window)); }
void causal_training(benchmark::State& state) { both(state, causal_heads, causal_head(state)); }

void sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"L", "d"})->ArgsProduct({{512, 2048, 4096}, {64, 128}})->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}

BENCHMARK_CAPTURE(castle_backward, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(castle_backward, window_128, 128)->Apply(sizes);
BENCHMARK(causal_backward)->Apply(sizes);
BENCHMARK_CAPTURE(castle_training, no_window, castle::unlimited)->Apply(sizes);
BENCHMARK_CAPTURE(castle_training, window_128, 128)->Apply(sizes);
BENCHMARK(causal_training)->Apply(sizes);

}  // namespace
