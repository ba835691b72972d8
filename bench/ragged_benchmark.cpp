// SPDX-License-Identifier: Apache-2.0

// What does a layer's call on several sequences cost? Four tokens of each of 12 sequences against 48 tokens of one;
// training on 256 tokens in documents of 8 against one document of 256; and three prompts beside 29 sequences that
// decode, in one call against a call for each.
#include <sstream>
#include <vector>

#include <castle/layer.hpp>

#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;

constexpr Index d_model = 896;
constexpr Index d_head = 64;

// The paper's small model, with a window.
castle::Layer<float> layer_for_serving(Index threads) {
    return castle::Layer<float>(
        {.d_model = d_model, .heads = 8, .d_head = d_head, .rotary = castle::Rotary{}, .seed = 1},
        {.lookahead_window = 128, .executor = castle_bench::executor(threads)});
}

// Caches of t tokens each, which share nothing.
std::vector<castle::LayerCache<float>> filled(const castle::Layer<float>& layer, Index count, Index t) {
    const Matrix x = Matrix::Random(t, d_model);
    Matrix y(t, d_model);
    castle::LayerCache<float> first = layer.make_cache();
    layer.extend(first, x, y);
    std::stringstream file;
    first.save(file);
    std::vector<castle::LayerCache<float>> caches;
    for (Index i = 0; i < count; ++i) {
        file.seekg(0);
        caches.push_back(layer.load_cache(file));
    }
    return caches;
}

std::vector<castle::LayerCache<float>*> pointers(std::vector<castle::LayerCache<float>>& caches) {
    std::vector<castle::LayerCache<float>*> result;
    for (auto& cache : caches) result.push_back(&cache);
    return result;
}

// 48 tokens onto caches of t tokens, as many onto each.
void call(benchmark::State& state) {
    const Index tokens = 48, sequences = state.range(0), each = tokens / sequences;
    const castle::Layer<float> layer = layer_for_serving(1);
    std::vector<castle::LayerCache<float>> caches = filled(layer, sequences, state.range(1));
    const std::vector<castle::LayerCache<float>*> batch = pointers(caches);
    const std::vector<Index> counts(std::size_t(sequences), each);
    const Matrix x = Matrix::Random(tokens, d_model);
    Matrix y(tokens, d_model);
    castle_bench::measure(
        state, [] {},
        [&] {
            if (sequences == 1) {
                layer.extend(caches.front(), x, y);
            } else {
                layer.extend(batch, counts, x, y);
            }
            benchmark::DoNotOptimize(y.data());
        },
        [&] {
            for (auto& cache : caches) cache.rollback(each);
        });
    castle_bench::count_tokens(state, tokens);
}

// Both passes over 256 tokens in documents of equal length, packed.
void documents(benchmark::State& state) {
    const Index tokens = 256, width = 768;
    const castle::Layer<float> layer(
        {.d_model = width, .heads = width / d_head, .d_head = d_head, .rotary = castle::Rotary{}, .seed = 1});
    const std::vector<Index> counts(std::size_t(tokens / state.range(0)), state.range(0));
    castle::LayerWorkspace<float> workspace = layer.make_workspace();
    castle::LayerWeights<float> d_weights = layer.zero_gradient();
    const Matrix x = Matrix::Random(tokens, width), d_y = Matrix::Random(tokens, width);
    Matrix y(tokens, width), d_x(tokens, width);
    for (auto _ : state) {
        layer.forward(workspace, counts, x, y);
        layer.backward(workspace, counts, x, d_y, d_x, d_weights);
        benchmark::DoNotOptimize(y.data());
        benchmark::DoNotOptimize(d_x.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_tokens(state, tokens);
}

// Three prompts of 128 tokens and a token onto each of 29 caches of 512. `together` decides between one call and a call
// for each.
void mixed(benchmark::State& state, bool together) {
    const Index prompts = 3, prompt = 128, decoding = 29;
    const castle::Layer<float> layer = layer_for_serving(state.range(0));
    std::vector<castle::LayerCache<float>> caches = filled(layer, decoding, 512);
    std::vector<Index> counts(std::size_t(decoding), 1);
    for (Index i = 0; i < prompts; ++i) {
        caches.push_back(layer.make_cache());
        counts.push_back(prompt);
    }
    const std::vector<castle::LayerCache<float>*> batch = pointers(caches);
    const Index tokens = decoding + prompts * prompt;
    const Matrix x = Matrix::Random(tokens, d_model);
    Matrix y(tokens, d_model);
    castle_bench::measure(
        state, [] {},
        [&] {
            if (together) {
                layer.extend(batch, counts, x, y);
            } else {
                Index row = 0;
                for (std::size_t i = 0; i < caches.size(); row += counts[i++]) {
                    layer.extend(caches[i], x.middleRows(row, counts[i]), y.middleRows(row, counts[i]));
                }
            }
            benchmark::DoNotOptimize(y.data());
        },
        [&] {
            // 512 is the start of a block, within which a rollback costs nothing.
            for (std::size_t i = 0; i < caches.size(); ++i) {
                if (counts[i] == 1) {
                    caches[i].rollback(1);
                } else {
                    caches[i].clear();
                }
            }
        });
    castle_bench::count_tokens(state, tokens);
}

void call_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"sequences", "t"})->ArgsProduct({{1, 12}, {64, 512}})->Unit(benchmark::kMicrosecond);
    castle_bench::report_extremes(benchmark)->UseManualTime();
}
void document_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgName("tokens")->Arg(8)->Arg(256)->Unit(benchmark::kMillisecond);
    castle_bench::report_best(benchmark);
}
void mixed_sizes(benchmark::internal::Benchmark* benchmark) {
    benchmark->ArgNames({"threads"})->ArgsProduct({castle_bench::thread_counts()})->Unit(benchmark::kMillisecond);
    castle_bench::report_extremes(benchmark)->UseManualTime();
}

BENCHMARK(call)->Apply(call_sizes);
BENCHMARK(documents)->Apply(document_sizes);
BENCHMARK_CAPTURE(mixed, one_call, true)->Apply(mixed_sizes);
BENCHMARK_CAPTURE(mixed, single_calls, false)->Apply(mixed_sizes);

}  // namespace
