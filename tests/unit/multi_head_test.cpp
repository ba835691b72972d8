// SPDX-License-Identifier: Apache-2.0
#include <castle/multi_head.hpp>
#include <castle/parallel.hpp>

#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "support/generators.hpp"
#include "support/layers.hpp"
#include "support/message.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;
using castle::MultiHeadConfig;

template <class T>
class MultiHead : public testing::Test {};
TYPED_TEST_SUITE(MultiHead, support::Scalars);

// The layer's error against the oracle in long double, beside that of a plain evaluation in T.
template <class T, class Layer>
void expect_as_precise_as_plain(const Layer& layer, Index length, Index window) {
    const MultiHeadConfig& config = layer.config();
    SCOPED_TRACE(support::describe("L ", length, ", d_model ", config.d_model, ", heads ", config.heads, ", d_head ",
                                   config.d_head, ", window ", window));
    support::Random random(static_cast<std::uint64_t>(length));
    Matrix<T> x(length, config.d_model);
    support::fill_normal(random, x);
    const auto settings = oracle::standard_settings(config.d_head, window);
    const auto weights = layer.weights();
    const auto exact = oracle::evaluate(support::oracle_layer<long double>(weights, config),
                                        support::oracle_rows<long double>(x), settings);
    const auto plain =
        oracle::evaluate(support::oracle_layer<T>(weights, config), support::oracle_rows<T>(x), settings);
    const Matrix<T> y =
        support::written<T>(length, config.d_model, [&](castle::MatrixView<T> out) { layer.forward(x, out); });
    EXPECT_TRUE(support::as_precise_as_plain(exact, plain, y));
}

TYPED_TEST(MultiHead, MatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 2, 33, 70}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (const MultiHeadConfig& config : {MultiHeadConfig{.d_model = 20, .heads = 3, .d_head = 6, .seed = 1},
                                                  MultiHeadConfig{.d_model = 65, .heads = 1, .d_head = 64, .seed = 2},
                                                  MultiHeadConfig{.d_model = 33, .heads = 2, .d_head = 1, .seed = 3}}) {
                const castle::MultiHeadCastle<T> layer(config, {.lookahead_window = window});
                expect_as_precise_as_plain<T>(layer, length, window);
            }
        }
    }
}

TYPED_TEST(MultiHead, RotatesJustTheProjectionsThatItIsAskedTo) {
    using T = TypeParam;
    MultiHeadConfig config{.d_model = 12, .heads = 2, .d_head = 10, .rotary = castle::Rotary{}, .seed = 4};
    expect_as_precise_as_plain<T>(castle::MultiHeadCastle<T>(config), 40, castle::unlimited);
    expect_as_precise_as_plain<T>(castle::MultiHeadCausal<T>(config), 40, 0);

    for (const castle::Rotary& rotary : support::rotaries_of_one_projection()) {
        config.rotary = rotary;
        expect_as_precise_as_plain<T>(castle::MultiHeadCastle<T>(config), 40, castle::unlimited);
    }
}

TYPED_TEST(MultiHead, CausalLayerMatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 40, 70}) {
        const castle::MultiHeadCausal<T> layer({.d_model = 20, .heads = 3, .d_head = 7, .seed = 5});
        expect_as_precise_as_plain<T>(layer, length, 0);
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

// The number of rows decides which tiles a product runs through, but not its chains of fused multiply-adds. So a layer
// put together from the library's parts has the layer's bits.
TYPED_TEST(MultiHead, IsMadeOfItsPartsToTheBit) {
    using T = TypeParam;
    const MultiHeadConfig config{.d_model = 30, .heads = 3, .d_head = 22, .rotary = castle::Rotary{}, .seed = 6};
    const castle::Options options{.lookahead_window = 50};
    const castle::MultiHeadCastle<T> layer(config, options);
    const auto w = layer.weights();
    support::Random random(6);
    Matrix<T> x(150, config.d_model);
    support::fill_normal(random, x);

    const auto chain = [](const Matrix<T>& a, const Matrix<T>& b) {
        Matrix<T> c = Matrix<T>::Zero(a.rows(), b.cols());
        for (Index i = 0; i < a.rows(); ++i) {
            for (Index j = 0; j < b.cols(); ++j) {
                for (Index k = 0; k < a.cols(); ++k) c(i, j) = multiply_add(a(i, k), b(k, j), c(i, j));
            }
        }
        return c;
    };
    std::array<Matrix<T>, 6> projected{chain(x, w.causal.q),    chain(x, w.causal.k),    chain(x, w.causal.v),
                                       chain(x, w.lookahead.q), chain(x, w.lookahead.k), chain(x, w.lookahead.v)};
    Matrix<T> attended(x.rows(), config.heads * config.d_head);
    for (Index h = 0; h < config.heads; ++h) {
        const auto part = [&](std::size_t i) { return projected[i].middleCols(h * config.d_head, config.d_head); };
        for (const std::size_t i : std::array<std::size_t, 5>{0, 1, 3, 4, 5}) castle::rotate(part(i), 0);
        castle::parallel(castle::HeadInput<T>{.causal = {.q = part(0), .k = part(1), .v = part(2)},
                                              .lookahead = {.q = part(3), .k = part(4), .v = part(5)}},
                         attended.middleCols(h * config.d_head, config.d_head), options);
    }
    EXPECT_TRUE(support::same_bits(layer.forward(x), chain(attended, w.w_out)));
}

TYPED_TEST(MultiHead, WeightsComeBackAsTheyWereSet) {
    using T = TypeParam;
    castle::MultiHeadCastle<T> layer({.d_model = 70, .heads = 3, .d_head = 5});
    const castle::MultiHeadCastle<T> other({.d_model = 70, .heads = 3, .d_head = 5, .seed = 99});
    const auto w = other.weights();
    layer.set_weights(w);
    const auto back = layer.weights();
    EXPECT_TRUE(support::same_bits(back.causal.q, w.causal.q));
    EXPECT_TRUE(support::same_bits(back.causal.k, w.causal.k));
    EXPECT_TRUE(support::same_bits(back.causal.v, w.causal.v));
    EXPECT_TRUE(support::same_bits(back.lookahead.q, w.lookahead.q));
    EXPECT_TRUE(support::same_bits(back.lookahead.k, w.lookahead.k));
    EXPECT_TRUE(support::same_bits(back.lookahead.v, w.lookahead.v));
    EXPECT_TRUE(support::same_bits(back.w_out, w.w_out));

    support::Random random(8);
    Matrix<T> x(33, 70);
    support::fill_normal(random, x);
    EXPECT_TRUE(support::same_bits(layer.forward(x), other.forward(x)));

    const castle::MultiHeadCastle<T> made({.d_model = 70, .heads = 3, .d_head = 5}, w, {});
    EXPECT_TRUE(support::same_bits(made.forward(x), other.forward(x)));
    castle::MultiHeadWeights<T> three = w;
    three.lookahead = {};
    const castle::MultiHeadCausal<T> causal({.d_model = 70, .heads = 3, .d_head = 5}, three, {});
    EXPECT_TRUE(support::same_bits(causal.weights().causal.v, w.causal.v));
    EXPECT_THROW((castle::MultiHeadCausal<T>({.d_model = 70, .heads = 3, .d_head = 5}, w, {})), std::invalid_argument);
}

TEST(MultiHeadWeights, HaveTheShapesOfTheirNamesAndDependOnTheSeed) {
    const castle::MultiHeadCastle<float> layer({.d_model = 11, .heads = 3, .d_head = 5, .seed = 1});
    const auto w = layer.weights();
    for (const Matrix<float>* m :
         {&w.causal.q, &w.causal.k, &w.causal.v, &w.lookahead.q, &w.lookahead.k, &w.lookahead.v}) {
        EXPECT_EQ(m->rows(), 11);
        EXPECT_EQ(m->cols(), 15);
        EXPECT_GT(m->cwiseAbs().minCoeff(), 0);
        EXPECT_LE(m->cwiseAbs().maxCoeff(), std::sqrt(3.0F / 11));
    }
    EXPECT_EQ(w.w_out.rows(), 15);
    EXPECT_EQ(w.w_out.cols(), 11);
    EXPECT_FALSE(support::same_bits(w.causal.q, w.causal.k));
    const castle::MultiHeadCastle<float> other({.d_model = 11, .heads = 3, .d_head = 5, .seed = 2});
    EXPECT_FALSE(support::same_bits(w.causal.q, other.weights().causal.q));
    const castle::MultiHeadCausal<float> causal({.d_model = 11, .heads = 3, .d_head = 5});
    EXPECT_EQ(causal.weights().lookahead.q.size(), 0);
}

TEST(MultiHeadParameters, AreEqualForFourteenCausalHeadsAndEightOfCastle) {
    const castle::MultiHeadCastle<float> castle_layer({.d_model = 64, .heads = 8, .d_head = 16});
    const castle::MultiHeadCausal<float> causal_layer({.d_model = 64, .heads = 14, .d_head = 16});
    EXPECT_EQ(castle_layer.parameters(), 7 * 8 * 16 * 64);
    EXPECT_EQ(castle_layer.parameters(), causal_layer.parameters());
}

TEST(MultiHeadEmptyInput, GivesEmptyOutput) {
    const castle::MultiHeadCastle<float> layer({.d_model = 12, .heads = 2, .d_head = 4});
    const Matrix<float> none(0, 12);
    EXPECT_EQ(layer.forward(none).rows(), 0);
    EXPECT_EQ(layer.forward(none).cols(), 12);
    auto cache = layer.make_cache();
    EXPECT_EQ(layer.extend(cache, none).rows(), 0);
    EXPECT_EQ(cache.size(), 0);
}

constexpr auto message = [](const auto& call) { return support::message<std::invalid_argument>(call); };

TEST(MultiHeadErrors, NameTheArgumentAndBothShapes) {
    using Layer = castle::MultiHeadCastle<float>;
    Layer layer({.d_model = 12, .heads = 2, .d_head = 4});
    const Matrix<float> narrow = Matrix<float>::Zero(5, 11);
    EXPECT_EQ(message([&] { return layer.forward(narrow); }),
              "castle::MultiHeadCastle: x is [5, 11] but must be [5, 12] for 5 tokens (the rows of x) and a layer of "
              "d_model 12");
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

    auto weights = layer.weights();
    const auto before = layer.forward(x);
    weights.lookahead.k.resize(12, 9);
    EXPECT_NE(message([&] { layer.set_weights(weights); }).find("weights.lookahead.k is [12, 9] but must be [12, 8]"),
              std::string::npos);
    EXPECT_TRUE(support::same_bits(layer.forward(x), before));
}

TEST(MultiHeadErrors, LeaveTheCacheAsItWas) {
    const castle::MultiHeadCastle<float> layer({.d_model = 12, .heads = 2, .d_head = 4});
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

TEST(MultiHeadErrors, RefuseTheCacheOfALayerOfAnotherKind) {
    using Layer = castle::MultiHeadCastle<float>;
    const MultiHeadConfig config{.d_model = 12, .heads = 2, .d_head = 4};
    const MultiHeadConfig rotary{.d_model = 12, .heads = 2, .d_head = 4, .rotary = castle::Rotary{}};
    const MultiHeadConfig other_base{.d_model = 12, .heads = 2, .d_head = 4, .rotary = castle::Rotary{.base = 500}};
    const Matrix<float> x = Matrix<float>::Zero(1, 12);
    const auto refuses = [&](const auto& layer, const auto& maker) {
        auto cache = maker.make_cache();
        const std::string text = message([&] { layer.extend(cache, x); });
        return text.find("cache") != std::string::npos && cache.size() == 0;
    };
    EXPECT_TRUE(refuses(Layer(config), castle::MultiHeadCausal<float>(config)));
    EXPECT_TRUE(refuses(Layer(config, {.lookahead_window = 0}), castle::MultiHeadCausal<float>(config)));
    EXPECT_TRUE(refuses(Layer(config), Layer(config, {.lookahead_window = 5})));
    EXPECT_TRUE(refuses(Layer(config), Layer(config, {.scale = 0.1})));
    EXPECT_TRUE(refuses(Layer(config), Layer(config, {.silu = false})));
    EXPECT_TRUE(refuses(Layer(config), Layer(config, {.causal_keys = false})));
    EXPECT_TRUE(refuses(Layer(config), Layer({.d_model = 13, .heads = 2, .d_head = 4})));
    EXPECT_TRUE(refuses(Layer(config), Layer({.d_model = 12, .heads = 3, .d_head = 4})));
    EXPECT_TRUE(refuses(Layer(config), Layer({.d_model = 12, .heads = 2, .d_head = 6})));
    EXPECT_TRUE(refuses(Layer(rotary), Layer(config)));
    EXPECT_TRUE(refuses(Layer(config), Layer(rotary)));
    EXPECT_TRUE(refuses(Layer(rotary), Layer(other_base)));
    EXPECT_FALSE(refuses(Layer(rotary), Layer(rotary)));

    auto one = Layer(config).make_cache(), other = Layer(config, {.lookahead_window = 5}).make_cache();
    const std::vector<castle::MultiHeadCache<float>*> batch{&one, &other};
    const Matrix<float> two = Matrix<float>::Zero(2, 12), three = Matrix<float>::Zero(3, 12);
    Matrix<float> y(2, 12);
    EXPECT_EQ(
        message([&] { Layer(config, {.lookahead_window = 7}).extend(std::span(batch).last(1), x, y.topRows(1)); }),
        "castle::MultiHeadCastle: caches[0] is for a layer with lookahead_window 5 but the layer has 7");
    EXPECT_NE(message([&] { Layer(config).extend(batch, two, y); }).find("caches[1]"), std::string::npos);
    EXPECT_EQ(message([&] { Layer(config).extend(batch, three, y); }),
              "castle::MultiHeadCastle: x is [3, 12] but must be [2, 12] for 2 caches and a layer of d_model 12");
    EXPECT_THROW(Layer(config).make_cache().lookahead_keys(2), std::invalid_argument);
}

}  // namespace
