// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/adamw.hpp"
#include "model/averaged_weights.hpp"
#include "model/batch.hpp"
#include "model/cross_entropy.hpp"
#include "model/descent.hpp"
#include "model/dropout.hpp"
#include "model/matrices.hpp"
#include "model/ranked_gradient.hpp"
#include "support/bad_input.hpp"
#include "support/ranks.hpp"

// What the examples that train share.
namespace {

using model::Index;
using model::Matrix;

struct Weights {
    Matrix a;
    Matrix b;
    model::NamedMatrices matrices() { return {{"a", &a}, {"b", &b, /*decays=*/false}}; }
};

// Five steps of arXiv:1711.05101, algorithm 2, number by number in double precision.
TEST(Training, AdamWIsThatOfThePaper) {
    const model::AdamWSettings settings{.beta1 = 0.8, .beta2 = 0.9, .epsilon = 1e-3, .weight_decay = 0.5};
    constexpr double rate = 0.1;
    Weights weights{Matrix::Constant(1, 1, 2.0F), Matrix::Constant(1, 1, -1.0F)};
    model::AdamW<Weights> optimizer(weights);
    std::array<double, 2> w = {2, -1}, m = {0, 0}, v = {0, 0};
    for (int step = 1; step <= 5; ++step) {
        const std::array<double, 2> g = {0.3 * step, -0.7 + 0.2 * step};
        Weights gradient{Matrix::Constant(1, 1, float(g[0])), Matrix::Constant(1, 1, float(g[1]))};
        optimizer.step(weights, gradient, rate, settings);
        for (std::size_t i = 0; i < 2; ++i) {
            m[i] = 0.8 * m[i] + 0.2 * g[i];
            v[i] = 0.9 * v[i] + 0.1 * g[i] * g[i];
            const double mean = m[i] / (1 - std::pow(0.8, step)), square = v[i] / (1 - std::pow(0.9, step));
            w[i] -= rate * (mean / (std::sqrt(square) + 1e-3) + (i == 0 ? 0.5 * w[i] : 0));
        }
        EXPECT_NEAR(weights.a(0), w[0], 1e-6) << "step " << step;
        EXPECT_NEAR(weights.b(0), w[1], 1e-6) << "step " << step << ", where nothing decays";
    }
}

TEST(Training, CrossEntropyHasTheGradientOfCentralDifferences) {
    const Eigen::RowVectorXf logits{{0.3F, -2.0F, 1.5F, 0.0F}};
    const auto loss = [&](const Eigen::RowVectorXd& x, Index target) {
        return std::log(x.array().exp().sum()) - x(target);
    };
    for (Index target = 0; target < 4; ++target) {
        Eigen::RowVectorXf gradient = logits;
        EXPECT_NEAR(model::cross_entropy(gradient, target), loss(logits.cast<double>(), target), 1e-6);
        for (Index i = 0; i < 4; ++i) {
            Eigen::RowVectorXd above = logits.cast<double>(), below = above;
            above(i) += 1e-5;
            below(i) -= 1e-5;
            EXPECT_NEAR(gradient(i), (loss(above, target) - loss(below, target)) / 2e-5, 1e-6);
        }
    }
    Eigen::RowVectorXf huge{{1e30F, -1e30F}};
    EXPECT_EQ(model::cross_entropy(huge, 0), 0);
}

TEST(Training, ClippingLimitsTheNormOfAllMatricesTogether) {
    Weights gradient{Matrix::Constant(1, 1, 3.0F), Matrix::Constant(1, 1, -4.0F)};
    EXPECT_EQ(model::clip(gradient.matrices(), 10), 5);
    EXPECT_EQ(gradient.a(0), 3);
    EXPECT_EQ(model::clip(gradient.matrices(), 1), 5);
    EXPECT_FLOAT_EQ(gradient.a(0), 0.6F);
    EXPECT_FLOAT_EQ(gradient.b(0), -0.8F);
}

TEST(Training, ABatchIsTheSumOfItsParts) {
    model::BatchGradient<Weights> batch({Matrix::Zero(2, 3), Matrix::Zero(1, 1)}, 5);
    for (int again = 0; again < 2; ++again) {
        batch.set_zero();
        model::for_parts(5, [&](Index i) { batch.part(i).a.setConstant(float(1 << i)); });
        EXPECT_EQ(batch.sum().a, Matrix::Constant(2, 3, 31.0F));
    }
}

TEST(Training, ABatchOfOneRankIsThatOfAll) {
    model::RankedGradient<Weights> batch(Ranks(), {Matrix::Zero(2, 3), Matrix::Zero(1, 1)}, 5);
    EXPECT_EQ(batch.own().first, 0);
    EXPECT_EQ(batch.own().count, 5);
    for (int again = 0; again < 2; ++again) {
        batch.set_zero();
        for (Index i = 0; i < 5; ++i) batch.part(i).a.setConstant(float(1 << i));
        EXPECT_EQ(batch.sum().a, Matrix::Constant(2, 3, 31.0F));
    }
}

// Ranks that know nothing of each other would write the same files.
TEST(Training, WithoutMpiThereIsOneRank) {
    const auto with = [](const std::string& name, const char* value) {
        setenv(name.c_str(), value, 1);
        const Launch launch = Launch::of_this_process();
        EXPECT_TRUE(launch.by_mpirun);
        if (launch.one_of_several) {
            EXPECT_THROW(connect_ranks(), BadInput);
        } else {
            EXPECT_EQ(connect_ranks(), nullptr);
        }
        unsetenv(name.c_str());
        return launch.one_of_several;
    };
    EXPECT_FALSE(Launch::of_this_process().by_mpirun);
    EXPECT_EQ(connect_ranks(), nullptr);
    for (const char* size : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
        EXPECT_FALSE(with(size, "1"));
        EXPECT_TRUE(with(size, "2"));
    }
    for (const char* rank : {"PMI_RANK", "PMIX_RANK"}) {
        EXPECT_FALSE(with(rank, "0"));
        EXPECT_TRUE(with(rank, "1"));
    }
}

// Every element once, whichever ranges there are.
TEST(Training, ElementsOfMatricesFollowEachOther) {
    Weights weights{Matrix(2, 3), Matrix(1, 2)};
    for (Index i = 0; i < 6; ++i) weights.a.data()[i] = float(i);
    for (Index i = 0; i < 2; ++i) weights.b.data()[i] = float(6 + i);
    for (Index first = 0; first <= 8; ++first) {
        for (Index count = 0; count <= 8 - first; ++count) {
            Index next = first;
            model::for_elements(weights.matrices(), first, count, [&](const float* elements, Index n) {
                for (Index i = 0; i < n; ++i) EXPECT_EQ(elements[i], float(next++));
            });
            EXPECT_EQ(next, first + count);
        }
    }
}

// One part after the other, or all of them in this thread: the same step.
TEST(Training, AStepInPartsIsThatOfTheirSum) {
    struct Model {
        Weights weights{Matrix::Constant(1, 2, 1.0F), Matrix::Constant(1, 1, 2.0F)};
        int updates = 0;
        void update() { ++updates; }
    };
    Model whole, in_parts;
    model::Descent of_whole(whole, {.weight_decay = 0.5});
    model::Descent of_parts(in_parts, {.weight_decay = 0.5}, 3);
    const auto learn = [](Index part, Weights& gradient) {
        gradient.a.array() += float(part);
        gradient.b.array() -= 0.5F;
    };
    for (int step = 0; step < 3; ++step) {
        of_whole.step(12, 0.1, [&](Weights& gradient) {
            for (Index part = 0; part < 3; ++part) learn(part, gradient);
        });
        of_parts.step_in_parts(12, 0.1, learn);
    }
    EXPECT_EQ(whole.weights.a, in_parts.weights.a);
    EXPECT_EQ(whole.weights.b, in_parts.weights.b);
    EXPECT_EQ(in_parts.updates, 3);
    EXPECT_LT(in_parts.weights.a(0), 1);
    EXPECT_GT(in_parts.weights.b(0), 2);
}

TEST(Training, AveragesForgetExponentially) {
    model::AveragedWeights<Weights> average(0.75);
    const auto of = [](float a) { return Weights{Matrix::Constant(1, 1, a), Matrix::Constant(1, 1, 2 * a)}; };
    for (const float a : {8.0F, 4.0F, 0.0F}) {
        Weights weights = of(a);
        average.add(weights);
    }
    EXPECT_EQ(average.average().a(0), 0.75F * (0.75F * 8 + 0.25F * 4));
    EXPECT_EQ(average.average().b(0), 2 * average.average().a(0));
}

TEST(Training, DropoutKeepsTheMean) {
    std::mt19937_64 bits(1), again(1);
    model::Dropout dropout, same;
    const Matrix ones = Matrix::Ones(101, 99);
    Matrix x = ones, d_x = ones, y = 2 * ones;
    dropout.forward(x, 0.25, &bits);
    // 9999 elements, each 0 with a probability of a quarter, and 4/3 otherwise: five standard errors.
    EXPECT_NEAR(x.mean(), 1, 5 * std::sqrt(1.0 / 3 / 9999));
    EXPECT_TRUE((x.array() == 0 || (x.array() - 4 / 3.0F).abs() < 1e-6F).all());
    dropout.backward(d_x);
    EXPECT_EQ(d_x, x);
    same.forward(y, 0.25, &again);
    EXPECT_EQ(y, 2 * x);
    // Without random bits nothing is left out, nor in the backward pass.
    x = ones;
    dropout.forward(x, 0.25, nullptr);
    EXPECT_EQ(x, ones);
    d_x = ones;
    dropout.backward(d_x);
    EXPECT_EQ(d_x, ones);
}

TEST(Training, WhatAPartThrowsComesOut) {
    EXPECT_THROW(model::for_parts(4,
                                  [](Index i) {
                                      if (i == 2) throw std::runtime_error("of part 2");
                                  }),
                 std::runtime_error);
}

TEST(Training, NormalNumbersHaveTheirMomentsAndTheirSeed) {
    std::mt19937_64 bits(1), again(1);
    const Matrix x = model::normal_matrix(100, 100, 2, bits);
    EXPECT_EQ(x, model::normal_matrix(100, 100, 2, again));
    // Five standard errors of 10000 elements.
    EXPECT_NEAR(x.mean(), 0, 5 * 2 / 100.0);
    EXPECT_NEAR(x.array().square().mean(), 4, 5 * 4 * std::sqrt(2.0) / 100);
}

}  // namespace
