// SPDX-License-Identifier: Apache-2.0

// What do 16-bit scalars save? Decoding onto caches, a layer's decoding, and the two passes, in float, bfloat16 and
// half, and what the caches take. One thread. And what do they lose? Errors against double, of standard normal input.
#include <array>
#include <cstddef>
#include <map>
#include <random>
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

// Root mean square, of that of what is exact.
template <class M>
double error(const M& ours, const castle::Matrix<double>& exact) {
    return (ours.template cast<double>() - exact).norm() / exact.norm();
}

struct Errors {
    double output, lookahead_keys;
};

// Of L tokens, rounded to T, against double of the same elements.
template <class T>
Errors errors_of(Index length, Index window) {
    const castle::Shape shape = castle_bench::heads_of(64);
    const castle::Options options{.lookahead_window = window};
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    const auto random = [&] {
        castle::Matrix<T> m(length, shape.d);
        for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<T>(normal(generator));
        return m;
    };
    const std::array<castle::Matrix<T>, 6> x = {random(), random(), random(), random(), random(), random()};
    std::array<castle::Matrix<double>, 6> wide;
    for (std::size_t i = 0; i < x.size(); ++i) wide[i] = x[i].template cast<double>();
    const auto run = [&](const auto& m, auto cache) {
        cache.reserve(length);
        const auto out = castle::extend(
            cache, {.causal = {.q = m[0], .k = m[1], .v = m[2]}, .lookahead = {.q = m[3], .k = m[4], .v = m[5]}});
        return std::pair(out, cache.lookahead_keys());
    };
    const auto [out, keys] = run(x, castle::UqKvCache<T>(shape, options, 0));
    const auto [exact_out, exact_keys] = run(wide, castle::UqKvCache<double>(shape, options, 0));
    return {error(out, exact_out), error(keys, exact_keys)};
}

template <class T>
void errors(benchmark::State& state, Index window) {
    static std::map<std::pair<Index, Index>, Errors> known;  // of one repetition those of all
    const std::pair<Index, Index> key(state.range(0), window);
    if (!known.contains(key)) known[key] = errors_of<T>(state.range(0), window);
    for (auto _ : state) benchmark::DoNotOptimize(known[key]);
    state.counters["output error"] = known[key].output;
    state.counters["U error"] = known[key].lookahead_keys;
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
        castle_bench::report_extremes(
            RegisterBenchmark(("errors/" + scalar + "/" + words).c_str(),
                              [window = window](benchmark::State& state) { errors<T>(state, window); })
                ->ArgName("L")
                ->ArgsProduct({{512, 2048, 8192, 32768}})
                ->Iterations(1)
                ->Repetitions(2));
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
