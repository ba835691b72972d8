// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/differences.hpp"
#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/gradients.hpp"
#include "support/many_heads.hpp"
#include "support/mask_oracle.hpp"
#include "support/masks.hpp"
#include "support/poison.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The backward pass under masks, with score terms, and from the gradients of by-products: against central differences
// of the definition in every element, and of the library along random directions where sequences are long.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;

constexpr std::array<Index, 4> windows{0, 3, 40, castle::unlimited};

/// Everything that a loss depends on, and its gradient.
struct Problem {
    castle::Shape shape;
    Head<double> heads;
    castle::Options options;
    Mask mask;
    Matrix<double> d_out, d_log_sum_exp, d_mass;

    Problem(Random& random, Index length, const castle::Shape& s, Index window, const Mask& m, bool with_terms,
            double size = 1)
        : shape(s),
          heads(random_heads<double>(random, length, s, size)),
          options{.lookahead_window = window},
          mask(m),
          d_out(length, s.heads * s.dv),
          d_log_sum_exp(length, s.heads),
          d_mass(length, s.heads) {
        for (Matrix<double>* x : {&d_out, &d_log_sum_exp, &d_mass}) fill_normal(random, *x);
        if (!with_terms) return;
        options.terms.factor = Matrix<double>(s.heads, length);
        options.terms.bias = Matrix<double>(1, length);
        for (Matrix<double>* table : {&options.terms.factor, &options.terms.bias}) fill_normal(random, *table);
        options.terms.factor.array() = 1 + 0.3 * options.terms.factor.array();
        options.terms.soft_cap = 1.5;
        for (Index h = 0; h < s.heads; ++h) options.terms.sinks.push_back(random.normal());
    }

    /// The factors of what the loss sums: outputs, log-sum-exps that are finite, masses.
    double loss_of(const Matrix<double>& out, const Matrix<double>& log_sum_exp, const Matrix<double>& mass) const {
        double sum = (out.array() * d_out.array()).sum() + (mass.array() * d_mass.array()).sum();
        for (Index i = 0; i < mass.size(); ++i) {
            if (std::isfinite(log_sum_exp.data()[i])) sum += log_sum_exp.data()[i] * d_log_sum_exp.data()[i];
        }
        return sum;
    }
};

struct AllGradients {
    castle::Gradient<double> input;
    Matrix<double> factor, bias, sinks;
};

AllGradients run(const Problem& p, const castle::Executor& executor = {}, double* loss = nullptr) {
    castle::Workspace<double> workspace(p.shape, p.options);
    const Index rows = p.d_out.rows();
    Matrix<double> out(rows, p.d_out.cols()), log_sum_exp(rows, p.shape.heads), mass(rows, p.shape.heads);
    castle::forward(
        workspace, p.heads.input(),
        castle::Output<double>{.out = out, .log_sum_exp = log_sum_exp, .mass = mass, .mass_over = some_mass()}, p.mask,
        executor);
    if (loss != nullptr) *loss = p.loss_of(out, log_sum_exp, mass);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    AllGradients g{
        .input = castle::Gradient<double>(rows, p.shape),
        .factor = Matrix<double>::Constant(p.options.terms.factor.rows(), p.options.terms.factor.cols(), nan),
        .bias = Matrix<double>::Constant(p.options.terms.bias.rows(), p.options.terms.bias.cols(), nan),
        .sinks =
            Matrix<double>::Constant(p.options.terms.sinks.empty() ? 0 : 1, Index(p.options.terms.sinks.size()), nan)};
    for (Matrix<double>* m : all_of(g.input)) m->setConstant(nan);
    castle::backward(workspace, p.heads.input(),
                     castle::OutputGradient<double>{.out = p.d_out, .log_sum_exp = p.d_log_sum_exp, .mass = p.d_mass},
                     g.input.view(), {.factor = g.factor, .bias = g.bias, .sinks = g.sinks}, executor);
    return g;
}

double loss_of_library(const Problem& p) {
    const Index rows = p.d_out.rows();
    Matrix<double> out(rows, p.d_out.cols()), log_sum_exp(rows, p.shape.heads), mass(rows, p.shape.heads);
    castle::parallel(
        p.shape, p.heads.input(),
        castle::Output<double>{.out = out, .log_sum_exp = log_sum_exp, .mass = mass, .mass_over = some_mass()},
        p.options, p.mask);
    return p.loss_of(out, log_sum_exp, mass);
}

double loss_of_oracle(const Problem& p, const std::function<bool(Index, Index)>& sees) {
    const Index rows = p.d_out.rows();
    Matrix<double> out(rows, p.d_out.cols()), log_sum_exp(rows, p.shape.heads), mass(rows, p.shape.heads);
    for (Index h = 0; h < p.shape.heads; ++h) {
        const castle::ScoreTerms& terms = p.options.terms;
        oracle::MaskedSettings settings{
            .base = oracle_settings(p.shape.d, p.options), .sees = sees, .mass_over = in_mass, .cap = terms.soft_cap};
        for (Index k = 0; k < terms.factor.cols(); ++k) settings.factor.push_back(terms.factor(h, k));
        for (Index k = 0; k < terms.bias.cols(); ++k) settings.bias.push_back(terms.bias(0, k));
        if (!terms.sinks.empty()) settings.sink = terms.sinks[std::size_t(h)];
        const oracle::MaskedResult r = oracle::evaluate(oracle_head(lone_head(p.heads, p.shape, h)), settings);
        for (Index t = 0; t < rows; ++t) {
            for (Index c = 0; c < p.shape.dv; ++c) out(t, h * p.shape.dv + c) = r.output(t, c);
            log_sum_exp(t, h) = r.log_sum_exp[std::size_t(t)];
            mass(t, h) = r.mass[std::size_t(t)];
        }
    }
    return p.loss_of(out, log_sum_exp, mass);
}

constexpr double step = difference_step;

TEST(MasksGradient, MatchesCentralDifferencesOfTheDefinitionInEveryElement) {
    std::uint64_t seed = 15500;
    for (const Index length : {1, 2, 7, 12, 37}) {
        for (const Index window : windows) {
            for (const bool with_terms : {false, true}) {
                Random random(++seed);
                const castle::Shape shape{.d = 2, .dv = 2, .heads = 2, .kv_heads = 1};
                const std::vector<NamedMask> all = all_masks(random, length);
                // All of them for the short ones.
                for (std::size_t i = length > 20 ? seed % 3 : 0; i<all.size(); i += length> 20 ? 3 : 1) {
                    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", all[i].name,
                                          with_terms ? ", with terms" : ""));
                    Problem p(random, length, shape, window, all[i].mask, with_terms);
                    AllGradients g = run(p);
                    const auto expect = [&](double& x, double gradient, const std::string& what) {
                        const double before = x;
                        x = before + step;
                        const double above = loss_of_oracle(p, all[i].sees);
                        x = before - step;
                        const double below = loss_of_oracle(p, all[i].sees);
                        x = before;
                        const double expected = (above - below) / (2 * step);
                        ASSERT_NEAR(gradient, expected, 1e-7 * (1 + std::abs(expected))) << what;
                    };
                    const auto expect_all = [&](Matrix<double>& x, const Matrix<double>& gradient, const char* name) {
                        for (Index k = 0; k < x.size(); ++k) {
                            expect(x.data()[k], gradient.data()[k], describe(name, ", element ", k));
                            if (HasFatalFailure()) return;
                        }
                    };
                    for (std::size_t m = 0; m < 6; ++m) {
                        expect_all(*p.heads.all()[m], *all_of(g.input)[m], input_names[m]);
                        if (HasFatalFailure()) return;
                    }
                    expect_all(p.options.terms.factor, g.factor, "factor");
                    expect_all(p.options.terms.bias, g.bias, "bias");
                    for (std::size_t h = 0; h < p.options.terms.sinks.size(); ++h) {
                        expect(p.options.terms.sinks[h], g.sinks(0, Index(h)), describe("sink ", h));
                    }
                    if (HasFailure()) return;
                }
            }
        }
    }
}

TEST(MasksGradient, MatchesCentralDifferencesOfTheLibraryWhereSequencesAreLong) {
    std::uint64_t seed = 15600;
    for (const Index length : {70, 150, 560}) {
        for (const Index window : windows) {
            Random random(++seed);
            const castle::Shape shape{.d = 3, .dv = 2, .heads = 2, .kv_heads = 1};
            for (const NamedMask& named : all_masks(random, length)) {
                // Of the long ones, which take long, some.
                if (length > 200 && random.integer(0, 3) > 0) continue;
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name));
                Problem p(random, length, shape, window, named.mask, true, 0.3);
                const AllGradients g = run(p);
                const auto expect = [&](Matrix<double>& x, const Matrix<double>& gradient, const char* name) {
                    const Slopes slopes = slopes_along(
                        random, gradient, [&] { return loss_of_library(p); },
                        [&](const Matrix<double>& by) { x += by; });
                    EXPECT_NEAR(slopes.by_gradient, slopes.by_differences,
                                2e-7 * (1 + std::abs(slopes.by_differences)) * std::sqrt(double(length)))
                        << name;
                };
                for (std::size_t m = 0; m < 6; ++m) expect(*p.heads.all()[m], *all_of(g.input)[m], input_names[m]);
                expect(p.options.terms.factor, g.factor, "factor");
                expect(p.options.terms.bias, g.bias, "bias");
                if (HasFailure()) return;
            }
        }
    }
}

TEST(MasksGradient, HasTheSameBitsOnEveryExecutor) {
    ThreadPool two(2), four(4);
    std::uint64_t seed = 15700;
    for (const Index length : {40, 200, 700}) {
        for (const Index window : windows) {
            Random random(++seed);
            const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
            for (const NamedMask& named : all_masks(random, length)) {
                if (length > 200 && random.integer(0, 3) > 0) continue;
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name));
                const Problem p(random, length, shape, window, named.mask, true);
                const AllGradients expected = run(p);
                for (const castle::Executor& executor : {two.executor(), four.executor(), shuffled_executor(seed)}) {
                    const AllGradients g = run(p, executor);
                    for (std::size_t m = 0; m < 6; ++m) {
                        EXPECT_TRUE(same_bits(*all_of(g.input)[m], *all_of(expected.input)[m])) << input_names[m];
                    }
                    EXPECT_TRUE(same_bits(g.factor, expected.factor)) << "factor";
                    EXPECT_TRUE(same_bits(g.bias, expected.bias)) << "bias";
                    EXPECT_TRUE(same_bits(g.sinks, expected.sinks)) << "sinks";
                    if (HasFailure()) return;
                }
            }
        }
    }
}

// Queries of one sequence and keys of another: every gradient, along random directions, and the definition by hand.
TEST(MasksGradient, OfCrossAttentionMatchesCentralDifferences) {
    ThreadPool threads(3);
    std::uint64_t seed = 15800;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 2, .kv_heads = 1};
    for (const Index rows : {1, 5, 40, 200}) {
        for (const Index keys : {1, 70, 300, 600}) {
            if (rows == keys) continue;
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", rows, " rows, ", keys, " keys"));
            castle::Options options{.lookahead_window = 0};
            options.terms.bias = Matrix<double>(2, std::max(rows, keys));
            fill_normal(random, options.terms.bias);
            options.terms.sinks = {0.3, -0.5};
            const Mask mask = seed % 2 == 0
                                  ? masks::full()
                                  : masks::predicate([](Index t, Index s) { return (t + s) % 3 != 0 || s == 0; });
            Matrix<double> q(rows, 6), k(keys, 3), v(keys, 2), d_out(rows, 4), out(rows, 4);
            for (Matrix<double>* m : {&q, &k, &v, &d_out}) fill_normal(random, *m);
            const auto input = [&] { return castle::Input<double>{.causal = {.q = q, .k = k, .v = v}}; };
            const auto loss = [&] {
                castle::parallel(shape, input(), out, options, mask);
                return (out.array() * d_out.array()).sum();
            };
            loss();
            for (Index h = 0; h < 2; ++h) {
                for (Index t = 0; t < rows; ++t) {
                    double sum = std::exp(options.terms.sinks[std::size_t(h)]), first = 0;
                    for (Index s = 0; s < keys; ++s) {
                        if (!mask.sees(t, s, keys)) continue;
                        const double score = q.row(t).segment(3 * h, 3).dot(k.row(s)) / std::sqrt(3.0) +
                                             options.terms.bias(h, std::abs(t - s));
                        sum += std::exp(score);
                        first += std::exp(score) * v(s, 0);
                    }
                    ASSERT_NEAR(out(t, 2 * h), first / sum, 1e-12 * double(keys)) << "row " << t << ", head " << h;
                }
            }
            Matrix<double> d_q(rows, 6), d_k(keys, 3), d_v(keys, 2), d_bias(2, std::max(rows, keys));
            for (const castle::Executor& executor : {castle::Executor(), threads.executor()}) {
                castle::Workspace<double> workspace(shape, options);
                castle::forward(workspace, input(), castle::Output<double>{.out = out}, mask, executor);
                for (Matrix<double>* m : {&d_q, &d_k, &d_v, &d_bias}) {
                    m->setConstant(std::numeric_limits<double>::quiet_NaN());
                }
                castle::backward(workspace, input(), castle::OutputGradient<double>{.out = d_out},
                                 {.causal = {.q = d_q, .k = d_k, .v = d_v}}, {.bias = d_bias}, executor);
                const auto expect = [&](Matrix<double>& x, const Matrix<double>& gradient, const char* name) {
                    const Slopes slopes =
                        slopes_along(random, gradient, loss, [&](const Matrix<double>& by) { x += by; });
                    EXPECT_NEAR(slopes.by_gradient, slopes.by_differences, 1e-7 * (1 + std::abs(slopes.by_differences)))
                        << name;
                };
                expect(q, d_q, "q");
                expect(k, d_k, "k");
                expect(v, d_v, "v");
                expect(options.terms.bias, d_bias, "bias");
            }
        }
    }
    // Rows that see nothing, where the keys end with a span; and no rows at all.
    {
        const castle::Shape lone{.d = 3, .dv = 3};
        const Matrix<double> queries = Matrix<double>::Ones(700, 3), others = Matrix<double>::Ones(512, 3);
        const castle::Input<double> input{.causal = {.q = queries, .k = others, .v = others}};
        castle::Workspace<double> workspace(lone, {.lookahead_window = 0});
        Matrix<double> out(700, 3);
        castle::forward(workspace, input, castle::Output<double>{.out = out},
                        (masks::sliding_window(10) & masks::full()).allowing_empty_rows());
        EXPECT_NEAR(out(520, 0), 1, 1e-12);
        EXPECT_EQ(out(521, 0), 0);
        const castle::Gradient<double> g = castle::backward(workspace, input, queries);
        EXPECT_EQ(g.causal.k.rows(), 512);
        EXPECT_NEAR(g.causal.v.sum(), 521 * 3, 1e-9);

        const castle::Input<double> nobody{
            .causal = {.q = castle::ConstMatrixView<double>(queries).middle_rows(0, 0), .k = others, .v = others}};
        castle::forward(workspace, nobody,
                        castle::Output<double>{.out = castle::MatrixView<double>(out).middle_rows(0, 0)},
                        masks::full());
        Matrix<double> d_q(0, 3), d_k = others, d_v = others;
        castle::backward(workspace, nobody,
                         castle::OutputGradient<double>{.out = castle::ConstMatrixView<double>(out).middle_rows(0, 0)},
                         {.causal = {.q = d_q, .k = d_k, .v = d_v}});
        EXPECT_TRUE((d_k.array() == 0).all() && (d_v.array() == 0).all());
    }
    const castle::Matrix<double> q(5, 3), k(7, 3);
    EXPECT_THROW(static_cast<void>(castle::parallel(castle::Input<double>{.causal = {.q = q, .k = k, .v = k}},
                                                    {.lookahead_window = 0})),
                 std::invalid_argument)
        << "without a mask";
    EXPECT_THROW(static_cast<void>(
                     castle::parallel(castle::Input<double>{.causal = {.q = q, .k = k, .v = k}}, {}, masks::full())),
                 std::invalid_argument)
        << "with lookahead keys";
}

}  // namespace
