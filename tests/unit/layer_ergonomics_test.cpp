// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <array>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/layers.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// What makes the library pleasant to build a model on: weights from anywhere and in either order, all of them by name,
// executors with a call, memory known beforehand.
namespace {

using castle::Index;
using castle::LayerConfig;
using castle::Matrix;
using namespace support;

template <class T>
class LayerErgonomics : public ::testing::Test {};
TYPED_TEST_SUITE(LayerErgonomics, support::Scalars);

template <class T>
void expect_same_weights(const castle::LayerWeights<T>& a, const castle::LayerWeights<T>& b) {
    for (std::size_t m = 0; m < 6; ++m) {
        EXPECT_TRUE(same_bits(*projections_of(a)[m], *projections_of(b)[m])) << input_names[m];
    }
    EXPECT_TRUE(same_bits(a.w_out, b.w_out)) << "w_out";
}

template <class T>
Matrix<T> random_rows(std::uint64_t seed, Index rows, Index cols) {
    Random random(seed);
    Matrix<T> x(rows, cols);
    fill_normal(random, x);
    return x;
}

// As of a mapped file: one weight after the other, in the order of for_each.
template <class T>
std::vector<T> flattened(const castle::LayerWeights<T>& weights) {
    std::vector<T> all;
    weights.for_each([&](const auto&, const Matrix<T>& m) { all.insert(all.end(), m.data(), m.data() + m.size()); });
    return all;
}

TYPED_TEST(LayerErgonomics, TakesWeightsFromMaps) {
    using T = TypeParam;
    using Map = Eigen::Map<const Matrix<T>>;
    const LayerConfig config{.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 5};
    LayerConfig other = config;
    other.seed = 99;
    const castle::LayerWeights<T> weights = castle::Layer<T>(other).weights();
    const std::vector<T> file = flattened(weights);
    const T* next = file.data();
    const auto map = [&](Index rows, Index cols) {
        next += rows * cols;
        return Map(next - rows * cols, rows, cols);
    };
    const Map cq = map(12, 20), ck = map(12, 10), cv = map(12, 10);
    const Map lq = map(12, 10), lk = map(12, 10), lv = map(12, 10), w_out = map(20, 12);
    EXPECT_EQ(next, file.data() + file.size());

    castle::Layer<T> layer(config);
    layer.set_weights(
        {.causal = {.q = cq, .k = ck, .v = cv}, .lookahead = {.q = lq, .k = lk, .v = lv}, .w_out = w_out});
    expect_same_weights(layer.weights(), weights);
    layer.set_weights(castle::Layer<T>(config).weights());
    const castle::LayerWeightsView<T> view = weights;
    layer.set_weights(view);
    expect_same_weights(layer.weights(), weights);
    expect_same_weights(castle::Layer<T>(config, view).weights(), weights);
    expect_same_weights(castle::Layer<T>(config, weights, {.lookahead_window = 5}).weights(), weights);

    // Side by side in one matrix, so that rows lie far apart.
    Matrix<T> fused(12, 70);
    fused << weights.causal.q, weights.causal.k, weights.causal.v, weights.lookahead.q, weights.lookahead.k,
        weights.lookahead.v;
    using Strided = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
    const auto columns = [&](Index first, Index count) {
        return Strided(fused.data() + first, 12, count, Eigen::OuterStride<>(70));
    };
    castle::Layer<T> strided(config);
    strided.set_weights({.causal = {.q = columns(0, 20), .k = columns(20, 10), .v = columns(30, 10)},
                         .lookahead = {.q = columns(40, 10), .k = columns(50, 10), .v = columns(60, 10)},
                         .w_out = w_out});
    expect_same_weights(strided.weights(), weights);
}

TYPED_TEST(LayerErgonomics, TakesTransposedWeightsAlsoWhereShapesDoNotTell) {
    using T = TypeParam;
    for (const LayerConfig& config : {LayerConfig{.d_model = 12, .heads = 3, .d_head = 4},  // all of them square
                                      LayerConfig{.d_model = 70, .heads = 4, .kv_heads = 2, .d_head = 16}}) {
        for (const Index window : {Index(0), castle::unlimited}) {
            const castle::Options options{.lookahead_window = window};
            SCOPED_TRACE(words_of(config, options));
            LayerConfig other = config;
            other.seed = 99;
            const castle::LayerWeights<T> weights = castle::Layer<T>(other, options).weights();
            castle::LayerWeights<T> turned = weights;
            turned.for_each([](const auto&, Matrix<T>& m) { m.transposeInPlace(); });

            castle::Layer<T> layer(config, options);
            layer.set_weights(turned, castle::WeightOrder::out_in);
            expect_same_weights(layer.weights(), weights);
            const castle::Layer<T> made(config, turned, options, castle::WeightOrder::out_in);
            const Matrix<T> x = random_rows<T>(8000, 40, config.d_model);
            const Matrix<T> expected = castle::Layer<T>(config, weights, options).forward(x);
            EXPECT_TRUE(same_bits(layer.forward(x), expected));
            EXPECT_TRUE(same_bits(made.forward(x), expected));
            layer.set_weights(weights, castle::WeightOrder::in_out);
            EXPECT_TRUE(same_bits(layer.forward(x), expected));
            if (config.d_model == 12) {
                layer.set_weights(turned);  // fits, and is another layer
                EXPECT_FALSE(same_bits(layer.forward(x), expected));
            } else {
                EXPECT_THROW(layer.set_weights(turned), std::invalid_argument);
                EXPECT_THROW(layer.set_weights(weights, castle::WeightOrder::out_in), std::invalid_argument);
                EXPECT_TRUE(same_bits(layer.forward(x), expected)) << "something has changed";
            }
        }
    }
}

// A step of an optimizer, which treats all weights alike.
TYPED_TEST(LayerErgonomics, WalksWeightsAndGradientsInOneOrder) {
    using T = TypeParam;
    using Names = std::vector<std::string>;
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const LayerConfig config{.d_model = 6, .heads = 4, .kv_heads = 2, .d_head = 3};
        castle::Layer<T> layer(config, options);
        const Matrix<T> x = random_rows<T>(8010, 20, 6), d_y = random_rows<T>(8011, 20, 6);
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        Matrix<T> y(20, 6), d_x(20, 6);
        layer.forward(workspace, x, y);
        castle::LayerWeights<T> gradient = layer.zero_gradient();
        gradient.for_each([](const auto& name, const Matrix<T>& m) { EXPECT_EQ(m.cwiseAbs().maxCoeff(), 0) << name; });
        layer.backward(workspace, x, d_y, d_x, gradient);

        castle::LayerWeights<T> weights = layer.weights();
        Names names;
        std::vector<Matrix<T>*> parameters;
        weights.for_each([&](const auto& name, Matrix<T>& m) {
            names.emplace_back(name);
            parameters.push_back(&m);
        });
        const Names expected = window == 0 ? Names{"causal.q", "causal.k", "causal.v", "w_out"}
                                           : Names{"causal.q",    "causal.k",    "causal.v", "lookahead.q",
                                                   "lookahead.k", "lookahead.v", "w_out"};
        EXPECT_EQ(names, expected);
        EXPECT_EQ(parameters.front(), &weights.causal.q);
        EXPECT_EQ(parameters.back(), &weights.w_out);

        std::size_t i = 0;
        Index elements = 0;
        std::as_const(gradient).for_each([&](const auto& name, const Matrix<T>& m) {
            ASSERT_LT(i, names.size());
            EXPECT_EQ(std::string(name), names[i]);
            ASSERT_EQ(m.rows(), parameters[i]->rows());
            ASSERT_EQ(m.cols(), parameters[i]->cols());
            EXPECT_GT(m.cwiseAbs().maxCoeff(), 0) << name;
            *parameters[i] -= T(0.1) * m;
            elements += m.size();
            ++i;
        });
        EXPECT_EQ(i, names.size());
        EXPECT_EQ(elements, layer.parameters());
        layer.set_weights(weights);
        EXPECT_FALSE(same_bits(layer.forward(x), y));
    }
}

// Counts how often it is asked.
class Counter {
  public:
    castle::Executor executor() {
        return [this](Index n, castle::Task task) {
            ++calls_;
            for (Index i = 0; i < n; ++i) task(i);
        };
    }
    Index calls() const { return calls_; }
    void reset() { calls_ = 0; }

  private:
    Index calls_ = 0;
};

// `call(executor)` runs on the executor that it is given and, without one, on `own`, that of the options. Calls that
// write into views take one.
template <class Call>
void expect_executor_of_call(const char* name, Counter& own, const Call& call) {
    SCOPED_TRACE(name);
    Counter given;
    own.reset();
    call(castle::Executor{});
    EXPECT_GT(own.calls(), 0);
    own.reset();
    call(given.executor());
    EXPECT_EQ(own.calls(), 0);
    EXPECT_GT(given.calls(), 0);
}

TYPED_TEST(LayerErgonomics, RunsOnTheExecutorOfTheCall) {
    using T = TypeParam;
    using castle::Executor;
    const castle::Shape shape{.d = 5, .dv = 3, .heads = 4, .kv_heads = 2};
    const Index length = 70;
    const std::vector<Index> counts{30, 40};
    Counter own, uncounted;
    const castle::Options options{.executor = own.executor()};
    const Executor elsewhere = uncounted.executor();

    Random random(8020);
    const Head<T> heads = random_heads<T>(random, length, shape);
    const castle::Input<T> input = heads.input();
    Matrix<T> out(length, 12), d_out(length, 12);
    fill_normal(random, d_out);
    castle::UqKvCache<T> cache(shape, options);
    castle::Workspace<T> workspace(shape, options);
    castle::Gradient<T> gradient(length, shape);
    expect_executor_of_call("extend", own, [&](const Executor& e) { castle::extend(cache, input, out, e); });
    expect_executor_of_call("forward", own, [&](const Executor& e) { castle::forward(workspace, input, out, e); });
    expect_executor_of_call("packed forward", own,
                            [&](const Executor& e) { castle::forward(workspace, counts, input, out, e); });
    expect_executor_of_call("backward", own, [&](const Executor& e) {
        castle::forward(workspace, input, out, elsewhere);
        castle::backward(workspace, input, d_out, gradient.view(), e);
    });
    expect_executor_of_call("packed backward", own, [&](const Executor& e) {
        castle::forward(workspace, counts, input, out, elsewhere);
        castle::backward(workspace, input, d_out, gradient.view(), e);
    });

    const castle::Layer<T> layer({.d_model = 20, .heads = 4, .kv_heads = 2, .d_head = 6}, options);
    const Matrix<T> x = random_rows<T>(8021, length, 20), d_y = random_rows<T>(8022, length, 20);
    Matrix<T> y(length, 20), d_x(length, 20);
    castle::LayerCache<T> one = layer.make_cache(), two = layer.make_cache();
    const std::vector<castle::LayerCache<T>*> both{&one, &two};
    castle::LayerWorkspace<T> layer_workspace = layer.make_workspace();
    castle::LayerWeights<T> d_weights = layer.zero_gradient();
    expect_executor_of_call("Layer::extend", own, [&](const Executor& e) { layer.extend(one, x, y, e); });
    expect_executor_of_call("ragged Layer::extend", own,
                            [&](const Executor& e) { layer.extend(both, counts, x, y, e); });
    expect_executor_of_call("Layer::forward", own, [&](const Executor& e) { layer.forward(x, y, e); });
    expect_executor_of_call("Layer::forward for training", own,
                            [&](const Executor& e) { layer.forward(layer_workspace, x, y, e); });
    expect_executor_of_call("packed Layer::forward", own,
                            [&](const Executor& e) { layer.forward(layer_workspace, counts, x, y, e); });
    expect_executor_of_call("Layer::backward", own, [&](const Executor& e) {
        layer.forward(layer_workspace, x, y, elsewhere);
        layer.backward(layer_workspace, x, d_y, d_x, d_weights, e);
    });
    expect_executor_of_call("packed Layer::backward", own, [&](const Executor& e) {
        layer.forward(layer_workspace, counts, x, y, elsewhere);
        layer.backward(layer_workspace, counts, x, d_y, d_x, d_weights, e);
    });
}

// What a cache says that it will hold is what it holds then. `make()` makes a fresh one, `fill(cache)` puts tokens onto
// it.
template <class Make, class Fill>
void expect_bytes_known_beforehand(const Make& make, const Fill& fill) {
    for (const Index tokens : {0, 1, 63, 64, 65, 128, 513, 2000}) {
        SCOPED_TRACE(describe(tokens, " tokens"));
        auto cache = make();
        const Index before = cache.bytes().total();
        const Allocations::Count count;
        const Index expected = cache.bytes_for(tokens);
        EXPECT_EQ(count.allocations(), 0) << "asking takes memory";
        EXPECT_EQ(cache.bytes().total(), before);
        cache.reserve(tokens);
        EXPECT_EQ(cache.bytes().total(), expected);
        EXPECT_EQ(cache.bytes().shared, 0);
        // What there is need not come again.
        for (const Index fewer : {Index(0), tokens / 2, tokens, cache.capacity()}) {
            EXPECT_EQ(cache.bytes_for(fewer), expected) << fewer;
        }
    }
    auto used = make();
    fill(used);
    EXPECT_EQ(used.bytes_for(0), used.bytes().total());
    EXPECT_EQ(used.bytes_for(used.size()), used.bytes().total());
    for (const Index tokens : {300, 301, 900}) {
        const Index expected = used.bytes_for(tokens);
        used.reserve(tokens);
        EXPECT_EQ(used.bytes().total(), expected) << tokens << " tokens";
    }
    const Index size = used.size(), bytes = used.bytes().total();
    for (const Index wrong : {Index(-1), (Index(1) << 40) + 1, castle::unlimited}) {
        EXPECT_THROW(static_cast<void>(used.bytes_for(wrong)), std::invalid_argument) << wrong;
    }
    EXPECT_EQ(used.size(), size);
    EXPECT_EQ(used.bytes().total(), bytes);
}

TYPED_TEST(LayerErgonomics, TellsTheBytesOfACacheBeforehand) {
    using T = TypeParam;
    for (const castle::Shape& shape :
         {castle::Shape{.d = 7, .dv = 5}, castle::Shape{.d = 16, .dv = 16, .heads = 4, .kv_heads = 2}}) {
        Random random(8030);
        const Head<T> heads = random_heads<T>(random, 150, shape);
        for (const Index window : {Index(0), Index(1), Index(70), castle::unlimited}) {
            for (const Index rollback : {0, 64, 200}) {
                SCOPED_TRACE(describe(words_of(shape), ", window ", window, ", rollback ", rollback));
                expect_bytes_known_beforehand(
                    [&] { return castle::UqKvCache<T>(shape, {.lookahead_window = window}, rollback); },
                    [&](castle::UqKvCache<T>& cache) { castle::extend(cache, heads.input()); });
            }
        }
    }
}

TYPED_TEST(LayerErgonomics, TellsTheBytesOfALayersCacheBeforehand) {
    using T = TypeParam;
    const Matrix<T> x = random_rows<T>(8040, 150, 20);
    for (const Index kv_heads : {1, 2, 4}) {
        const LayerConfig config{
            .d_model = 20, .heads = 4, .kv_heads = kv_heads, .d_head = 6, .rotary = castle::Rotary{}};
        for (const Index window : {Index(0), Index(70), castle::unlimited}) {
            const castle::Layer<T> layer(config, {.lookahead_window = window});
            for (const Index rollback : {0, 64}) {
                SCOPED_TRACE(describe(words_of(config, layer.options()), ", rollback ", rollback));
                expect_bytes_known_beforehand([&] { return layer.make_cache(rollback); },
                                              [&](castle::LayerCache<T>& cache) { layer.extend(cache, x); });
            }
        }
    }
}

// The lines that show the library first, as they are printed.
TEST(OneCore, CompilesAsItIsPrinted) {
    Random random(8050);
    const Index length = 40;
    const Head<float> heads = random_heads<float>(random, length, {.d = 64, .dv = 64, .heads = 8, .kv_heads = 2});
    const Matrix<float>&qc = heads.qc, &kc = heads.kc, &vc = heads.vc, &qu = heads.qu, &ku = heads.ku, &vu = heads.vu;
    const castle::Options options{.lookahead_window = 128};
    const std::vector<Index> counts{10, 0, 30};

    castle::Shape shape{.d = 64, .dv = 64, .heads = 8, .kv_heads = 2};
    castle::Input<float> input{.causal = {.q = qc, .k = kc, .v = vc}, .lookahead = {.q = qu, .k = ku, .v = vu}};
    castle::Matrix<float> out = castle::parallel(shape, input, options);
    castle::Matrix<float> same = castle::recurrent(shape, input, options);
    EXPECT_TRUE(same.allFinite());
    const castle::Matrix<float> expected = out;

    castle::UqKvCache<float> cache(shape, options, /*rollback=*/64);
    castle::extend(cache, input, out);
    EXPECT_TRUE(same_bits(out, expected));
    castle::UqKvCache<float> second(shape, options), third(shape, options);
    const std::vector<castle::UqKvCache<float>*> caches{&cache, &second, &third};
    castle::extend(caches, counts, input, out);
    EXPECT_EQ(cache.size(), 50);
    EXPECT_EQ(third.size(), 30);

    castle::Workspace<float> workspace(shape, options);
    castle::forward(workspace, input, out);
    EXPECT_TRUE(same_bits(out, expected));
    castle::forward(workspace, counts, input, out);
    Matrix<float> d_out(length, 512);
    fill_normal(random, d_out);
    castle::Gradient<float> gradients(length, shape);
    castle::GradientView<float> gradient = gradients.view();
    castle::backward(workspace, input, d_out, gradient);
    EXPECT_TRUE(gradients.lookahead.v.allFinite());
    const castle::Input<float> lone = input.head(shape, 7);
    const Matrix<float> d_lone = d_out.rightCols(64);
    castle::Gradient<float> g = castle::backward(lone, d_lone, options);
    EXPECT_EQ(g.causal.q.cols(), 64);

    castle::Layer<float> layer({.d_model = 512, .heads = 8, .kv_heads = 2, .d_head = 64}, options);
    castle::LayerCache<float> layer_cache = layer.make_cache();
    castle::LayerWorkspace<float> layer_workspace = layer.make_workspace();
    const Matrix<float> x = random_rows<float>(8051, length, 512), d_y = random_rows<float>(8052, length, 512);
    Matrix<float> y(length, 512);
    layer.extend(layer_cache, x, y);
    EXPECT_TRUE(same_bits(y, layer.forward(x)));
    castle::LayerCache<float> layer_second = layer.make_cache(), layer_third = layer.make_cache();
    const std::vector<castle::LayerCache<float>*> layer_caches{&layer_cache, &layer_second, &layer_third};
    layer.extend(layer_caches, counts, x, y);
    layer.forward(layer_workspace, counts, x, y);
    castle::LayerGradient<float> lg = layer.backward(layer_workspace, counts, x, d_y);
    EXPECT_EQ(lg.weights.causal.k.cols(), 128);

    const Matrix<float> q = qc.leftCols(64), k = kc.leftCols(64), v = vc.leftCols(64);
    castle::Matrix<float> base = castle::causal_attention(q, k, v);
    EXPECT_TRUE(same_bits(
        base, castle::parallel(castle::Input<float>{.causal = {.q = q, .k = k, .v = v}}, {.lookahead_window = 0})));
    castle::Matrix<float> u = cache.lookahead_keys();
    EXPECT_TRUE(same_bits(u, cache.lookahead_keys(0)));
    EXPECT_EQ(cache.lookahead_keys(1).rows(), 50);
}

}  // namespace
