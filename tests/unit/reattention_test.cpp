// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/message.hpp"

// Causal attention tuning: the loss by hand, its gradient by differences, and both through an attention.
namespace {

using castle::ConstMatrixView;
using castle::Index;
using castle::Matrix;
using castle::MatrixView;
using castle::methods::Reattention;
using castle::methods::ReattentionForm;
using namespace support;
namespace masks = castle::masks;

constexpr std::array<ReattentionForm, 4> forms = {ReattentionForm::hinge, ReattentionForm::log_ratio,
                                                  ReattentionForm::log_odds, ReattentionForm::share};

double loss_of(const Reattention& tuning, const std::vector<Matrix<double>>& masses) {
    const std::vector<ConstMatrixView<double>> views(masses.begin(), masses.end());
    return tuning.loss<double>(views);
}

// Four tokens; rows 2 and 3 should look at token 1. Row 0 sees no cause, row 1 looks at itself, which is the cause, and
// at another.
TEST(Reattention, IsWhatItIsByHand) {
    const castle::Mask causes = masks::packed(4, 4, [](Index, Index s) { return s == 1; });
    const Matrix<double> mass = (Matrix<double>(4, 1) << 0.0, 0.5, 0.25, 0.7).finished();
    // a1 is 0.5, 0.25, 0.7; a0 is 0.5 / 1, 0.75 / 2, 0.3 / 3; r is 1, 2/3, 7.
    const Reattention hinge(4, causes);
    EXPECT_EQ(hinge.rows(), 3);
    EXPECT_NEAR(loss_of(hinge, {mass}), (1 + (2 - 2 / 3.0) + 0) / 3, 1e-15);
    const auto with = [&](ReattentionForm form, double alpha) {
        return loss_of(Reattention(4, causes, {.form = form, .alpha = alpha}), {mass});
    };
    EXPECT_NEAR(with(ReattentionForm::hinge, 10), (9 + (10 - 2 / 3.0) + 3) / 3, 1e-14);
    EXPECT_NEAR(with(ReattentionForm::log_ratio, 2), -(1 + std::log(1.25) / std::log(1.375)) / 3, 1e-15);
    EXPECT_NEAR(with(ReattentionForm::log_odds, 2), -(std::log(1 + 0.5 / 1.5) + std::log(1 + 0.25 / 1.375)) / 3, 1e-15);
    EXPECT_NEAR(with(ReattentionForm::share, 2), -(0.5 + 0.25 / 0.625) / 3, 1e-15);
}

// Two layers of one and two heads: the loss of the mean mass, or the mean of the losses.
TEST(Reattention, AveragesMassesOrLosses) {
    const castle::Mask causes = masks::packed(2, 2, [](Index, Index s) { return s == 0; });
    const std::vector<Matrix<double>> masses = {(Matrix<double>(2, 1) << 1.0, 0.1).finished(),
                                                (Matrix<double>(2, 2) << 1.0, 1.0, 0.3, 0.8).finished()};
    EXPECT_NEAR(loss_of(Reattention(2, causes), masses), 2 - 0.4 / 0.6, 1e-15);
    EXPECT_NEAR(loss_of(Reattention(2, causes, {.per_head = true}), masses),
                ((2 - 0.1 / 0.9) + (2 - 0.3 / 0.7) + 0) / 3, 1e-15);
}

// A mask of the attention leaves columns out of both counts.
TEST(Reattention, CountsWhatTheMaskShows) {
    const castle::Mask causes = masks::packed(6, 6, [](Index, Index s) { return s < 2; });
    const Matrix<double> mass = Matrix<double>::Constant(6, 1, 0.25);
    const Reattention tuning(6, causes, {.alpha = 100}, masks::sliding_window(3));
    // Rows 2 (both causes and itself) and 3 (one cause of three); rows 0, 1, 4 and 5 see one kind.
    EXPECT_EQ(tuning.rows(), 2);
    EXPECT_NEAR(loss_of(tuning, {mass}), ((100 - 0.125 / 0.75) + (100 - 0.25 / 0.375)) / 2, 1e-13);
}

TEST(Reattention, HasTheGradientOfItsLoss) {
    std::uint64_t seed = 16500;
    for (const ReattentionForm form : forms) {
        for (const bool per_head : {false, true}) {
            for (const double alpha : {0.8, 2.0, 20.0}) {
                Random random(++seed);
                SCOPED_TRACE(describe("form ", int(form), ", per head ", per_head, ", alpha ", alpha));
                const Index length = 9;
                const castle::Mask causes =
                    masks::packed(length, length, [](Index t, Index s) { return (t * 3 + s) % 4 == 1; });
                const Reattention tuning(length, causes, {.form = form, .alpha = alpha, .per_head = per_head});
                std::vector<Matrix<double>> masses = {Matrix<double>(length, 2), Matrix<double>(length, 3)};
                for (auto& layer : masses) {
                    for (Index i = 0; i < layer.size(); ++i)
                        layer.data()[i] = 0.05 + 0.09 * double(random.integer(0, 10));
                }
                std::vector<Matrix<double>> gradient = masses;
                const std::vector<ConstMatrixView<double>> views(masses.begin(), masses.end());
                const std::vector<MatrixView<double>> to(gradient.begin(), gradient.end());
                const double loss = tuning.loss<double>(views, to, 3.0);
                EXPECT_EQ(loss, loss_of(tuning, masses));
                for (std::size_t m = 0; m < masses.size(); ++m) {
                    for (Index i = 0; i < masses[m].size(); ++i) {
                        constexpr double h = 1e-6;
                        double& x = masses[m].data()[i];
                        const double before = x;
                        x = before + h;
                        const double above = loss_of(tuning, masses);
                        x = before - h;
                        const double below = loss_of(tuning, masses);
                        x = before;
                        EXPECT_NEAR(gradient[m].data()[i], 3 * (above - below) / (2 * h), 1e-7) << m << ", " << i;
                    }
                }
            }
        }
    }
}

// Through CASTLE and standard attention: differences in the queries, of the loss of the masses that forward gives.
TEST(Reattention, TrainsAnAttention) {
    Random random(16600);
    const castle::Shape shape{.d = 4, .dv = 3, .heads = 2, .kv_heads = 1};
    const Index length = 8;
    const castle::Mask causes = masks::packed(length, length, [](Index t, Index s) { return s % 3 == t % 2; });
    const Reattention tuning(length, causes, {.alpha = 20});
    for (const Index window : {Index(0), castle::unlimited}) {
        Head<double> x = random_heads<double>(random, length, shape);
        castle::Workspace<double> workspace(shape, {.lookahead_window = window});
        Matrix<double> out(length, shape.heads * shape.dv), mass(length, shape.heads), d_mass = mass;
        const auto loss = [&] {
            castle::forward(workspace, x.input(),
                            castle::Output<double>{.out = out, .mass = mass, .mass_over = causes});
            return tuning.loss<double>(std::array{ConstMatrixView<double>(mass)},
                                       std::array{MatrixView<double>(d_mass)});
        };
        loss();
        const Matrix<double> d_out = Matrix<double>::Zero(length, shape.heads * shape.dv);
        castle::Gradient<double> g(length, shape);
        castle::backward(workspace, x.input(), castle::OutputGradient<double>{.out = d_out, .mass = d_mass}, g.view());
        const Matrix<double> d_q = g.causal.q;
        for (Index i = 0; i < x.qc.size(); ++i) {
            constexpr double h = 1e-6;
            const double before = x.qc.data()[i];
            x.qc.data()[i] = before + h;
            const double above = loss();
            x.qc.data()[i] = before - h;
            const double below = loss();
            x.qc.data()[i] = before;
            ASSERT_NEAR(d_q.data()[i], (above - below) / (2 * h), 1e-6) << "window " << window << ", element " << i;
        }
    }
}

TEST(Reattention, RejectsWhatDoesNotFit) {
    const castle::Mask causes = masks::packed(3, 3, [](Index, Index) { return true; });
    const std::string where = "castle::methods::Reattention: ";
    EXPECT_EQ(message<std::invalid_argument>([&] { Reattention(4, causes); }),
              where + "causes has 3 rows but the call has row 3");
    EXPECT_EQ(message<std::invalid_argument>([&] { Reattention(3, causes, {.alpha = 0}); }),
              where + "options.alpha is 0 but must be above 0");
    const Reattention tuning(3, causes);
    Matrix<float> mass = Matrix<float>::Zero(2, 1), other = Matrix<float>::Zero(3, 2);
    EXPECT_EQ(message<std::invalid_argument>([&] { tuning.loss<float>(std::array{ConstMatrixView<float>(mass)}); }),
              where + "masses[0] has 2 rows but the sequence has 3 tokens");
    mass = Matrix<float>::Zero(3, 1);
    EXPECT_EQ(message<std::invalid_argument>([&] {
                  tuning.loss<float>(std::array{ConstMatrixView<float>(mass)}, std::array{MatrixView<float>(other)});
              }),
              where + "d_masses[0] is [3, 2] but must be [3, 1], as masses[0]");
    // Where no row counts there is no loss.
    EXPECT_EQ(tuning.loss<float>(std::array{ConstMatrixView<float>(mass)}, std::array{MatrixView<float>(mass)}), 0);
    EXPECT_EQ(mass.norm(), 0);
}

}  // namespace
