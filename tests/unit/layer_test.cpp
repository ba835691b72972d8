// SPDX-License-Identifier: Apache-2.0
#include <castle/attention.hpp>
#include <castle/layer.hpp>

#include <array>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/generators.hpp"
#include "support/layers.hpp"
#include "support/message.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::LayerConfig;
using castle::Matrix;

template <class T>
class Layer : public testing::Test {};
TYPED_TEST_SUITE(Layer, support::Scalars);

// The layer's error against the oracle in long double, beside that of a plain evaluation in T.
template <class T>
void expect_as_precise_as_plain(const castle::Layer<T>& layer, Index length) {
    const LayerConfig& config = layer.config();
    SCOPED_TRACE(support::describe("L ", length, ", ", support::words_of(config, layer.options())));
    support::Random random(static_cast<std::uint64_t>(length));
    Matrix<T> x(length, config.d_model);
    support::fill_normal(random, x);
    const auto settings = oracle::standard_settings(config.d_head, layer.options().lookahead_window);
    const auto weights = layer.weights();
    const auto exact = oracle::evaluate(support::oracle_layer<long double>(weights, config),
                                        support::oracle_rows<long double>(x), settings);
    const auto plain =
        oracle::evaluate(support::oracle_layer<T>(weights, config), support::oracle_rows<T>(x), settings);
    const Matrix<T> y =
        support::written<T>(length, config.d_model, [&](castle::MatrixView<T> out) { layer.forward(x, out); });
    EXPECT_TRUE(support::as_precise_as_plain(exact, plain, y));
}

TYPED_TEST(Layer, MatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 2, 33, 70}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (const LayerConfig& config : {LayerConfig{.d_model = 20, .heads = 3, .d_head = 6, .seed = 1},
                                              LayerConfig{.d_model = 65, .heads = 1, .d_head = 64, .seed = 2},
                                              LayerConfig{.d_model = 33, .heads = 2, .d_head = 1, .seed = 3}}) {
                expect_as_precise_as_plain<T>(castle::Layer<T>(config, {.lookahead_window = window}), length);
            }
        }
    }
}

TYPED_TEST(Layer, WithGroupedQueriesMatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 2, 33, 70}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (LayerConfig config : support::grouped_configs(20, 6)) {
                expect_as_precise_as_plain<T>(castle::Layer<T>(config, {.lookahead_window = window}), length);
                config.rotary = castle::Rotary{};
                expect_as_precise_as_plain<T>(castle::Layer<T>(config, {.lookahead_window = window}), length);
            }
        }
    }
}

TYPED_TEST(Layer, RotatesJustTheProjectionsThatItIsAskedTo) {
    using T = TypeParam;
    std::vector<LayerConfig> configs = support::grouped_configs(12, 10);
    configs.push_back({.d_model = 12, .heads = 2, .d_head = 10, .seed = 4});
    for (LayerConfig& config : configs) {
        config.rotary = castle::Rotary{};
        expect_as_precise_as_plain<T>(castle::Layer<T>(config), 40);
        expect_as_precise_as_plain<T>(castle::Layer<T>(config, {.lookahead_window = 0}), 40);

        for (const castle::Rotary& rotary : support::rotaries_of_one_projection()) {
            config.rotary = rotary;
            expect_as_precise_as_plain<T>(castle::Layer<T>(config), 40);
            expect_as_precise_as_plain<T>(castle::Layer<T>(config, {.lookahead_window = 0}), 40);
        }
    }
}

TYPED_TEST(Layer, OfStandardAttentionMatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 40, 70}) {
        const castle::Layer<T> layer({.d_model = 20, .heads = 3, .d_head = 7, .seed = 5}, {.lookahead_window = 0});
        expect_as_precise_as_plain<T>(layer, length);
    }
}

// a b + c as the kernels do it: in one rounding where the instruction set has that.
template <class T>
T multiply_add(T a, T b, T c) {
#if defined(EIGEN_VECTORIZE_FMA) || defined(EIGEN_VECTORIZE_NEON)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

template <class T>
Matrix<T> chain(const Matrix<T>& a, const Matrix<T>& b) {
    Matrix<T> c = Matrix<T>::Zero(a.rows(), b.cols());
    for (Index i = 0; i < a.rows(); ++i) {
        for (Index j = 0; j < b.cols(); ++j) {
            for (Index k = 0; k < a.cols(); ++k) c(i, j) = multiply_add(a(i, k), b(k, j), c(i, j));
        }
    }
    return c;
}

// The number of rows decides which tiles a product runs through, but not its chains of fused multiply-adds. So a layer
// put together from the library's parts is bitwise identical: with all heads at once, and with each head alone.
template <class T>
void expect_made_of_its_parts(const LayerConfig& config, const castle::Options& options) {
    SCOPED_TRACE(support::words_of(config, options));
    const castle::Layer<T> layer(config, options);
    const auto w = layer.weights();
    support::Random random(6);
    Matrix<T> x(150, config.d_model);
    support::fill_normal(random, x);

    const Index d = config.d_head;
    const castle::Shape shape{.d = d, .dv = d, .heads = config.heads, .kv_heads = support::kv_heads_of(config)};
    std::array<Matrix<T>, 6> projected;
    for (std::size_t i = 0; i < 6; ++i) {
        const Matrix<T>& weight = *support::projections_of(w)[i];
        if (weight.size() == 0) continue;
        projected[i] = chain(x, weight);
        if (i == 2) continue;  // causal values are not rotated
        for (Index first = 0; first < projected[i].cols(); first += d) {
            castle::rotate(projected[i].middleCols(first, d), 0);
        }
    }
    castle::Input<T> input{.causal = {.q = projected[0], .k = projected[1], .v = projected[2]}};
    if (options.lookahead_window > 0) input.lookahead = {.q = projected[3], .k = projected[4], .v = projected[5]};

    const Matrix<T> y = layer.forward(x);
    EXPECT_TRUE(support::same_bits(y, chain(castle::parallel(shape, input, options), w.w_out)));
    Matrix<T> attended(x.rows(), config.heads * d);
    for (Index h = 0; h < config.heads; ++h) {
        castle::parallel(input.head(shape, h), attended.middleCols(h * d, d), options);
    }
    EXPECT_TRUE(support::same_bits(y, chain(attended, w.w_out)));
}

TYPED_TEST(Layer, IsMadeOfItsPartsBitwise) {
    for (const Index window : {Index(0), Index(50)}) {
        for (LayerConfig config : {LayerConfig{.d_model = 30, .heads = 3, .d_head = 22, .seed = 6},
                                   LayerConfig{.d_model = 30, .heads = 4, .kv_heads = 2, .d_head = 22, .seed = 7},
                                   LayerConfig{.d_model = 30, .heads = 4, .kv_heads = 1, .d_head = 22, .seed = 8}}) {
            config.rotary = castle::Rotary{};
            expect_made_of_its_parts<TypeParam>(config, {.lookahead_window = window});
        }
    }
}

template <class T>
void expect_same_weights(const castle::LayerWeights<T>& a, const castle::LayerWeights<T>& b) {
    for (std::size_t i = 0; i < 6; ++i) {
        EXPECT_TRUE(support::same_bits(*support::projections_of(a)[i], *support::projections_of(b)[i]))
            << support::input_names[i];
    }
    EXPECT_TRUE(support::same_bits(a.w_out, b.w_out));
}

TYPED_TEST(Layer, WeightsComeBackAsTheyWereSet) {
    using T = TypeParam;
    for (const Index kv_heads : {3, 1}) {
        for (const Index window : {Index(0), castle::unlimited}) {
            const castle::Options options{.lookahead_window = window};
            const LayerConfig config{.d_model = 70, .heads = 3, .kv_heads = kv_heads, .d_head = 5};
            LayerConfig other_config = config;
            other_config.seed = 99;
            SCOPED_TRACE(support::words_of(config, options));
            castle::Layer<T> layer(config, options);
            const castle::Layer<T> other(other_config, options);
            const auto w = other.weights();
            layer.set_weights(w);
            expect_same_weights(layer.weights(), w);

            support::Random random(8);
            Matrix<T> x(33, 70);
            support::fill_normal(random, x);
            EXPECT_TRUE(support::same_bits(layer.forward(x), other.forward(x)));

            const castle::Layer<T> made(config, w, options);
            EXPECT_TRUE(support::same_bits(made.forward(x), other.forward(x)));
        }
    }
}

TYPED_TEST(Layer, OfStandardAttentionTakesThreeProjectionsAndNoMore) {
    using T = TypeParam;
    const LayerConfig config{.d_model = 70, .heads = 3, .d_head = 5};
    const auto w = castle::Layer<T>(config).weights();
    castle::LayerWeights<T> three = w;
    three.lookahead = {};
    castle::Layer<T> standard(config, three, {.lookahead_window = 0});
    EXPECT_TRUE(support::same_bits(standard.weights().causal.v, w.causal.v));
    EXPECT_THROW((castle::Layer<T>(config, w, {.lookahead_window = 0})), std::invalid_argument);
    EXPECT_THROW(standard.set_weights(w), std::invalid_argument);
    EXPECT_THROW((castle::Layer<T>(config, three, {})), std::invalid_argument);
}

// [out, in], as PyTorch keeps them.
TYPED_TEST(Layer, TakesWeightsInEitherOrder) {
    using T = TypeParam;
    const LayerConfig config{.d_model = 70, .heads = 4, .kv_heads = 2, .d_head = 5, .seed = 3};
    for (const Index window : {Index(0), Index(7)}) {
        const castle::Options options{.lookahead_window = window};
        const auto w = castle::Layer<T>(config, options).weights();
        castle::LayerWeights<T> turned = w;
        turned.for_each([](const auto&, Matrix<T>& m) { m = Matrix<T>(m.transpose()); });
        const castle::Layer<T> made(config, turned, options, castle::WeightOrder::out_in);
        expect_same_weights(made.weights(), w);
        castle::Layer<T> layer(config, options);
        layer.set_weights(turned, castle::WeightOrder::out_in);
        expect_same_weights(layer.weights(), w);
        EXPECT_THROW(layer.set_weights(turned), std::invalid_argument);
        EXPECT_THROW(layer.set_weights(w, castle::WeightOrder::out_in), std::invalid_argument);
        expect_same_weights(layer.weights(), w);
    }
}

// Weights may lie anywhere, for example side by side in one matrix of a model's.
TYPED_TEST(Layer, TakesViewsOfWeights) {
    using T = TypeParam;
    const LayerConfig config{.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 5, .seed = 3};
    const auto w = castle::Layer<T>(config).weights();
    Matrix<T> all(12, 20 + 5 * 10 + 3);
    castle::LayerWeightsView<T> views;
    const std::array<castle::ConstMatrixView<T>*, 6> view_of = support::projections_of(views);
    Index first = 2;
    for (std::size_t i = 0; i < 6; ++i) {
        const Matrix<T>& m = *support::projections_of(w)[i];
        all.middleCols(first, m.cols()) = m;
        *view_of[i] = castle::ConstMatrixView<T>(all).middle_cols(first, m.cols());
        first += m.cols();
    }
    views.w_out = w.w_out;
    expect_same_weights(castle::Layer<T>(config, views).weights(), w);
}

TEST(LayerWeights, HaveTheShapesOfTheirNamesAndDependOnTheSeed) {
    const castle::Layer<float> layer({.d_model = 11, .heads = 3, .d_head = 5, .seed = 1});
    const auto w = layer.weights();
    for (const Matrix<float>* m : support::projections_of(w)) {
        EXPECT_EQ(m->rows(), 11);
        EXPECT_EQ(m->cols(), 15);
        EXPECT_GT(m->cwiseAbs().minCoeff(), 0);
        EXPECT_LE(m->cwiseAbs().maxCoeff(), std::sqrt(3.0F / 11));
    }
    EXPECT_EQ(w.w_out.rows(), 15);
    EXPECT_EQ(w.w_out.cols(), 11);
    EXPECT_FALSE(support::same_bits(w.causal.q, w.causal.k));
    const castle::Layer<float> other({.d_model = 11, .heads = 3, .d_head = 5, .seed = 2});
    EXPECT_FALSE(support::same_bits(w.causal.q, other.weights().causal.q));
    const castle::Layer<float> standard({.d_model = 11, .heads = 3, .d_head = 5}, {.lookahead_window = 0});
    EXPECT_EQ(standard.weights().lookahead.q.size(), 0);
}

TEST(LayerWeights, OfGroupedQueriesAreAsWideAsTheirHeads) {
    const castle::Layer<float> layer({.d_model = 11, .heads = 6, .kv_heads = 2, .d_head = 5, .seed = 1});
    const auto w = layer.weights();
    for (std::size_t i = 0; i < 6; ++i) {
        const Matrix<float>& m = *support::projections_of(w)[i];
        EXPECT_EQ(m.rows(), 11) << support::input_names[i];
        EXPECT_EQ(m.cols(), i == 0 ? 30 : 10) << support::input_names[i];
        EXPECT_GT(m.cwiseAbs().minCoeff(), 0) << support::input_names[i];
        EXPECT_LE(m.cwiseAbs().maxCoeff(), std::sqrt(3.0F / 11)) << support::input_names[i];
    }
    EXPECT_EQ(w.w_out.rows(), 30);
    EXPECT_EQ(w.w_out.cols(), 11);
}

TEST(LayerWeights, AreVisitedByName) {
    using Names = std::vector<std::string>;
    const auto names_of = [](const auto& weights) {
        Names names;
        weights.for_each([&](const auto& name, const Matrix<float>& m) {
            EXPECT_GT(m.size(), 0);
            names.emplace_back(name);
        });
        return names;
    };
    const LayerConfig config{.d_model = 4, .heads = 2, .d_head = 3};
    const castle::Layer<float> layer(config), standard(config, {.lookahead_window = 0});
    EXPECT_EQ(names_of(layer.weights()),
              (Names{"causal.q", "causal.k", "causal.v", "lookahead.q", "lookahead.k", "lookahead.v", "w_out"}));
    EXPECT_EQ(names_of(standard.weights()), (Names{"causal.q", "causal.k", "causal.v", "w_out"}));
    Index elements = 0;
    auto weights = layer.weights();
    weights.for_each([&](const auto&, Matrix<float>& m) {
        elements += m.size();
        m.setZero();
    });
    EXPECT_EQ(elements, layer.parameters());
    EXPECT_EQ(weights.lookahead.k.cwiseAbs().maxCoeff(), 0);
}

TEST(LayerWeights, HaveAGradientOfZerosInTheirShapes) {
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Layer<float> layer({.d_model = 4, .heads = 4, .kv_heads = 2, .d_head = 3},
                                         {.lookahead_window = window});
        const auto w = layer.weights(), zero = layer.zero_gradient();
        for (std::size_t i = 0; i < 6; ++i) {
            const Matrix<float>& weight = *support::projections_of(w)[i];
            const Matrix<float>& gradient = *support::projections_of(zero)[i];
            EXPECT_TRUE(support::same_bits(gradient, Matrix<float>(Matrix<float>::Zero(weight.rows(), weight.cols()))))
                << support::input_names[i];
        }
        EXPECT_TRUE(support::same_bits(zero.w_out, Matrix<float>(Matrix<float>::Zero(12, 4))));
    }
}

TEST(LayerParameters, AreEqualForFourteenHeadsOfStandardAttentionAndEightOfCastle) {
    const castle::Layer<float> castle_layer({.d_model = 64, .heads = 8, .d_head = 16});
    const castle::Layer<float> standard({.d_model = 64, .heads = 14, .d_head = 16}, {.lookahead_window = 0});
    EXPECT_EQ(castle_layer.parameters(), 7 * 8 * 16 * 64);
    EXPECT_EQ(castle_layer.parameters(), standard.parameters());
    const castle::Layer<float> grouped({.d_model = 64, .heads = 8, .kv_heads = 2, .d_head = 16});
    EXPECT_EQ(grouped.parameters(), (2 * 8 + 5 * 2) * 16 * 64);
}

TEST(LayerEmptyInput, GivesEmptyOutput) {
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Layer<float> layer({.d_model = 12, .heads = 2, .d_head = 4}, {.lookahead_window = window});
        const Matrix<float> none(0, 12);
        EXPECT_EQ(layer.forward(none).rows(), 0);
        EXPECT_EQ(layer.forward(none).cols(), 12);
        auto cache = layer.make_cache();
        EXPECT_EQ(layer.extend(cache, none).rows(), 0);
        EXPECT_EQ(cache.size(), 0);
    }
}

constexpr auto message = [](const auto& call) { return support::message<std::invalid_argument>(call); };

TEST(LayerErrors, NameTheArgumentAndBothShapes) {
    using Layer = castle::Layer<float>;
    Layer layer({.d_model = 12, .heads = 2, .d_head = 4});
    const Matrix<float> narrow = Matrix<float>::Zero(5, 11);
    EXPECT_EQ(message([&] { return layer.forward(narrow); }),
              "castle::Layer: x is [5, 11] but must be [5, 12] for 5 tokens (the rows of x) and a layer of d_model 12");
    const Matrix<float> x = Matrix<float>::Zero(5, 12);
    Matrix<float> y(4, 12);
    const castle::ConstMatrixView<float> negative(x.data(), -1, 12), endless(x.data(), Index(1) << 61, 11);
    EXPECT_NE(message([&] { return layer.forward(negative); }).find("x is [-1, 12]"), std::string::npos);
    EXPECT_NE(message([&] { return layer.forward(endless); }).find("but must be"), std::string::npos);
    EXPECT_NE(message([&] { layer.forward(x, y); }).find("y is [4, 12] but must be [5, 12]"), std::string::npos);

    EXPECT_NE(message([] { Layer({.d_model = 0, .heads = 2, .d_head = 4}); }).find("d_model is 0"), std::string::npos);
    EXPECT_NE(message([] { Layer({.d_model = 4, .heads = -1, .d_head = 4}); }).find("heads is -1"), std::string::npos);
    EXPECT_NE(message([] { Layer({.d_model = 4, .heads = 1, .d_head = 0}); }).find("d_head is 0"), std::string::npos);
    EXPECT_NE(message([] { Layer({.d_model = 4, .heads = Index(1) << 40, .d_head = Index(1) << 40}); }).find("heads"),
              std::string::npos);
    EXPECT_NE(message([] { Layer({.d_model = 4, .heads = 1, .d_head = 3, .rotary = castle::Rotary{}}); }).find("even"),
              std::string::npos);
    EXPECT_NE(message([] { Layer({.d_model = 4, .heads = 1, .d_head = 2}, {.lookahead_window = -1}); }).find("window"),
              std::string::npos);
    // Heads that are no multiple of the key-value heads.
    for (const Index kv_heads : {-1, 2, 4, 6}) {
        const std::string text = message([&] { Layer({.d_model = 4, .heads = 3, .kv_heads = kv_heads, .d_head = 2}); });
        EXPECT_NE(text.find("kv_heads"), std::string::npos) << text;
        EXPECT_NE(text.find(std::to_string(kv_heads)), std::string::npos) << text;
    }

    auto weights = layer.weights();
    const auto before = layer.forward(x);
    weights.lookahead.k.resize(12, 9);
    EXPECT_NE(message([&] { layer.set_weights(weights); }).find("weights.lookahead.k is [12, 9] but must be [12, 8]"),
              std::string::npos);
    EXPECT_TRUE(support::same_bits(layer.forward(x), before));
    const Layer grouped({.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 4});
    auto wide = grouped.weights();
    wide.causal.v.resize(12, 16);
    EXPECT_NE(message([&] { Layer(grouped.config(), wide); }).find("weights.causal.v is [12, 16] but must be [12, 8]"),
              std::string::npos);
}

TEST(LayerErrors, LeaveTheCacheAsItWas) {
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Layer<float> layer({.d_model = 12, .heads = 2, .d_head = 4}, {.lookahead_window = window});
        support::Random random(9);
        Matrix<float> x(80, 12);
        support::fill_normal(random, x);
        const Matrix<float> expected = layer.forward(x);
        auto cache = layer.make_cache();
        layer.extend(cache, x.topRows(50));
        const Matrix<float> narrow = Matrix<float>::Zero(5, 11);
        EXPECT_THROW(layer.extend(cache, narrow), std::invalid_argument);
        EXPECT_EQ(cache.size(), 50);
        EXPECT_TRUE(support::same_bits(layer.extend(cache, x.bottomRows(30)), Matrix<float>(expected.bottomRows(30))));
    }
}

TEST(LayerErrors, RejectTheCacheOfALayerOfAnotherKind) {
    using Layer = castle::Layer<float>;
    const LayerConfig config{.d_model = 12, .heads = 2, .d_head = 4};
    const LayerConfig rotary{.d_model = 12, .heads = 2, .d_head = 4, .rotary = castle::Rotary{}};
    const LayerConfig other_base{.d_model = 12, .heads = 2, .d_head = 4, .rotary = castle::Rotary{.base = 500}};
    const castle::Options standard{.lookahead_window = 0};
    const Matrix<float> x = Matrix<float>::Zero(1, 12);
    const auto rejects = [&](const auto& layer, const auto& maker) {
        auto cache = maker.make_cache();
        const std::string text = message([&] { layer.extend(cache, x); });
        return text.find("cache") != std::string::npos && cache.size() == 0;
    };
    EXPECT_TRUE(rejects(Layer(config), Layer(config, standard)));
    EXPECT_TRUE(rejects(Layer(config, standard), Layer(config)));
    EXPECT_TRUE(rejects(Layer(config, standard), Layer(config, {.lookahead_window = 1})));
    EXPECT_TRUE(rejects(Layer(config), Layer(config, {.lookahead_window = 5})));
    EXPECT_TRUE(rejects(Layer(config), Layer(config, {.scale = 0.1})));
    EXPECT_TRUE(rejects(Layer(config), Layer(config, {.silu = false})));
    EXPECT_TRUE(rejects(Layer(config), Layer(config, {.causal_keys = false})));
    EXPECT_TRUE(rejects(Layer(config), Layer({.d_model = 13, .heads = 2, .d_head = 4})));
    EXPECT_TRUE(rejects(Layer(config), Layer({.d_model = 12, .heads = 3, .d_head = 4})));
    EXPECT_TRUE(rejects(Layer(config), Layer({.d_model = 12, .heads = 2, .kv_heads = 1, .d_head = 4})));
    EXPECT_TRUE(rejects(Layer(config), Layer({.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 4})));
    EXPECT_TRUE(rejects(Layer(config), Layer({.d_model = 12, .heads = 2, .d_head = 6})));
    EXPECT_TRUE(rejects(Layer(rotary), Layer(config)));
    EXPECT_TRUE(rejects(Layer(config), Layer(rotary)));
    EXPECT_TRUE(rejects(Layer(rotary), Layer(other_base)));
    EXPECT_FALSE(rejects(Layer(rotary), Layer(rotary)));
    EXPECT_FALSE(rejects(Layer(config, standard), Layer(config, standard)));
    // As many key-value heads as heads, said or not.
    EXPECT_FALSE(rejects(Layer(config), Layer({.d_model = 12, .heads = 2, .kv_heads = 2, .d_head = 4})));

    auto one = Layer(config).make_cache(), other = Layer(config, {.lookahead_window = 5}).make_cache();
    const std::vector<castle::LayerCache<float>*> batch{&one, &other};
    const std::vector<Index> counts{1, 1};
    const Matrix<float> two = Matrix<float>::Zero(2, 12), three = Matrix<float>::Zero(3, 12);
    Matrix<float> y(2, 12), longer(3, 12);
    EXPECT_EQ(message([&] {
                  Layer(config, {.lookahead_window = 7})
                      .extend(std::span(batch).last(1), std::span(counts).last(1), two.topRows(1), y.topRows(1));
              }),
              "castle::Layer: caches[0] is for a layer with lookahead_window 5 but the layer has 7");
    EXPECT_NE(message([&] { Layer(config).extend(batch, counts, two, y); }).find("caches[1]"), std::string::npos);
    auto same = Layer(config).make_cache();
    const std::vector<castle::LayerCache<float>*> pair{&one, &same};
    EXPECT_EQ(message([&] { Layer(config).extend(pair, counts, three, longer); }),
              "castle::Layer: the counts come to 2 but x has 3 rows");
    const std::string text = message([&] { Layer(config).extend(pair, counts, two, longer); });
    EXPECT_TRUE(text.starts_with("castle::Layer: y is [3, 12] but must be [2, 12] for 2 tokens")) << text;
    EXPECT_EQ(one.size(), 0);
    EXPECT_EQ(same.size(), 0);
    EXPECT_THROW(Layer(config).make_cache().lookahead_keys(2), std::invalid_argument);
    EXPECT_THROW(Layer(config).make_cache().lookahead_keys(-1), std::invalid_argument);
    const Layer grouped({.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 4});
    EXPECT_EQ(grouped.make_cache().lookahead_keys(1).cols(), 4);
    EXPECT_THROW(grouped.make_cache().lookahead_keys(2), std::invalid_argument);
}

}  // namespace
