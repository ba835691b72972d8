// SPDX-License-Identifier: Apache-2.0

// What do 16-bit scalars save? Decoding onto caches, a layer's decoding, and the two passes, in float, bfloat16 and
// half, and what the caches take. One thread.
#include <string>
#include <utility>

#include <castle/attention.hpp>
#include <castle/backward.hpp>
#include <castle/layer.hpp>

#include "decoding.hpp"

namespace {

using castle::bfloat16;
using castle::half;
using castle::Index;
using castle_bench::number;

constexpr Index heads = 8;

// The six projections of some heads, rounded.
template <class T>
class Rounded {
  public:
    Rounded(Index length, const castle::Shape& shape) {
        const castle_bench::RandomInput random(length, shape);
        const castle::Input<float> input = random.input();
        qc_ = input.causal.q.map().cast<T>();
        kc_ = input.causal.k.map().cast<T>();
        vc_ = input.causal.v.map().cast<T>();
        qu_ = input.lookahead.q.map().cast<T>();
        ku_ = input.lookahead.k.map().cast<T>();
        vu_ = input.lookahead.v.map().cast<T>() * static_cast<T>(0.01f);
    }

    castle::Input<T> input() const {
        return {.causal = {.q = qc_, .k = kc_, .v = vc_}, .lookahead = {.q = qu_, .k = ku_, .v = vu_}};
    }

  private:
    castle::Matrix<T> qc_, kc_, vc_, qu_, ku_, vu_;
};

template <class T>
void decoding(benchmark::State& state, Index window) {
    const Index t = state.range(0), d = 64;
    const castle::Shape shape{.d = d, .dv = d, .heads = heads, .kv_heads = heads};
    castle::UqKvCache<T> cache(shape, {.lookahead_window = window}, 0);
    castle_bench::fill(cache, t);
    const Rounded<T> tokens(castle_bench::block_size, shape);
    castle::Matrix<T> out(1, heads * d);
    for (auto _ : state) {
        castle::detail::CacheAccess::state(cache).set_size(t);
        for (Index i = 0; i < castle_bench::block_size; ++i) {
            castle::extend(cache, tokens.input().tokens(i, 1), out);
            benchmark::ClobberMemory();
        }
    }
    state.counters["owned"] = number(cache.bytes().owned);
}

template <class T>
void layer_decoding(benchmark::State& state) {
    const Index t = state.range(0), d_model = 2048;
    const castle::Layer<T> layer({.d_model = d_model, .heads = 16, .d_head = 64, .seed = 1}, {.lookahead_window = 128});
    castle::LayerCache<T> cache = layer.make_cache(64);
    castle::Matrix<T> x = castle::Matrix<float>::Random(t, d_model).cast<T>();
    layer.extend(cache, x);
    castle::Matrix<T> token = x.topRows(1), y(1, d_model);
    for (auto _ : state) {
        for (Index i = 0; i < castle_bench::block_size; ++i) {
            layer.extend(cache, token, y);
            benchmark::ClobberMemory();
        }
        cache.rollback(castle_bench::block_size);
    }
}

template <class T>
void forward(benchmark::State& state) {
    const Index length = state.range(0), d = state.range(1);
    const castle::Shape shape = castle_bench::heads_of(d);
    const Rounded<T> random(length, shape);
    castle::Matrix<T> out(length, d);
    for (auto _ : state) {
        castle::parallel(shape, random.input(), out);
        benchmark::ClobberMemory();
    }
}

// The forward pass that it needs is not counted.
template <class T>
void backward(benchmark::State& state) {
    const Index length = state.range(0), d = state.range(1);
    const castle::Shape shape = castle_bench::heads_of(d);
    const Rounded<T> random(length, shape);
    castle::Workspace<T> workspace(shape);
    castle::Matrix<T> out(length, d);
    const castle_bench::Matrix d_out = castle_bench::Matrix::Random(length, d);
    castle::Gradient<float> gradient(length, shape);
    castle_bench::measure(
        state, [&] { castle::forward(workspace, random.input(), out); },
        [&] { castle::backward(workspace, random.input(), d_out, gradient.view()); }, [] {});
}

// All of one scalar; a static object's initialiser.
template <class T>
bool add(const std::string& scalar) {
    using benchmark::RegisterBenchmark;
    const auto lengths = [](benchmark::internal::Benchmark* one) {
        return castle_bench::report_extremes(
            one->ArgNames({"L", "d"})->Args({2048, 64})->Args({2048, 128})->Unit(benchmark::kMillisecond));
    };
    const auto steps = [](benchmark::internal::Benchmark* one, Index t) {
        castle_bench::report_best(one->ArgName("t")->Arg(t)->Unit(benchmark::kMillisecond));
    };
    for (const auto& [words, window] :
         {std::pair("no_window", castle::unlimited), std::pair("window_128", Index(128))}) {
        steps(RegisterBenchmark(("decoding/" + scalar + "/" + words).c_str(),
                                [window = window](benchmark::State& state) { decoding<T>(state, window); }),
              16384);
    }
    steps(RegisterBenchmark(("layer_decoding/" + scalar).c_str(), layer_decoding<T>), 512);
    lengths(RegisterBenchmark(("forward/" + scalar).c_str(), forward<T>))->UseRealTime();
    lengths(RegisterBenchmark(("backward/" + scalar).c_str(), backward<T>))->UseManualTime();
    return true;
}

const bool added = add<float>("float") && add<bfloat16>("bfloat16") && add<half>("half");

}  // namespace
