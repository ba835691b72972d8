// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

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

Mask some_mass() {
    return masks::predicate([](Index t, Index s) { return (t + 2 * s) % 3 != 0; });
}

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
        oracle::MaskedSettings settings{.base = oracle_settings(p.shape.d, p.options),
                                        .sees = sees,
                                        .mass_over = [](Index t, Index s) { return (t + 2 * s) % 3 != 0; },
                                        .cap = terms.soft_cap};
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

// A step that balances the differences' own error, of order step^2, with the rounding that it magnifies.
constexpr double step = 1e-5;

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
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name));
                Problem p(random, length, shape, window, named.mask, true, 0.3);
                const AllGradients g = run(p);
                const auto expect = [&](Matrix<double>& x, const Matrix<double>& gradient, const char* name) {
                    const Matrix<double> before = x;
                    Matrix<double> direction(x.rows(), x.cols());
                    fill_normal(random, direction);
                    direction /= direction.norm();
                    x = before + step * direction;
                    const double above = loss_of_library(p);
                    x = before - step * direction;
                    const double below = loss_of_library(p);
                    x = before;
                    const double expected = (above - below) / (2 * step);
                    EXPECT_NEAR((gradient.array() * direction.array()).sum(), expected,
                                2e-7 * (1 + std::abs(expected)) * std::sqrt(double(length)))
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

}  // namespace
