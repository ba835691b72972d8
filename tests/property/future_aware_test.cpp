// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/slopes.hpp"
#include "support/tolerances.hpp"

// Light future-aware attention against its definition in plain loops.
namespace {

using castle::Future;
using castle::Index;
using castle::Matrix;
using castle::methods::LightFuture;
using castle::methods::LightFutureInput;
using castle::methods::Pooling;
using namespace support;

template <class T>
class FutureAware : public ::testing::Test {};
TYPED_TEST_SUITE(FutureAware, support::Scalars);

constexpr castle::Shape shape{.d = 5, .dv = 3, .heads = 4, .kv_heads = 2};

std::vector<bool> random_prompt(Random& random, Index length) {
    std::vector<bool> visual;
    for (Index t = 0; t < length; ++t) visual.push_back(random.integer(0, 2) > 0);
    return visual;
}

/// Every kind of it.
std::vector<LightFuture> all_kinds(const std::vector<bool>& visual) {
    std::vector<LightFuture> all;
    for (const Future future : {Future::all, Future::visual, Future::text}) {
        for (const Pooling pooling : {Pooling::max, Pooling::mean}) {
            for (const Index kernel : {1, 3, 7}) {
                const Index prefix = kernel == 3 ? 4 : 1;
                all.push_back(
                    {.visual = visual, .future = future, .pooling = pooling, .kernel = kernel, .prefix = prefix});
            }
        }
    }
    return all;
}

std::string words_of(const LightFuture& light) {
    return describe("future ", int(light.future), light.pooling == Pooling::max ? ", max" : ", mean", ", kernel ",
                    light.kernel, ", prefix ", light.prefix);
}

/// `s_i` by definition: the admitted logits in order, pooled with stride 1 over those that are there, and reduced.
double future_logit(const std::vector<double>& logits, const LightFuture& light) {
    if (logits.empty()) return 0;
    const Index n = Index(logits.size()), half = light.kernel / 2;
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (Index m = 0; m < n; ++m) {
        double pool_largest = largest, pool_sum = 0;
        Index count = 0;
        for (Index j = std::max<Index>(m - half, 0); j <= std::min(m + half, n - 1); ++j, ++count) {
            pool_largest = std::max(pool_largest, logits[std::size_t(j)]);
            pool_sum += logits[std::size_t(j)];
        }
        largest = std::max(largest, pool_largest);
        sum += pool_sum / double(count);
    }
    return light.pooling == Pooling::max ? largest : sum / double(n);
}

struct Definition {
    Matrix<double> s;
    Matrix<double> out;
};

/// Standard attention by definition.
template <class T>
Definition by_definition(const Head<T>& x, const LightFuture& light, double scale) {
    const Index length = x.qc.rows(), prompt = Index(light.visual.size());
    const Index group = shape.heads / shape.kv_heads;
    Definition result{.s = Matrix<double>::Zero(length, shape.heads),
                      .out = Matrix<double>::Zero(length, shape.heads * shape.dv)};
    const auto visual = [&](Index t) { return t < prompt && light.visual[std::size_t(t)]; };
    for (Index h = 0; h < shape.heads; ++h) {
        for (Index i = 0; i < length; ++i) {
            std::vector<double> b, later, weights;
            for (Index j = 0; j < length; ++j) {
                double product = 0;
                for (Index k = 0; k < shape.d; ++k) {
                    product += double(x.qc(i, h * shape.d + k)) * double(x.kc(j, h / group * shape.d + k));
                }
                b.push_back(scale * product);
                const bool admitted = light.future == Future::all || visual(j) == (light.future == Future::visual);
                if (j > i && j < prompt && visual(i) && admitted) later.push_back(b.back());
            }
            result.s(i, h) = future_logit(later, light);
            double largest = -std::numeric_limits<double>::infinity(), sum = 0;
            for (Index j = 0; j <= i; ++j) {
                b[std::size_t(j)] += j < light.prefix ? result.s(i, h) : 0;
                largest = std::max(largest, b[std::size_t(j)]);
            }
            for (Index j = 0; j <= i; ++j) sum += std::exp(b[std::size_t(j)] - largest);
            for (Index j = 0; j <= i; ++j) {
                for (Index c = 0; c < shape.dv; ++c) {
                    result.out(i, h * shape.dv + c) +=
                        std::exp(b[std::size_t(j)] - largest) / sum * double(x.vc(j, h / group * shape.dv + c));
                }
            }
        }
    }
    return result;
}

TYPED_TEST(FutureAware, MatchesTheDefinition) {
    using T = TypeParam;
    ThreadPool threads(3);
    std::uint64_t seed = 16000;
    for (const Index length : {1, 2, 7, 33, 64, 130, 200}) {
        for (const double scale : {0.4, -0.3, 0.0}) {
            Random random(++seed);
            const Head<T> x = random_heads<T>(random, length, shape);
            const castle::Options options{.scale = scale, .lookahead_window = 0};
            for (const LightFuture& light : all_kinds(random_prompt(random, length - length / 5))) {
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", scale ", scale, ", ", words_of(light)));
                const LightFutureInput<T> wide(shape, x.input(), light, options);
                const Definition expected = by_definition(x, light, double(T(scale)));
                // Products of d numbers, a mean of n of them; scores are of size 10 at most, and as much of a weight.
                const double bound = 40 * double(shape.d + 8) * unit_roundoff<T>;
                EXPECT_LE((wide.future_logits().template cast<double>() - expected.s).cwiseAbs().maxCoeff(), bound);
                const Matrix<T> out = castle::parallel(wide.shape(), wide.input(), wide.options());
                EXPECT_LE((out.template cast<double>() - expected.out).cwiseAbs().maxCoeff(), 8 * bound);

                castle::Options with_threads = options;
                with_threads.executor = threads.executor();
                const LightFutureInput<T> by_threads(shape, x.input(), light, with_threads);
                EXPECT_TRUE(same_bits(by_threads.future_logits(), wide.future_logits()));
                if (this->HasFailure()) return;
            }
        }
    }
}

/// Differences of double in every element of every input, of the definition for standard attention and of the library
/// for CASTLE.
TEST(FutureAwareGradient, MatchesCentralDifferences) {
    std::uint64_t seed = 16100;
    for (const Index window : {Index(0), castle::unlimited}) {
        for (const Index length : {3, 12}) {
            Random random(++seed);
            Head<double> x = random_heads<double>(random, length, shape);
            const castle::Options options{.scale = 0.4, .lookahead_window = window};
            Matrix<double> d_out(length, shape.heads * shape.dv);
            fill_normal(random, d_out);
            for (const LightFuture& light : all_kinds(random_prompt(random, length - 2))) {
                SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", ", words_of(light)));
                const auto loss = [&] {
                    if (window == 0) return by_definition(x, light, 0.4).out.cwiseProduct(d_out).sum();
                    const LightFutureInput<double> wide(shape, x.input(), light, options);
                    return castle::parallel(wide.shape(), wide.input(), wide.options()).cwiseProduct(d_out).sum();
                };
                const LightFutureInput<double> wide(shape, x.input(), light, options);
                const castle::Gradient<double> g =
                    wide.gradient(castle::backward(wide.shape(), wide.input(), d_out, wide.options()));
                expect_slopes(x, g, window > 0, loss);
                if (HasFatalFailure()) return;
            }
        }
    }
}

// The prompt comes in one call; tokens after it are ordinary, one by one or many.
TYPED_TEST(FutureAware, DecodesAfterThePrompt) {
    using T = TypeParam;
    Random random(16200);
    const Index prompt = 90, length = 150;
    const Head<T> x = random_heads<T>(random, length, shape);
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const LightFuture light{.visual = random_prompt(random, prompt), .pooling = Pooling::mean, .prefix = 2};
        const LightFutureInput<T> whole(shape, x.input(), light, options);
        const Matrix<T> expected = castle::parallel(whole.shape(), whole.input(), whole.options());
        castle::UqKvCache<T> cache(whole.shape(), whole.options());
        for (Index first = 0; first < length;) {
            const Index count = first == 0 ? prompt : std::min<Index>(random.integer(1, 9), length - first);
            const LightFutureInput<T> rows(shape, x.input().tokens(first, count), light, options, first);
            ASSERT_TRUE(same_bits(castle::extend(cache, rows.input()), Matrix<T>(expected.middleRows(first, count))));
            first += count;
        }
    }
}

// What a row does not look at reaches it neither forward nor backward; a NaN that it looks at does.
TYPED_TEST(FutureAware, LooksAtNothingElse) {
    using T = TypeParam;
    Random random(16300);
    const Index length = 70;
    std::vector<bool> visual(60, true);
    for (const Index text : {5, 20, 21}) visual[std::size_t(text)] = false;
    Head<T> x = random_heads<T>(random, length, shape);
    const castle::Options options{.lookahead_window = 0};
    for (const Pooling pooling : {Pooling::max, Pooling::mean}) {
        const LightFuture light{.visual = visual, .future = Future::visual, .pooling = pooling};
        const Matrix<T> before = LightFutureInput<T>(shape, x.input(), light, options).future_logits();
        Head<T> other = x;
        other.kc.row(21).setConstant(std::numeric_limits<T>::quiet_NaN());
        other.kc.row(65).setConstant(std::numeric_limits<T>::infinity());
        EXPECT_TRUE(same_bits(LightFutureInput<T>(shape, other.input(), light, options).future_logits(), before));
        other.kc.row(40).setConstant(std::numeric_limits<T>::quiet_NaN());
        const Matrix<T> after = LightFutureInput<T>(shape, other.input(), light, options).future_logits();
        for (Index t = 0; t < length; ++t) {
            EXPECT_EQ(std::isnan(after(t, 1)), t < 40 && visual[std::size_t(t)]) << "row " << t;
        }
    }
}

TYPED_TEST(FutureAware, RejectsWhatDoesNotFit) {
    using T = TypeParam;
    Random random(16400);
    const Head<T> x = random_heads<T>(random, 4, shape);
    const auto says = [&](const LightFuture& light, Index position = 0) {
        return message<std::invalid_argument>([&] { LightFutureInput<T>(shape, x.input(), light, {}, position); });
    };
    const std::string where = "castle::methods::LightFutureInput: ";
    EXPECT_EQ(says({.kernel = 2}), where + "light.kernel is 2 but must be odd");
    EXPECT_EQ(says({.kernel = 0}), where + "light.kernel is 0 but must be at least 1");
    EXPECT_EQ(says({.prefix = 0}), where + "light.prefix is 0 but must be at least 1");
    EXPECT_EQ(says({.visual = std::vector<bool>(5)}),
              where + "input has 4 rows but light.visual has 5: the prompt has to come in one call");
    EXPECT_EQ(says({.visual = std::vector<bool>(5)}, 2),
              where + "position is 2 but must be 0 or at least 5: the prompt has to come in one call");
    const LightFutureInput<T> wide(shape, x.input(), {});
    EXPECT_EQ(message<std::invalid_argument>([&] { wide.gradient(castle::Gradient<T>(4, shape)); }),
              where + "of_input.causal.q is [4, 20] but must be [4, 24], as input()");
}

}  // namespace
