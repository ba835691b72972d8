// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

#include <castle/backward.hpp>

#include "support.hpp"

// The two passes of training, and how one of them is timed.
namespace castle_bench {

/// Heads in training, side by side. A window of 0 is standard attention.
class TrainedHeads {
  public:
    TrainedHeads(Index length, const castle::Shape& shape, Index window)
        : input_(length, shape),
          has_lookahead_(window > 0),
          workspace_(shape, {.lookahead_window = window}),
          out_(length, shape.heads * shape.dv),
          d_out_(Matrix::Random(length, shape.heads * shape.dv)),
          gradient_(length, shape, has_lookahead_) {}

    void forward() {
        castle::forward(workspace_, input(), out_);
        benchmark::DoNotOptimize(out_.data());
        benchmark::ClobberMemory();
    }
    void backward() {
        castle::backward(workspace_, input(), d_out_, gradient_.view());
        benchmark::DoNotOptimize(gradient_.causal.q.data());
        benchmark::ClobberMemory();
    }

  private:
    castle::Input<float> input() const {
        const castle::Input<float> all = input_.input();
        return has_lookahead_ ? all : castle::Input<float>{.causal = all.causal};
    }

    RandomInput input_;
    bool has_lookahead_;
    castle::Workspace<float> workspace_;
    Matrix out_;
    Matrix d_out_;
    castle::Gradient<float> gradient_;
};

/// One pass of training; the other one, which every repetition of it needs, is run and not counted.
enum class Pass { forward, backward };

/// For benchmarks with UseManualTime. Both passes of an iteration are timed, and their ratio is told beside the one
/// that counts.
template <class Forward, class Backward>
void measure_pass(benchmark::State& state, Pass counted, const Forward& forward, const Backward& backward) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](const auto& pass) {
        const Clock::time_point start = Clock::now();
        pass();
        benchmark::ClobberMemory();
        return std::chrono::duration<double>(Clock::now() - start).count();
    };
    double all_forward = 0, all_backward = 0;
    for (auto _ : state) {
        const double first = seconds(forward);
        const double second = seconds(backward);
        all_forward += first;
        all_backward += second;
        state.SetIterationTime(counted == Pass::forward ? first : second);
    }
    state.counters["backward/forward"] = all_backward / all_forward;
}

}  // namespace castle_bench
