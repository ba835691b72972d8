// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/slopes.hpp"
#include "support/tolerances.hpp"

// Dynamic windowed attention against its definition in plain loops.
namespace {

using castle::Index;
using castle::Matrix;
using castle::methods::Decay;
using castle::methods::Temporal;
using castle::methods::TemporalInput;
using namespace support;

template <class T>
class TemporalAttention : public ::testing::Test {};
TYPED_TEST_SUITE(TemporalAttention, support::Scalars);

constexpr castle::Shape shape{.d = 6, .dv = 3, .heads = 4, .kv_heads = 2};

std::vector<Temporal> all_kinds(Index window) {
    std::vector<Temporal> all;
    for (const Decay decay : {Decay::multiplied, Decay::added, Decay::none}) {
        all.push_back({.window = window, .decay = decay, .gammas = {0.3}});
        all.push_back({.window = window, .decay = decay, .gammas = {0.5, 0.0, 0.05, -0.1}, .base = 50});
    }
    return all;
}

std::string words_of(const Temporal& temporal) {
    return describe("window ", temporal.window, ", decay ", int(temporal.decay), ", gammas ", temporal.gammas.size());
}

/// Standard attention by definition, in double.
template <class T>
Matrix<double> by_definition(const Head<T>& x, const Temporal& temporal, double scale) {
    const Index length = x.qc.rows(), group = shape.heads / shape.kv_heads, d = shape.d;
    Matrix<double> out = Matrix<double>::Zero(length, shape.heads * shape.dv);
    for (Index h = 0; h < shape.heads; ++h) {
        const double gamma = temporal.gammas[temporal.gammas.size() == 1 ? 0 : std::size_t(h)];
        for (Index t = 0; t < length; ++t) {
            const Index first = std::max<Index>(0, t - temporal.window / 2);
            std::vector<double> scores;
            for (Index s = first; s <= t; ++s) {
                const double k = double(t - s);
                double product = 0;
                for (Index i = 0; i < d; ++i) {
                    const double angle = k / std::pow(temporal.base, double(i - i % 2) / double(d));
                    const double encoding = i % 2 == 0 ? std::sin(angle) : std::cos(angle);
                    product += double(x.qc(t, h * d + i)) * (double(x.kc(s, h / group * d + i)) + encoding);
                }
                double score = scale * product;
                if (temporal.decay == Decay::multiplied) score *= std::exp(-gamma * k);
                if (temporal.decay == Decay::added) score -= gamma * k;
                scores.push_back(score);
            }
            const double largest = *std::max_element(scores.begin(), scores.end());
            double sum = 0;
            for (double& score : scores) sum += score = std::exp(score - largest);
            for (Index s = first; s <= t; ++s) {
                for (Index c = 0; c < shape.dv; ++c) {
                    out(t, h * shape.dv + c) +=
                        scores[std::size_t(s - first)] / sum * double(x.vc(s, h / group * shape.dv + c));
                }
            }
        }
    }
    return out;
}

TYPED_TEST(TemporalAttention, MatchesTheDefinition) {
    using T = TypeParam;
    std::uint64_t seed = 17000;
    for (const Index length : {1, 2, 7, 64, 130, 300}) {
        for (const Index window : {0, 2, 20, 1000}) {
            for (const double scale : {0.4, -0.3}) {
                Random random(++seed);
                const Head<T> x = random_heads<T>(random, length, shape);
                const castle::Options options{.scale = scale, .lookahead_window = 0};
                for (const Temporal& temporal : all_kinds(window)) {
                    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", scale ", scale, ", ", words_of(temporal)));
                    // A negative gamma grows by e^(0.1 k), which only a window keeps in bounds.
                    if (temporal.gammas.size() > 1 && temporal.decay != Decay::none && window > 20) continue;
                    const TemporalInput<T> wide(shape, x.input(), temporal, options);
                    const Matrix<T> out = castle::parallel(wide.shape(), wide.input(), wide.options(), wide.mask());
                    // Products of 2 d numbers, whose scores are of size 40 at most, and as much of a weight.
                    const double bound = 400 * double(2 * shape.d + 8) * unit_roundoff<T>;
                    const Matrix<double> expected = by_definition(x, temporal, double(T(scale)));
                    EXPECT_LE((out.template cast<double>() - expected).cwiseAbs().maxCoeff(), bound);
                    if (this->HasFailure()) return;
                }
            }
        }
    }
}

/// Differences of double in every element of every input, and in every gamma: of the definition for standard attention
/// and of the library for CASTLE.
TEST(TemporalGradient, MatchesCentralDifferences) {
    std::uint64_t seed = 17100;
    for (const Index lookahead : {Index(0), castle::unlimited}) {
        for (const Index length : {3, 14}) {
            Random random(++seed);
            Head<double> x = random_heads<double>(random, length, shape);
            const castle::Options options{.scale = 0.4, .lookahead_window = lookahead};
            Matrix<double> d_out(length, shape.heads * shape.dv);
            fill_normal(random, d_out);
            for (Temporal temporal : all_kinds(8)) {
                SCOPED_TRACE(describe("seed ", seed, ", lookahead ", lookahead, ", ", words_of(temporal)));
                const auto loss = [&] {
                    if (lookahead == 0) return by_definition(x, temporal, 0.4).cwiseProduct(d_out).sum();
                    const TemporalInput<double> wide(shape, x.input(), temporal, options);
                    return castle::parallel(wide.shape(), wide.input(), wide.options(), wide.mask())
                        .cwiseProduct(d_out)
                        .sum();
                };
                const TemporalInput<double> wide(shape, x.input(), temporal, options);
                castle::Workspace<double> workspace(wide.shape(), wide.options());
                Matrix<double> out(length, d_out.cols());
                castle::forward(workspace, wide.input(), castle::Output<double>{.out = out}, wide.mask());
                castle::Gradient<double> of_input(length, wide.shape());
                Matrix<double> table = Matrix<double>::Zero(Index(temporal.gammas.size()), 5);
                castle::TermsGradientView<double> terms;
                if (temporal.decay == Decay::multiplied) terms.factor = table;
                if (temporal.decay == Decay::added) terms.bias = table;
                castle::backward(workspace, wide.input(), castle::OutputGradient<double>{.out = d_out}, of_input.view(),
                                 terms);
                const castle::Gradient<double> g = wide.gradient(of_input);
                const std::vector<double> d_gammas = wide.gamma_gradient(table);

                expect_slopes(x, g, lookahead > 0, loss);
                if (HasFatalFailure()) return;
                ASSERT_EQ(d_gammas.size(), temporal.decay == Decay::none ? 0 : temporal.gammas.size());
                for (std::size_t i = 0; i < d_gammas.size(); ++i) {
                    expect_slope(temporal.gammas[i], d_gammas[i], loss, describe("gamma ", i));
                    if (HasFatalFailure()) return;
                }
            }
        }
    }
}

// However a sequence is cut, and with caches that let go of what is behind the window.
TYPED_TEST(TemporalAttention, ContinuesInCaches) {
    using T = TypeParam;
    Random random(17200);
    const Index length = 200;
    const Head<T> x = random_heads<T>(random, length, shape);
    for (const Index lookahead : {Index(0), Index(5)}) {
        const castle::Options options{.lookahead_window = lookahead};
        for (const Temporal& temporal : all_kinds(24)) {
            const TemporalInput<T> whole(shape, x.input(), temporal, options);
            castle::UqKvCache<T> at_once(whole.shape(), whole.options(), 0, 13),
                cache(whole.shape(), whole.options(), 0, 13);
            const Matrix<T> expected = castle::extend(at_once, whole.input());
            if (lookahead == 0) {
                EXPECT_TRUE(
                    same_bits(castle::parallel(whole.shape(), whole.input(), whole.options(), whole.mask()), expected));
            }
            for (Index first = 0; first < length;) {
                const Index count = std::min<Index>(random.integer(1, 9), length - first);
                const TemporalInput<T> rows(shape, x.input().tokens(first, count), temporal, options, first);
                ASSERT_TRUE(
                    same_bits(castle::extend(cache, rows.input()), Matrix<T>(expected.middleRows(first, count))));
                first += count;
            }
        }
    }
}

// Other rows, other gammas: what an object made for them has. Memory stays where it is.
TYPED_TEST(TemporalAttention, TakesOtherRows) {
    using T = TypeParam;
    Random random(17300);
    const Index length = 70, position = 100;
    for (const bool lookahead : {false, true}) {
        const castle::Options options{.lookahead_window = lookahead ? castle::unlimited : 0};
        const auto input_of = [&](const Head<T>& x) {
            castle::Input<T> input = x.input();
            if (!lookahead) input.lookahead = {};
            return input;
        };
        const Head<T> before = random_heads<T>(random, length, shape), after = random_heads<T>(random, length, shape);
        for (const Decay decay : {Decay::multiplied, Decay::added, Decay::none}) {
            Temporal temporal{.window = 8, .decay = decay, .gammas = {0.3}};
            TemporalInput<T> wide(shape, input_of(before), temporal, options, position);
            const T* queries = wide.input().causal.q.data();
            temporal.gammas = {0.7};
            wide.set_input(input_of(after));
            wide.set_gammas(temporal.gammas);
            EXPECT_EQ(wide.input().causal.q.data(), queries);
            const TemporalInput<T> expected(shape, input_of(after), temporal, options, position);
            TemporalInput<T> moved(shape, input_of(before), temporal, options, 3);
            moved.set_input(input_of(after), position);
            const auto out_of = [&](const TemporalInput<T>& wide_input) {
                castle::Matrix<T> out(length, shape.heads * shape.dv);
                castle::UqKvCache<T> cache(wide_input.shape(), wide_input.options(), 0, 5);
                castle::extend(cache, wide_input.input(), out);
                return out;
            };
            EXPECT_TRUE(same_bits(out_of(wide), out_of(expected)));
            EXPECT_TRUE(same_bits(out_of(moved), out_of(expected)));
        }
    }
    const Head<T> x = random_heads<T>(random, length, shape), shorter = random_heads<T>(random, length - 1, shape);
    TemporalInput<T> wide(shape, x.input(), {.window = 8, .gammas = {0.3}});
    const castle::Matrix<T> queries = wide.input().causal.q.map();
    const std::string where = "castle::methods::TemporalInput: ";
    EXPECT_EQ(
        message<std::invalid_argument>([&] { wide.set_input(shorter.input()); }),
        where +
            "input.causal.q is [69, 24] but must be [70, 24] for 70 tokens (the rows of the first input) and a head "
            "of d 6, dv 3, 4 heads on 2 key-value heads");
    EXPECT_NE(message<std::invalid_argument>([&] { wide.set_input(x.input(), -1); }), "");
    castle::Input<T> causal = x.input();
    causal.lookahead = {};
    EXPECT_NE(message<std::invalid_argument>([&] { wide.set_input(causal); }), "");
    EXPECT_EQ(message<std::invalid_argument>([&] {
                  wide.set_gammas(std::vector<double>{0.1, 0.2});
              }),
              where + "gammas has 2 elements but must have 1, as before");
    EXPECT_TRUE(same_bits(castle::Matrix<T>(wide.input().causal.q.map()), queries));
    EXPECT_EQ(wide.options().terms.factor(0, 1), std::exp(-0.3));

    castle::Gradient<T> of_input(length, wide.shape());
    for (auto* m : {&of_input.causal.q, &of_input.causal.k, &of_input.causal.v, &of_input.lookahead.q,
                    &of_input.lookahead.k, &of_input.lookahead.v}) {
        fill_normal(random, *m);
    }
    castle::Gradient<T> narrow(length, shape), small(length - 1, shape);
    wide.gradient(of_input, narrow.view());
    EXPECT_NE(message<std::invalid_argument>([&] { wide.gradient(of_input, small.view()); }), "");
}

// Packed sequences are what each of them is alone, and so are their gradients.
TYPED_TEST(TemporalAttention, PacksSequences) {
    using T = TypeParam;
    Random random(17400);
    const std::vector<Index> counts = {5, 0, 70, 1, 33};
    const Index length = 109;
    const Head<T> x = random_heads<T>(random, length, shape);
    castle::Gradient<T> of_input(length, castle::detail::wider(shape, shape.d));
    for (auto* m : {&of_input.causal.q, &of_input.causal.k, &of_input.causal.v, &of_input.lookahead.q,
                    &of_input.lookahead.k, &of_input.lookahead.v}) {
        fill_normal(random, *m);
    }
    const TemporalInput<T> packed(shape, counts, x.input(), {.window = 8});
    const castle::Gradient<T> g = packed.gradient(of_input);
    Index first = 0;
    for (const Index count : counts) {
        if (count == 0) continue;
        const TemporalInput<T> alone(shape, x.input().tokens(first, count), {.window = 8});
        const castle::Input<T> own = packed.input().tokens(first, count);
        EXPECT_TRUE((own.causal.q.map().array() == alone.input().causal.q.map().array()).all());
        EXPECT_TRUE((own.causal.k.map().array() == alone.input().causal.k.map().array()).all());
        EXPECT_TRUE((own.lookahead.q.map().array() == alone.input().lookahead.q.map().array()).all());
        const auto rows = [&](const Matrix<T>& m) -> Matrix<T> { return m.middleRows(first, count); };
        castle::Gradient<T> d_own;
        d_own.causal = {.q = rows(of_input.causal.q), .k = rows(of_input.causal.k), .v = rows(of_input.causal.v)};
        d_own.lookahead = {
            .q = rows(of_input.lookahead.q), .k = rows(of_input.lookahead.k), .v = rows(of_input.lookahead.v)};
        const castle::Gradient<T> d_alone = alone.gradient(d_own);
        EXPECT_TRUE(same_bits(rows(g.causal.q), d_alone.causal.q));
        EXPECT_TRUE(same_bits(rows(g.lookahead.v), d_alone.lookahead.v));
        first += count;
    }
}

TYPED_TEST(TemporalAttention, RejectsWhatDoesNotFit) {
    using T = TypeParam;
    Random random(17300);
    const Head<T> x = random_heads<T>(random, 4, shape);
    const auto says = [&](const Temporal& temporal, const castle::Options& options = {}) {
        return message<std::invalid_argument>([&] { TemporalInput<T>(shape, x.input(), temporal, options); });
    };
    const std::string where = "castle::methods::TemporalInput: ";
    EXPECT_EQ(says({.window = 3}), where + "temporal.window is 3 but must be even");
    EXPECT_EQ(says({.window = -2}), where + "temporal.window is -2 but must be at least 0");
    EXPECT_EQ(says({.gammas = {1, 2}}), where + "temporal.gammas has 2 elements but must have 1 or 4, as heads");
    EXPECT_EQ(says({.base = 0}), where + "temporal.base is 0 but must be above 0 and finite");
    castle::Options with_table;
    with_table.terms.bias = Matrix<double>::Zero(1, 100);
    EXPECT_EQ(says({}, with_table), where + "options.terms has a table but the decay is one");
    EXPECT_EQ(says({.decay = Decay::none}, with_table), "did not throw");
    EXPECT_EQ(message<std::invalid_argument>([&] { TemporalInput<T>(shape, x.input(), {}, {}, -1); }),
              where + "position is -1 but must be at least 0");
    const std::vector<Index> short_counts = {1, 2};
    EXPECT_EQ(message<std::invalid_argument>([&] { TemporalInput<T>(shape, short_counts, x.input(), {}); }),
              where + "the counts come to 3 but input.causal.q has 4 rows");

    const castle::Shape odd{.d = 3, .dv = 3, .heads = 1, .kv_heads = 1};
    const Head<T> y = random_heads<T>(random, 4, odd);
    EXPECT_EQ(message<std::invalid_argument>([&] { TemporalInput<T>(odd, y.input(), {}); }),
              where + "shape.d is 3 but must be even");

    const TemporalInput<T> wide(shape, x.input(), {.window = 4});
    EXPECT_EQ(message<std::invalid_argument>([&] { wide.gradient(castle::Gradient<T>(4, shape)); }),
              where + "of_input.causal.q is [4, 24] but must be [4, 48], as input()");
    const Matrix<T> table = Matrix<T>::Zero(1, 2);
    EXPECT_EQ(message<std::invalid_argument>([&] { wide.gamma_gradient(table); }),
              where + "of_table is [1, 2] but must be [1, 3], as the table");
}

}  // namespace
