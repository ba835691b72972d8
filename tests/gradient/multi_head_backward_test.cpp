// SPDX-License-Identifier: Apache-2.0
#include <castle/multi_head.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <type_traits>

#include <gtest/gtest.h>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/layer_gradient_oracle.hpp"
#include "support/layers.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;
using castle::MultiHeadConfig;
using namespace support;

const castle::Rotary all_rotated{.causal_v = true, .base = 100};

TEST(LayerGradientOracle, MatchesCentralDifferencesOfTheDefinitionInEveryNumber) {
    constexpr double step = 1e-5;
    std::uint64_t seed = 3000;
    for (const Index window : {Index(0), Index(2), castle::unlimited}) {
        for (const auto& rotary : {std::optional<castle::Rotary>(), std::optional(all_rotated)}) {
            Random random(++seed);
            const MultiHeadConfig config{.d_model = 3, .heads = 2, .d_head = 2, .rotary = rotary, .seed = seed};
            oracle::Layer<double> layer =
                oracle_layer<double>(castle::MultiHeadCastle<double>(config).weights(), config);
            Matrix<double> x_numbers(6, 3), d_y_numbers(6, 3);
            fill_normal(random, x_numbers);
            fill_normal(random, d_y_numbers);
            oracle::Rows<double> x = oracle_rows<double>(x_numbers);
            const oracle::Rows<double> d_y = oracle_rows<double>(d_y_numbers);
            const oracle::Settings settings = oracle::standard_settings(2, window);
            const oracle::LayerGradient<double> g = oracle::backward(layer, x, d_y, settings);
            const auto loss = [&] {
                const oracle::Rows<double> y = oracle::evaluate(layer, x, settings);
                double sum = 0;
                for (Index t = 0; t < y.rows(); ++t) sum += oracle::dot(y, t, d_y, t);
                return sum;
            };
            const auto expect = [&](const char* what, oracle::Rows<double>& at, const oracle::Rows<double>& gradient) {
                for (Index i = 0; i < at.rows(); ++i) {
                    for (Index j = 0; j < at.cols(); ++j) {
                        const double before = at(i, j);
                        at(i, j) = before + step;
                        const double above = loss();
                        at(i, j) = before - step;
                        const double below = loss();
                        at(i, j) = before;
                        ASSERT_NEAR((above - below) / (2 * step), gradient(i, j), 1e-8)
                            << what << "(" << i << ", " << j << "), seed " << seed;
                    }
                }
            };
            expect("x", x, g.x);
            for (std::size_t i = 0; i < 6; ++i) expect(input_names[i], layer.in[i], g.in[i]);
            expect("w_out", layer.out, g.out);
        }
    }
}

template <class T>
class MultiHeadBackward : public testing::Test {};
TYPED_TEST_SUITE(MultiHeadBackward, support::Scalars);

template <class T>
struct Case {
    Matrix<T> x;
    Matrix<T> d_y;

    Case(Index length, Index d_model, std::uint64_t seed = 1) : x(length, d_model), d_y(length, d_model) {
        Random random(seed);
        fill_normal(random, x);
        fill_normal(random, d_y);
    }
};

// Both passes in a workspace of their own.
template <class Layer, class T = typename Layer::value_type>
castle::MultiHeadGradient<T> run_backward(const Layer& layer, const Case<T>& c) {
    auto workspace = layer.make_workspace();
    Matrix<T> y(c.x.rows(), c.x.cols());
    layer.forward(workspace, c.x, y);
    return layer.backward(workspace, c.x, c.d_y);
}

template <class T>
void expect_same_bits(const castle::MultiHeadGradient<T>& a, const castle::MultiHeadGradient<T>& b) {
    EXPECT_TRUE(same_bits(a.x, b.x));
    for (std::size_t i = 0; i < 6; ++i) {
        EXPECT_TRUE(same_bits(*projections_of(a.weights)[i], *projections_of(b.weights)[i])) << input_names[i];
    }
    EXPECT_TRUE(same_bits(a.weights.w_out, b.weights.w_out));
}

template <class T>
using Exact = std::conditional_t<std::same_as<T, float>, double, long double>;

template <class Layer>
void expect_gradients(const Layer& layer, Index length) {
    using T = typename Layer::value_type;
    const MultiHeadConfig& config = layer.config();
    SCOPED_TRACE(describe("L ", length, ", d_model ", config.d_model, ", heads ", config.heads, ", d_head ",
                          config.d_head, ", window ", layer.options().lookahead_window));
    const Case<T> c(length, config.d_model);
    const auto by_oracle = [&]<class S>(S, oracle::Terms terms) {
        return oracle::backward(oracle_layer<S>(layer.weights(), config), oracle_rows<S>(c.x), oracle_rows<S>(c.d_y),
                                oracle_settings(config.d_head, layer.options()), terms);
    };
    const auto exact = by_oracle(Exact<T>(), oracle::Terms::as_they_are);
    const auto magnitude = by_oracle(Exact<T>(), oracle::Terms::absolute);
    const auto plain = by_oracle(T(), oracle::Terms::as_they_are);
    const castle::MultiHeadGradient<T> ours = run_backward(layer, c);
    EXPECT_TRUE(gradient_as_precise_as_plain(exact.x, plain.x, magnitude.x, ours.x)) << "x";
    EXPECT_TRUE(gradient_as_precise_as_plain(exact.out, plain.out, magnitude.out, ours.weights.w_out)) << "w_out";
    for (std::size_t i = 0; i < 6; ++i) {
        const Matrix<T>& weight = *projections_of(ours.weights)[i];
        if (exact.in[i].rows() == 0) {
            EXPECT_EQ(weight.size(), 0) << input_names[i];
            continue;
        }
        EXPECT_TRUE(gradient_as_precise_as_plain(exact.in[i], plain.in[i], magnitude.in[i], weight)) << input_names[i];
    }
}

TYPED_TEST(MultiHeadBackward, MatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 2, 33, 70, 97}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (const MultiHeadConfig& config : {MultiHeadConfig{.d_model = 20, .heads = 3, .d_head = 6, .seed = 1},
                                                  MultiHeadConfig{.d_model = 65, .heads = 1, .d_head = 66, .seed = 2},
                                                  MultiHeadConfig{.d_model = 7, .heads = 2, .d_head = 1, .seed = 3}}) {
                expect_gradients(castle::MultiHeadCastle<T>(config, {.lookahead_window = window}), length);
            }
        }
    }
}

TYPED_TEST(MultiHeadBackward, MatchesOracleWithoutPartsOfTheScores) {
    using T = TypeParam;
    const MultiHeadConfig config{.d_model = 20, .heads = 3, .d_head = 6, .seed = 1};
    for (const castle::Options& options : partial_scores(9)) {
        expect_gradients(castle::MultiHeadCastle<T>(config, options), 40);
    }
}

TYPED_TEST(MultiHeadBackward, OfACausalLayerMatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 40, 70}) {
        const MultiHeadConfig config{.d_model = 20, .heads = 3, .d_head = 7, .seed = 5};
        expect_gradients(castle::MultiHeadCausal<T>(config), length);
    }
}

TYPED_TEST(MultiHeadBackward, TurnsBackJustTheProjectionsThatAreRotated) {
    using T = TypeParam;
    MultiHeadConfig config{.d_model = 12, .heads = 2, .d_head = 10, .rotary = castle::Rotary{}, .seed = 4};
    expect_gradients(castle::MultiHeadCastle<T>(config), 40);
    expect_gradients(castle::MultiHeadCausal<T>(config), 40);
    for (const castle::Rotary& rotary : rotaries_of_one_projection()) {
        config.rotary = rotary;
        expect_gradients(castle::MultiHeadCastle<T>(config), 40);
    }
}

// Panels of 64 that are whole, that end early and that several projections share; more rows than one pass over a piece
// of the weights takes.
TYPED_TEST(MultiHeadBackward, MatchesOracleWhereverPanelsEnd) {
    using T = TypeParam;
    const castle::Options options{.lookahead_window = 9};
    expect_gradients(castle::MultiHeadCausal<T>({.d_model = 128, .heads = 1, .d_head = 64, .seed = 7}, {}), 100);
    expect_gradients(castle::MultiHeadCastle<T>({.d_model = 70, .heads = 1, .d_head = 64, .seed = 8}, options), 34);
    expect_gradients(castle::MultiHeadCastle<T>({.d_model = 64, .heads = 1, .d_head = 80, .seed = 9}, options), 20);
}

// Nor do they read what lies behind the rows of d_y and x.
TYPED_TEST(MultiHeadBackward, WritesNothingOutsideTheGradients) {
    using T = TypeParam;
    for (const Index d_model : {20, 64, 70}) {
        const castle::MultiHeadCastle<T> layer({.d_model = d_model, .heads = 3, .d_head = 22});
        const Case<T> c(100, d_model);
        const castle::MultiHeadGradient<T> expected = run_backward(layer, c);
        Matrix<T> x = Matrix<T>::Constant(100, d_model + 3, sentinel<T>()), d_y = x;
        x.leftCols(d_model) = c.x;
        d_y.leftCols(d_model) = c.d_y;
        auto workspace = layer.make_workspace();
        Matrix<T> y(100, d_model);
        layer.forward(workspace, x.leftCols(d_model), y);
        castle::MultiHeadGradient<T> g = expected;
        for (auto* m : projections_of(g.weights)) m->setZero();
        g.weights.w_out.setZero();
        g.x = written<T>(100, d_model, [&](castle::MatrixView<T> d_x) {
            layer.backward(workspace, x.leftCols(d_model), d_y.leftCols(d_model), d_x, g.weights);
        });
        expect_same_bits(g, expected);
    }
}

// The weights are the layer's, and it keeps them once.
TYPED_TEST(MultiHeadBackward, AnEmptyWorkspaceDoesNotGrowWithTheWeights) {
    using T = TypeParam;
    for (const Index d_model : {64, 512}) {
        const castle::MultiHeadCastle<T> layer({.d_model = d_model, .heads = 4, .d_head = 64});
        EXPECT_LT(layer.make_workspace().bytes(), 1024);
    }
}

TYPED_TEST(MultiHeadBackward, HasTheSameBitsForEveryExecutor) {
    using T = TypeParam;
    const MultiHeadConfig config{.d_model = 70, .heads = 3, .d_head = 22, .rotary = all_rotated, .seed = 6};
    const Case<T> c(700, 70);
    for (const Index window : {Index(0), Index(77), castle::unlimited}) {
        const auto serial = run_backward(castle::MultiHeadCastle<T>(config, {.lookahead_window = window}), c);
        ThreadPool two(2), four(4);
        for (const castle::Executor& executor :
             {reversed_executor(), shuffled_executor(1), two.executor(), four.executor()}) {
            const castle::Options options{.lookahead_window = window, .executor = executor};
            expect_same_bits(serial, run_backward(castle::MultiHeadCastle<T>(config, options), c));
        }
    }
}

TYPED_TEST(MultiHeadBackward, ForwardHasTheBitsOfTheLayer) {
    using T = TypeParam;
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}});
    auto workspace = layer.make_workspace();
    for (const Index length : {300, 5, 0, 31, 301}) {
        const Case<T> c(length, 20);
        const Matrix<T> y =
            written<T>(length, 20, [&](castle::MatrixView<T> view) { layer.forward(workspace, c.x, view); });
        EXPECT_EQ(workspace.size(), length);
        EXPECT_TRUE(same_bits(y, layer.forward(c.x)));
    }
}

// A workspace keeps its memory and nothing else.
TYPED_TEST(MultiHeadBackward, HasTheSameBitsInAUsedWorkspace) {
    using T = TypeParam;
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}});
    auto workspace = layer.make_workspace();
    for (const Index length : {200, 33, 600, 1, 0, 599}) {
        SCOPED_TRACE(length);
        const Case<T> c(length, 20);
        Matrix<T> y(length, 20);
        layer.forward(workspace, c.x, y);
        layer.forward(workspace, c.x, y);  // in place of the first
        expect_same_bits(layer.backward(workspace, c.x, c.d_y), run_backward(layer, c));
        EXPECT_EQ(workspace.size(), 0);
    }
}

TYPED_TEST(MultiHeadBackward, AddsTheWeightsOfABatchUp) {
    using T = TypeParam;
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    const Case<T> first(50, 20, 1), second(41, 20, 2);
    const auto one = run_backward(layer, first), two = run_backward(layer, second);
    castle::MultiHeadGradient<T> both = one;
    auto workspace = layer.make_workspace();
    Matrix<T> y(41, 20);
    layer.forward(workspace, second.x, y);
    Matrix<T> d = second.d_y;
    layer.backward(workspace, second.x, d, d, both.weights);  // d_x in the place of d_y
    EXPECT_TRUE(same_bits(d, two.x));
    EXPECT_TRUE(same_bits(both.weights.w_out, Matrix<T>(one.weights.w_out + two.weights.w_out)));
    for (std::size_t i = 0; i < 6; ++i) {
        EXPECT_TRUE(same_bits(*projections_of(both.weights)[i],
                              Matrix<T>(*projections_of(one.weights)[i] + *projections_of(two.weights)[i])))
            << input_names[i];
    }
}

TYPED_TEST(MultiHeadBackward, TakesViewsWithinLargerMatrices) {
    using T = TypeParam;
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    const Case<T> c(70, 20);
    const castle::MultiHeadGradient<T> expected = run_backward(layer, c);
    Matrix<T> all(70, 100);
    all.middleCols(3, 20) = c.x;
    all.middleCols(29, 20) = c.d_y;
    auto workspace = layer.make_workspace();
    layer.forward(workspace, all.middleCols(3, 20), all.middleCols(60, 20));
    castle::MultiHeadGradient<T> g = expected;
    for (auto* m : projections_of(g.weights)) m->setZero();
    g.weights.w_out.setZero();
    layer.backward(workspace, all.middleCols(3, 20), all.middleCols(29, 20), all.middleCols(75, 20), g.weights);
    g.x = all.middleCols(75, 20);
    expect_same_bits(g, expected);
}

TYPED_TEST(MultiHeadBackward, RefusesWhatDoesNotFit) {
    using T = TypeParam;
    const MultiHeadConfig config{.d_model = 20, .heads = 3, .d_head = 6};
    const castle::MultiHeadCastle<T> layer(config);
    const Case<T> c(40, 20);
    auto workspace = layer.make_workspace();
    Matrix<T> y(40, 20);
    const auto refused = [&](const auto& call) { EXPECT_THROW(call(), std::invalid_argument); };
    const auto backward = [&](Index rows) {
        static_cast<void>(layer.backward(workspace, c.x.topRows(rows), c.d_y.topRows(rows)));
    };
    refused([&] { backward(40); });  // no forward pass
    layer.forward(workspace, c.x, y);
    castle::MultiHeadGradient<T> g = run_backward(layer, c);
    refused([&] { backward(39); });
    refused([&] { static_cast<void>(layer.backward(workspace, c.x, c.d_y.topRows(39))); });
    refused([&] { layer.backward(workspace, c.x, c.d_y, y.topRows(39), g.weights); });
    refused([&] { layer.forward(workspace, c.x, y.topRows(39)); });
    castle::MultiHeadWeights<T> narrow = g.weights;
    narrow.lookahead.q.resize(20, 17);
    refused([&] { layer.backward(workspace, c.x, c.d_y, y, narrow); });
    auto other = castle::MultiHeadCausal<T>(config).make_workspace();
    refused([&] { layer.forward(other, c.x, y); });
    const castle::MultiHeadCastle<T> wider({.d_model = 21, .heads = 3, .d_head = 6});
    Matrix<T> wide = Matrix<T>::Zero(40, 21);
    refused([&] { wider.forward(workspace, wide, wide); });
    // None of it has changed anything.
    expect_same_bits(layer.backward(workspace, c.x, c.d_y), g);
    refused([&] { backward(40); });  // used up
}

// One bad number in x or d_y reaches what depends on it by the definition, and nothing else.
TYPED_TEST(MultiHeadBackward, PoisonReachesWhatDependsOnItAlone) {
    using T = TypeParam;
    const Index length = 70;
    for (const Index window : {Index(0), Index(9), castle::unlimited}) {
        const MultiHeadConfig config{.d_model = 5, .heads = 2, .d_head = 2, .rotary = castle::Rotary{}, .seed = 8};
        const castle::MultiHeadCastle<T> layer(config, {.lookahead_window = window});
        Case<T> c(length, config.d_model, 9);
        const auto clean = run_backward(layer, c);
        for (const bool in_x : {true, false}) {
            for (const Index t : {0, 1, 31, 32, 63, 64, 69}) {
                SCOPED_TRACE(describe("window ", window, ", token ", t, " of ", in_x ? "x" : "d_y"));
                T& number = (in_x ? c.x : c.d_y)(t, 3);
                const T before = number;
                number = std::numeric_limits<T>::quiet_NaN();
                const auto depends =
                    oracle::backward(oracle_layer<double>(layer.weights(), config), oracle_rows<double>(c.x),
                                     oracle_rows<double>(c.d_y), oracle_settings(config.d_head, layer.options()));
                const auto ours = run_backward(layer, c);
                number = before;
                const auto expect = [](const char* name, const oracle::Rows<double>& reached, const Matrix<T>& with,
                                       const Matrix<T>& without) {
                    for (Index i = 0; i < with.rows(); ++i) {
                        for (Index j = 0; j < with.cols(); ++j) {
                            if (std::isnan(reached(i, j))) {
                                ASSERT_TRUE(std::isnan(with(i, j))) << name << "(" << i << ", " << j << ")";
                            } else {
                                ASSERT_TRUE(same_bits(with(i, j), without(i, j)))
                                    << name << "(" << i << ", " << j << ") is " << with(i, j) << ", without "
                                    << without(i, j);
                            }
                        }
                    }
                };
                expect("x", depends.x, ours.x, clean.x);
                expect("w_out", depends.out, ours.weights.w_out, clean.weights.w_out);
                for (std::size_t i = 0; i < 6; ++i) {
                    expect(input_names[i], depends.in[i], *projections_of(ours.weights)[i],
                           *projections_of(clean.weights)[i]);
                }
            }
        }
    }
}

TYPED_TEST(MultiHeadBackward, OfNoTokensIsZero) {
    using T = TypeParam;
    const castle::MultiHeadGradient<T> g =
        run_backward(castle::MultiHeadCastle<T>({.d_model = 5, .heads = 1, .d_head = 3}), Case<T>(0, 5));
    EXPECT_EQ(g.x.rows(), 0);
    EXPECT_EQ(g.weights.w_out.cwiseAbs().maxCoeff(), 0);
    EXPECT_EQ(g.weights.lookahead.k.cwiseAbs().maxCoeff(), 0);
}

}  // namespace
