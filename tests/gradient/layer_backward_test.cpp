// SPDX-License-Identifier: Apache-2.0
#include <castle/layer.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/layer_gradient_oracle.hpp"
#include "support/layers.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::LayerConfig;
using castle::Matrix;
using namespace support;

const castle::Rotary all_rotated{.causal_v = true, .base = 100};

TEST(LayerGradientOracle, MatchesCentralDifferencesOfTheDefinitionInEveryElement) {
    constexpr double step = 1e-5;
    std::uint64_t seed = 3000;
    const auto configs_with = [](const std::optional<castle::Rotary>& rotary) {
        std::vector<LayerConfig> configs = grouped_configs(3, 2);
        configs.push_back({.d_model = 3, .heads = 2, .d_head = 2});
        for (LayerConfig& config : configs) config.rotary = rotary;
        return configs;
    };
    std::vector<LayerConfig> configs = configs_with(std::nullopt);
    for (const LayerConfig& config : configs_with(all_rotated)) configs.push_back(config);
    for (const Index window : {Index(0), Index(2), castle::unlimited}) {
        for (LayerConfig config : configs) {
            Random random(++seed);
            config.seed = seed;
            // At a window of 0 as well with lookahead projections, whose gradients are then 0.
            oracle::Layer<double> layer = oracle_layer<double>(castle::Layer<double>(config).weights(), config);
            Matrix<double> random_x(6, 3), random_d_y(6, 3);
            fill_normal(random, random_x);
            fill_normal(random, random_d_y);
            oracle::Rows<double> x = oracle_rows<double>(random_x);
            const oracle::Rows<double> d_y = oracle_rows<double>(random_d_y);
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
class LayerBackward : public testing::Test {};
TYPED_TEST_SUITE(LayerBackward, support::Scalars);

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
template <class T>
castle::LayerGradient<T> run_backward(const castle::Layer<T>& layer, const Case<T>& c) {
    auto workspace = layer.make_workspace();
    Matrix<T> y(c.x.rows(), c.x.cols());
    layer.forward(workspace, c.x, y);
    return layer.backward(workspace, c.x, c.d_y);
}

template <class T>
void expect_same_bits(const castle::LayerGradient<T>& a, const castle::LayerGradient<T>& b) {
    EXPECT_TRUE(same_bits(a.x, b.x));
    for (std::size_t i = 0; i < 6; ++i) {
        EXPECT_TRUE(same_bits(*projections_of(a.weights)[i], *projections_of(b.weights)[i])) << input_names[i];
    }
    EXPECT_TRUE(same_bits(a.weights.w_out, b.weights.w_out));
}

template <class T>
void expect_gradients(const castle::Layer<T>& layer, Index length) {
    const LayerConfig& config = layer.config();
    SCOPED_TRACE(describe("L ", length, ", ", words_of(config, layer.options())));
    const Case<T> c(length, config.d_model);
    const auto by_oracle = [&]<class S>(S, oracle::Terms terms) {
        return oracle::backward(oracle_layer<S>(layer.weights(), config), oracle_rows<S>(c.x), oracle_rows<S>(c.d_y),
                                oracle_settings(config.d_head, layer.options()), terms);
    };
    const auto exact = by_oracle(Exact<T>(), oracle::Terms::as_they_are);
    const auto magnitude = by_oracle(Exact<T>(), oracle::Terms::absolute);
    const auto plain = by_oracle(T(), oracle::Terms::as_they_are);
    const castle::LayerGradient<T> ours = run_backward(layer, c);
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

TYPED_TEST(LayerBackward, MatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 2, 33, 70, 97}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (const LayerConfig& config : {LayerConfig{.d_model = 20, .heads = 3, .d_head = 6, .seed = 1},
                                              LayerConfig{.d_model = 65, .heads = 1, .d_head = 66, .seed = 2},
                                              LayerConfig{.d_model = 7, .heads = 2, .d_head = 1, .seed = 3}}) {
                expect_gradients(castle::Layer<T>(config, {.lookahead_window = window}), length);
            }
        }
    }
}

TYPED_TEST(LayerBackward, WithGroupedQueriesMatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 2, 33, 70, 97}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (LayerConfig config : grouped_configs(20, 6)) {
                expect_gradients(castle::Layer<T>(config, {.lookahead_window = window}), length);
                config.rotary = castle::Rotary{};
                expect_gradients(castle::Layer<T>(config, {.lookahead_window = window}), length);
            }
        }
    }
}

TYPED_TEST(LayerBackward, MatchesOracleWithoutPartsOfTheScores) {
    using T = TypeParam;
    const LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6, .seed = 1};
    for (const castle::Options& options : partial_scores(9)) {
        expect_gradients(castle::Layer<T>(config, options), 40);
        for (const LayerConfig& grouped : grouped_configs(20, 6)) {
            expect_gradients(castle::Layer<T>(grouped, options), 40);
        }
    }
}

TYPED_TEST(LayerBackward, OfStandardAttentionMatchesOracle) {
    using T = TypeParam;
    for (const Index length : {1, 40, 70}) {
        const LayerConfig config{.d_model = 20, .heads = 3, .d_head = 7, .seed = 5};
        expect_gradients(castle::Layer<T>(config, {.lookahead_window = 0}), length);
    }
}

TYPED_TEST(LayerBackward, TurnsBackJustTheProjectionsThatAreRotated) {
    using T = TypeParam;
    std::vector<LayerConfig> configs = grouped_configs(12, 10);
    configs.push_back({.d_model = 12, .heads = 2, .d_head = 10, .seed = 4});
    for (LayerConfig& config : configs) {
        config.rotary = castle::Rotary{};
        expect_gradients(castle::Layer<T>(config), 40);
        expect_gradients(castle::Layer<T>(config, {.lookahead_window = 0}), 40);
        for (const castle::Rotary& rotary : rotaries_of_one_projection()) {
            config.rotary = rotary;
            expect_gradients(castle::Layer<T>(config), 40);
            expect_gradients(castle::Layer<T>(config, {.lookahead_window = 0}), 40);
        }
    }
}

// Panels of 64 that are whole, that end early and that several projections share; more rows than one pass over a piece
// of the weights takes.
TYPED_TEST(LayerBackward, MatchesOracleWhereverPanelsEnd) {
    using T = TypeParam;
    const castle::Options options{.lookahead_window = 9};
    const castle::Options standard{.lookahead_window = 0};
    expect_gradients(castle::Layer<T>({.d_model = 128, .heads = 1, .d_head = 64, .seed = 7}, standard), 100);
    expect_gradients(castle::Layer<T>({.d_model = 70, .heads = 1, .d_head = 64, .seed = 8}, options), 34);
    expect_gradients(castle::Layer<T>({.d_model = 64, .heads = 1, .d_head = 80, .seed = 9}, options), 20);
    // Projections of different widths.
    expect_gradients(castle::Layer<T>({.d_model = 70, .heads = 4, .kv_heads = 2, .d_head = 22, .seed = 10}, options),
                     34);
    expect_gradients(castle::Layer<T>({.d_model = 64, .heads = 4, .kv_heads = 1, .d_head = 32, .seed = 11}, standard),
                     100);
}

// Nor do they read what lies behind the rows of d_y and x.
TYPED_TEST(LayerBackward, WritesNothingOutsideTheGradients) {
    using T = TypeParam;
    const auto expect = [](const LayerConfig& config, const castle::Options& options) {
        SCOPED_TRACE(words_of(config, options));
        const Index d_model = config.d_model;
        const castle::Layer<T> layer(config, options);
        const Case<T> c(100, d_model);
        const castle::LayerGradient<T> expected = run_backward(layer, c);
        Matrix<T> x = Matrix<T>::Constant(100, d_model + 3, sentinel<T>()), d_y = x;
        x.leftCols(d_model) = c.x;
        d_y.leftCols(d_model) = c.d_y;
        auto workspace = layer.make_workspace();
        Matrix<T> y(100, d_model);
        layer.forward(workspace, x.leftCols(d_model), y);
        castle::LayerGradient<T> g{.x = {}, .weights = layer.zero_gradient()};
        g.x = written<T>(100, d_model, [&](castle::MatrixView<T> d_x) {
            layer.backward(workspace, x.leftCols(d_model), d_y.leftCols(d_model), d_x, g.weights);
        });
        expect_same_bits(g, expected);
    };
    for (const Index d_model : {20, 64, 70}) {
        expect({.d_model = d_model, .heads = 3, .d_head = 22}, {});
        expect({.d_model = d_model, .heads = 3, .d_head = 22}, {.lookahead_window = 0});
        expect({.d_model = d_model, .heads = 4, .kv_heads = 2, .d_head = 22}, {});
    }
}

// The weights are the layer's, and it keeps them once.
TYPED_TEST(LayerBackward, AnEmptyWorkspaceDoesNotGrowWithTheWeights) {
    using T = TypeParam;
    for (const Index d_model : {64, 512}) {
        const castle::Layer<T> layer({.d_model = d_model, .heads = 4, .d_head = 64});
        EXPECT_LT(layer.make_workspace().bytes(), 1024);
    }
}

TYPED_TEST(LayerBackward, HasTheSameBitsForEveryExecutor) {
    using T = TypeParam;
    const Case<T> c(700, 70);
    for (const Index kv_heads : {4, 2}) {
        const LayerConfig config{
            .d_model = 70, .heads = 4, .kv_heads = kv_heads, .d_head = 22, .rotary = all_rotated, .seed = 6};
        for (const Index window : {Index(0), Index(77), castle::unlimited}) {
            const castle::Layer<T> layer(config, {.lookahead_window = window});
            const auto serial = run_backward(layer, c);
            ThreadPool two(2), four(4);
            for (const castle::Executor& executor :
                 {reversed_executor(), shuffled_executor(1), two.executor(), four.executor()}) {
                const castle::Options options{.lookahead_window = window, .executor = executor};
                expect_same_bits(serial, run_backward(castle::Layer<T>(config, options), c));
                // The same with an executor of the calls.
                auto workspace = layer.make_workspace();
                Matrix<T> y(700, 70);
                layer.forward(workspace, c.x, y, executor);
                castle::LayerGradient<T> g{.x = Matrix<T>(700, 70), .weights = layer.zero_gradient()};
                layer.backward(workspace, c.x, c.d_y, g.x, g.weights, executor);
                expect_same_bits(serial, g);
            }
        }
    }
}

// Layers of every kind, rotated.
template <class T>
std::vector<castle::Layer<T>> layers_of_every_kind() {
    std::vector<castle::Layer<T>> layers;
    for (const Index window : {Index(0), Index(40), castle::unlimited}) {
        for (const Index kv_heads : {3, 1}) {
            layers.emplace_back(
                LayerConfig{.d_model = 20, .heads = 3, .kv_heads = kv_heads, .d_head = 6, .rotary = castle::Rotary{}},
                castle::Options{.lookahead_window = window});
        }
    }
    return layers;
}

TYPED_TEST(LayerBackward, ForwardHasTheBitsOfTheLayer) {
    using T = TypeParam;
    for (const castle::Layer<T>& layer : layers_of_every_kind<T>()) {
        SCOPED_TRACE(words_of(layer.config(), layer.options()));
        auto workspace = layer.make_workspace();
        for (const Index length : {300, 5, 0, 31, 301}) {
            const Case<T> c(length, 20);
            const Matrix<T> y =
                written<T>(length, 20, [&](castle::MatrixView<T> view) { layer.forward(workspace, c.x, view); });
            EXPECT_EQ(workspace.size(), length);
            EXPECT_TRUE(same_bits(y, layer.forward(c.x)));
        }
    }
}

// A workspace keeps its memory and nothing else.
TYPED_TEST(LayerBackward, HasTheSameBitsInAUsedWorkspace) {
    using T = TypeParam;
    for (const castle::Layer<T>& layer : layers_of_every_kind<T>()) {
        auto workspace = layer.make_workspace();
        for (const Index length : {200, 33, 600, 1, 0, 599}) {
            SCOPED_TRACE(describe("L ", length, ", ", words_of(layer.config(), layer.options())));
            const Case<T> c(length, 20);
            Matrix<T> y(length, 20);
            layer.forward(workspace, c.x, y);
            layer.forward(workspace, c.x, y);  // in place of the first
            expect_same_bits(layer.backward(workspace, c.x, c.d_y), run_backward(layer, c));
            EXPECT_EQ(workspace.size(), 0);
            // Sequences that were packed before are forgotten.
            const std::vector<Index> counts{length / 2, length - length / 2};
            layer.forward(workspace, counts, c.x, y);
            layer.forward(workspace, c.x, y);
            expect_same_bits(layer.backward(workspace, c.x, c.d_y), run_backward(layer, c));
        }
    }
}

TYPED_TEST(LayerBackward, AddsTheWeightsOfABatchUp) {
    using T = TypeParam;
    for (const Index kv_heads : {3, 1}) {
        for (const Index window : {Index(0), castle::unlimited}) {
            const castle::Layer<T> layer({.d_model = 20, .heads = 3, .kv_heads = kv_heads, .d_head = 6},
                                         {.lookahead_window = window});
            const Case<T> first(50, 20, 1), second(41, 20, 2);
            const auto one = run_backward(layer, first), two = run_backward(layer, second);
            castle::LayerGradient<T> both = one;
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
    }
}

TYPED_TEST(LayerBackward, TakesViewsWithinLargerMatrices) {
    using T = TypeParam;
    const castle::Layer<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    const Case<T> c(70, 20);
    const castle::LayerGradient<T> expected = run_backward(layer, c);
    Matrix<T> all(70, 100);
    all.middleCols(3, 20) = c.x;
    all.middleCols(29, 20) = c.d_y;
    auto workspace = layer.make_workspace();
    layer.forward(workspace, all.middleCols(3, 20), all.middleCols(60, 20));
    castle::LayerGradient<T> g{.x = {}, .weights = layer.zero_gradient()};
    layer.backward(workspace, all.middleCols(3, 20), all.middleCols(29, 20), all.middleCols(75, 20), g.weights);
    g.x = all.middleCols(75, 20);
    expect_same_bits(g, expected);
}

TYPED_TEST(LayerBackward, RejectsWhatDoesNotFit) {
    using T = TypeParam;
    const LayerConfig config{.d_model = 20, .heads = 4, .kv_heads = 2, .d_head = 6};
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        SCOPED_TRACE(words_of(config, options));
        const castle::Layer<T> layer(config, options);
        const Case<T> c(40, 20);
        auto workspace = layer.make_workspace();
        Matrix<T> y(40, 20);
        const auto rejected = [&](const auto& call) { EXPECT_THROW(call(), std::invalid_argument); };
        const auto backward = [&](Index rows) {
            static_cast<void>(layer.backward(workspace, c.x.topRows(rows), c.d_y.topRows(rows)));
        };
        rejected([&] { backward(40); });  // no forward pass
        layer.forward(workspace, c.x, y);
        castle::LayerGradient<T> g = run_backward(layer, c);
        rejected([&] { backward(39); });
        rejected([&] { static_cast<void>(layer.backward(workspace, c.x, c.d_y.topRows(39))); });
        rejected([&] { layer.backward(workspace, c.x, c.d_y, y.topRows(39), g.weights); });
        rejected([&] { layer.forward(workspace, c.x, y.topRows(39)); });
        castle::LayerWeights<T> narrow = g.weights;
        narrow.lookahead.q.resize(20, 11);
        rejected([&] { layer.backward(workspace, c.x, c.d_y, y, narrow); });
        narrow = g.weights;
        narrow.causal.k.resize(20, 24);  // as wide as the queries
        rejected([&] { layer.backward(workspace, c.x, c.d_y, y, narrow); });
        auto other = castle::Layer<T>(config, {.lookahead_window = 3}).make_workspace();
        rejected([&] { layer.forward(other, c.x, y); });
        LayerConfig ungrouped = config;
        ungrouped.kv_heads = 4;
        other = castle::Layer<T>(ungrouped, options).make_workspace();
        rejected([&] { layer.forward(other, c.x, y); });
        const castle::Layer<T> wider({.d_model = 21, .heads = 4, .kv_heads = 2, .d_head = 6}, options);
        Matrix<T> wide = Matrix<T>::Zero(40, 21);
        rejected([&] { wider.forward(workspace, wide, wide); });
        // None of it has changed anything.
        expect_same_bits(layer.backward(workspace, c.x, c.d_y), g);
        rejected([&] { backward(40); });  // used up
    }
}

// A NaN in one sequence reaches the gradients of no other; those of the weights are common to all.
TYPED_TEST(LayerBackward, PoisonInAPackedSequenceReachesNoOther) {
    using T = TypeParam;
    const std::vector<Index> counts{40, 33, 70};
    for (const Index window : {Index(0), Index(9), castle::unlimited}) {
        const castle::Layer<T> layer({.d_model = 20, .heads = 4, .kv_heads = 2, .d_head = 6, .rotary = all_rotated},
                                     {.lookahead_window = window});
        auto workspace = layer.make_workspace();
        Case<T> c(total(counts), 20);
        const auto run = [&] {
            Matrix<T> y(c.x.rows(), 20);
            layer.forward(workspace, counts, c.x, y);
            return std::pair(y, layer.backward(workspace, counts, c.x, c.d_y).x);
        };
        const auto [clean_y, clean_d_x] = run();
        for (Matrix<T>* poisoned : {&c.x, &c.d_y}) {
            for (const Index t : {40, 50, 72}) {
                SCOPED_TRACE(describe("window ", window, ", row ", t, " of ", poisoned == &c.x ? "x" : "d_y"));
                T& element = (*poisoned)(t, 3);
                const T before = element;
                element = std::numeric_limits<T>::quiet_NaN();
                const auto [y, d_x] = run();
                element = before;
                EXPECT_TRUE(same_bits(Matrix<T>(y.topRows(40)), Matrix<T>(clean_y.topRows(40))));
                EXPECT_TRUE(same_bits(Matrix<T>(y.bottomRows(70)), Matrix<T>(clean_y.bottomRows(70))));
                EXPECT_TRUE(same_bits(Matrix<T>(d_x.topRows(40)), Matrix<T>(clean_d_x.topRows(40))));
                EXPECT_TRUE(same_bits(Matrix<T>(d_x.bottomRows(70)), Matrix<T>(clean_d_x.bottomRows(70))));
            }
        }
    }
}

// One bad element in x or d_y reaches what depends on it by the definition, and nothing else.
template <class T>
void expect_poison(const castle::Layer<T>& layer) {
    const LayerConfig& config = layer.config();
    Case<T> c(70, config.d_model, 9);
    const auto clean = run_backward(layer, c);
    for (const bool in_x : {true, false}) {
        for (const Index t : {0, 1, 31, 32, 63, 64, 69}) {
            SCOPED_TRACE(describe(words_of(config, layer.options()), ", token ", t, " of ", in_x ? "x" : "d_y"));
            T& element = (in_x ? c.x : c.d_y)(t, 3);
            const T before = element;
            element = std::numeric_limits<T>::quiet_NaN();
            const auto depends =
                oracle::backward(oracle_layer<double>(layer.weights(), config), oracle_rows<double>(c.x),
                                 oracle_rows<double>(c.d_y), oracle_settings(config.d_head, layer.options()));
            const auto ours = run_backward(layer, c);
            element = before;
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

TYPED_TEST(LayerBackward, PoisonReachesWhatDependsOnItAlone) {
    using T = TypeParam;
    for (const Index kv_heads : {2, 1}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            const LayerConfig config{
                .d_model = 5, .heads = 2, .kv_heads = kv_heads, .d_head = 2, .rotary = castle::Rotary{}, .seed = 8};
            expect_poison(castle::Layer<T>(config, {.lookahead_window = window}));
        }
    }
}

TYPED_TEST(LayerBackward, OfNoTokensIsZero) {
    using T = TypeParam;
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Layer<T> layer({.d_model = 5, .heads = 1, .d_head = 3}, {.lookahead_window = window});
        const castle::LayerGradient<T> g = run_backward(layer, Case<T>(0, 5));
        EXPECT_EQ(g.x.rows(), 0);
        EXPECT_EQ(g.weights.w_out.cwiseAbs().maxCoeff(), 0);
        EXPECT_EQ(g.weights.causal.k.cwiseAbs().maxCoeff(), 0);
        if (window > 0) {
            EXPECT_EQ(g.weights.lookahead.k.cwiseAbs().maxCoeff(), 0);
        }
    }
}

}  // namespace
