// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/differences.hpp"
#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/masks.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Layers under masks and with score terms: the core between two projections.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;

template <class T>
class MaskedLayer : public ::testing::Test {};
TYPED_TEST_SUITE(MaskedLayer, support::Scalars);

constexpr Index d_model = 12, d_head = 4, heads = 4, kv_heads = 2;
constexpr std::array<Index, 3> windows{0, 9, castle::unlimited};

castle::LayerConfig config(bool rotary) {
    castle::LayerConfig c{.d_model = d_model, .heads = heads, .kv_heads = kv_heads, .d_head = d_head};
    if (rotary) c.rotary = castle::Rotary{};
    return c;
}

template <class T>
Matrix<T> some_rows(Random& random, Index rows, Index cols) {
    Matrix<T> m(rows, cols);
    fill_normal(random, m);
    return m;
}

TYPED_TEST(MaskedLayer, IsTheCoreBetweenItsProjections) {
    using T = TypeParam;
    std::uint64_t seed = 16300;
    for (const Index length : {1, 40, 150}) {
        for (const Index window : windows) {
            Random random(++seed);
            const castle::Options options{.lookahead_window = window, .terms = some_terms(random, heads, length)};
            const castle::Layer<T> layer(config(false), options);
            const castle::LayerWeights<T> w = layer.weights();
            const Matrix<T> x = some_rows<T>(random, length, d_model);
            const auto project = [&](const castle::Qkv<Matrix<T>>& of) {
                if (of.q.size() == 0) return castle::Qkv<Matrix<T>>();
                return castle::Qkv<Matrix<T>>{.q = x * of.q, .k = x * of.k, .v = x * of.v};
            };
            const castle::Qkv<Matrix<T>> causal = project(w.causal), lookahead = project(w.lookahead);
            const castle::Input<T> input{.causal = {.q = causal.q, .k = causal.k, .v = causal.v},
                                         .lookahead = {.q = lookahead.q, .k = lookahead.k, .v = lookahead.v}};
            const castle::Shape shape{.d = d_head, .dv = d_head, .heads = heads, .kv_heads = kv_heads};
            for (const NamedMask& named : all_masks(random, length)) {
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name));
                Matrix<T> attended(length, heads * d_head), sums(length, heads), mass(length, heads);
                castle::parallel(
                    shape, input,
                    castle::Output<T>{.out = attended, .log_sum_exp = sums, .mass = mass, .mass_over = some_mass()},
                    options, named.mask);
                Matrix<T> y(length, d_model), own_sums(length, heads), own_mass(length, heads);
                layer.forward(
                    x, castle::Output<T>{.out = y, .log_sum_exp = own_sums, .mass = own_mass, .mass_over = some_mass()},
                    named.mask);
                // Both are sums in other orders of numbers of size 1, of which a score has d_model d_head L at most.
                const double bound = 4e3 * unit_roundoff<T> * double(length);
                const Matrix<T> expected = attended * w.w_out;
                EXPECT_LE(double((y - expected).cwiseAbs().maxCoeff()), bound);
                EXPECT_LE(double((own_mass - mass).cwiseAbs().maxCoeff()), bound);
                for (Index i = 0; i < sums.size(); ++i) {
                    const T a = own_sums.data()[i], b = sums.data()[i];
                    EXPECT_TRUE(a == b || std::abs(a - b) <= T(bound)) << a << " and " << b;
                }
                if (this->HasFailure()) return;
            }
        }
    }
}

TYPED_TEST(MaskedLayer, HasTheSameBitsInEveryFormSplitAndOnEveryExecutor) {
    using T = TypeParam;
    ThreadPool threads(3);
    std::uint64_t seed = 16400;
    for (const Index window : windows) {
        for (const bool rotary : {false, true}) {
            Random random(++seed);
            const Index length = 210;
            const castle::Options options{.lookahead_window = window, .terms = some_terms(random, heads, length)};
            const castle::Layer<T> layer(config(rotary), options);
            const Matrix<T> x = some_rows<T>(random, length, d_model);
            for (const NamedMask& named : all_masks(random, length)) {
                SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", ", named.name));
                const Mask mask = named.mask & masks::full();
                bool looks_ahead = false;
                for (Index t = 0; t < length; ++t) {
                    for (Index s = t + 1; s < length; ++s) looks_ahead = looks_ahead || named.sees(t, s);
                }
                Matrix<T> expected(length, d_model);
                layer.forward(x, castle::Output<T>{.out = expected}, mask);
                castle::LayerWorkspace<T> workspace = layer.make_workspace();
                for (const castle::Executor& executor : {castle::Executor(), threads.executor()}) {
                    Matrix<T> y(length, d_model);
                    layer.forward(workspace, x, castle::Output<T>{.out = y}, mask, executor);
                    EXPECT_TRUE(same_bits(y, expected)) << "of a workspace";
                    castle::LayerCache<T> cache = layer.make_cache();
                    Matrix<T> sums(length, heads);
                    Index first = 0;
                    for (const Index count : looks_ahead ? std::vector<Index>{length} : random_split(random, length)) {
                        castle::Output<T> to{.out = castle::MatrixView<T>(y).middle_rows(first, count)};
                        if (random.integer(0, 1) == 0) {
                            to.log_sum_exp = castle::MatrixView<T>(sums).middle_rows(first, count);
                        }
                        layer.extend(cache, x.middleRows(first, count), to, mask, executor);
                        first += count;
                    }
                    EXPECT_TRUE(same_bits(y, expected)) << "of a cache";
                    if (this->HasFailure()) return;
                }
            }
        }
    }
}

TYPED_TEST(MaskedLayer, RunsDocumentsAsSequencesOfTheirOwn) {
    using T = TypeParam;
    Random random(16500);
    const std::vector<Index> lengths = {5, 0, 100, 17, 1, 87};
    for (const Index window : windows) {
        const castle::Layer<T> layer(config(true), {.lookahead_window = window});
        const Matrix<T> x = some_rows<T>(random, 210, d_model), d_y = some_rows<T>(random, 210, d_model);
        Matrix<T> y(210, d_model), packed(210, d_model), alone(210, d_model);
        layer.forward(x, castle::Output<T>{.out = y}, masks::documents(lengths));
        Index first = 0;
        for (const Index length : lengths) {
            layer.forward(x.middleRows(first, length), castle::MatrixView<T>(alone).middle_rows(first, length));
            first += length;
        }
        EXPECT_TRUE(same_bits(y, alone));
        castle::LayerWorkspace<T> of_mask = layer.make_workspace(), of_counts = layer.make_workspace();
        layer.forward(of_mask, x, castle::Output<T>{.out = y}, masks::documents(lengths));
        layer.forward(of_counts, lengths, x, packed);
        EXPECT_TRUE(same_bits(y, packed));
        const castle::LayerGradient<T> a = layer.backward(of_mask, x, d_y), b = layer.backward(of_counts, x, d_y);
        EXPECT_TRUE(same_bits(a.x, b.x));
        EXPECT_TRUE(same_bits(a.weights.causal.q, b.weights.causal.q));
        EXPECT_TRUE(same_bits(a.weights.w_out, b.weights.w_out));
    }
}

TYPED_TEST(MaskedLayer, HasTheSameBitsInEveryGradientOnEveryExecutor) {
    using T = TypeParam;
    ThreadPool threads(3);
    std::uint64_t seed = 16550;
    for (const Index window : windows) {
        Random random(++seed);
        const Index length = 140;
        const castle::Layer<T> layer(config(true),
                                     {.lookahead_window = window, .terms = some_terms(random, heads, length)});
        const Matrix<T> x = some_rows<T>(random, length, d_model), d_y = some_rows<T>(random, length, d_model);
        const Matrix<T> d_sums = some_rows<T>(random, length, heads), d_mass = some_rows<T>(random, length, heads);
        for (const NamedMask& named : all_masks(random, length)) {
            SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", ", named.name));
            std::vector<Matrix<T>> expected;
            for (const castle::Executor& executor : {castle::Executor(), threads.executor()}) {
                castle::LayerWorkspace<T> workspace = layer.make_workspace();
                Matrix<T> y(length, d_model), mass(length, heads);
                layer.forward(workspace, x, castle::Output<T>{.out = y, .mass = mass, .mass_over = some_mass()},
                              named.mask, executor);
                const T nan = std::numeric_limits<T>::quiet_NaN();
                std::vector<Matrix<T>> g = {
                    Matrix<T>::Constant(length, d_model, nan), Matrix<T>::Constant(1, length, nan),
                    Matrix<T>::Constant(heads, length, nan), Matrix<T>::Constant(1, heads, nan)};
                castle::LayerWeights<T> d_weights = layer.zero_gradient();
                layer.backward(workspace, x,
                               castle::OutputGradient<T>{.out = d_y, .log_sum_exp = d_sums, .mass = d_mass}, g[0],
                               d_weights, {.factor = g[1], .bias = g[2], .sinks = g[3]}, executor);
                g.push_back(d_weights.causal.q);
                g.push_back(d_weights.w_out);
                if (expected.empty()) expected = g;
                for (std::size_t i = 0; i < g.size(); ++i) {
                    EXPECT_TRUE(g[i].allFinite()) << i;
                    EXPECT_TRUE(same_bits(g[i], expected[i])) << i;
                }
                if (this->HasFailure()) return;
            }
        }
    }
}

// For double alone, which sanitizers do not build.
#ifndef CASTLE_TEST_FLOAT_ONLY
// Everything that is trained, along random directions.
TEST(MaskedLayerGradient, MatchesCentralDifferences) {
    std::uint64_t seed = 16600;
    for (const Index window : windows) {
        Random random(++seed);
        const Index length = 75;
        const castle::Options options{.lookahead_window = window, .terms = some_terms(random, heads, length)};
        for (const NamedMask& named : all_masks(random, length)) {
            SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", ", named.name));
            castle::Layer<double> layer(config(true), options);
            Matrix<double> x = some_rows<double>(random, length, d_model);
            const Matrix<double> d_y = some_rows<double>(random, length, d_model);
            const Matrix<double> d_sums = some_rows<double>(random, length, heads);
            const Matrix<double> d_mass = some_rows<double>(random, length, heads);
            Matrix<double> y(length, d_model), sums(length, heads), mass(length, heads);
            const auto output = [&] {
                return castle::Output<double>{.out = y, .log_sum_exp = sums, .mass = mass, .mass_over = some_mass()};
            };
            const auto loss = [&] {
                layer.forward(x, output(), named.mask);
                double sum = (y.array() * d_y.array()).sum() + (mass.array() * d_mass.array()).sum();
                for (Index i = 0; i < sums.size(); ++i) {
                    if (std::isfinite(sums.data()[i])) sum += sums.data()[i] * d_sums.data()[i];
                }
                return sum;
            };
            castle::LayerWorkspace<double> workspace = layer.make_workspace();
            layer.forward(workspace, x, output(), named.mask);
            Matrix<double> d_x(length, d_model), d_factor(1, length), d_bias(heads, length), d_sinks(1, heads);
            castle::LayerWeights<double> d_weights = layer.zero_gradient();
            layer.backward(workspace, x,
                           castle::OutputGradient<double>{.out = d_y, .log_sum_exp = d_sums, .mass = d_mass}, d_x,
                           d_weights, {.factor = d_factor, .bias = d_bias, .sinks = d_sinks});
            const auto expect = [&](const Matrix<double>& gradient, const char* name, const auto& move) {
                const Slopes slopes = slopes_along(random, gradient, loss, move);
                EXPECT_NEAR(slopes.by_gradient, slopes.by_differences, 1e-6 * (1 + std::abs(slopes.by_differences)))
                    << name;
            };
            expect(d_x, "x", [&](const Matrix<double>& by) { x += by; });
            castle::LayerWeights<double> w = layer.weights();
            expect(d_weights.causal.k, "causal.k", [&](const Matrix<double>& by) {
                w.causal.k += by;
                layer.set_weights(w);
            });
            expect(d_weights.w_out, "w_out", [&](const Matrix<double>& by) {
                w.w_out += by;
                layer.set_weights(w);
            });
            castle::ScoreTerms terms = options.terms;
            expect(d_factor, "factor", [&](const Matrix<double>& by) {
                terms.factor += by;
                layer.set_terms(terms);
            });
            expect(d_bias, "bias", [&](const Matrix<double>& by) {
                terms.bias += by;
                layer.set_terms(terms);
            });
            expect(d_sinks, "sinks", [&](const Matrix<double>& by) {
                for (Index h = 0; h < heads; ++h) terms.sinks[std::size_t(h)] += by(0, h);
                layer.set_terms(terms);
            });
            if (HasFailure()) return;
        }
    }
}
#endif

}  // namespace
