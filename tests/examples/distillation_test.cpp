// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "distillation/leaf.hpp"

namespace {

using namespace distillation;

// What is removed reaches nothing: the logits are those of a person of whom it says something else.
TEST(Distillation, RemovesTokens) {
    for (const bool castle : {false, true}) {
        const Model model({.castle = castle, .layers = 2}, 5);
        Model::Tape tape(model);
        std::vector<Person> people = random_people(3, true, 7);
        const std::vector<castle::Mask> masks = {without({{1, 3}}), without({{8, 9}, {2, 3}}), castle::Mask()};
        const Matrix before = model.forward(people, tape, false, masks), whole = model.forward(people, tape);
        for (const Index t : {1, 2}) people[0].phrases[std::size_t(t - 1)].value = 12;
        for (const Index t : {2, 8}) people[1].phrases[std::size_t(t - 1)] = {.attribute = 6, .value = 11};
        EXPECT_EQ(model.forward(people, tape, false, masks), before);
        EXPECT_EQ(before.row(2), whole.row(2));
        EXPECT_NE(before.row(0), whole.row(0));
    }
}

TEST(Distillation, DivergesAsByDefinition) {
    Eigen::RowVectorXf student(3);
    student << 0, 1, -1;
    Eigen::RowVectorXf teacher(3);
    teacher << 2, 2, 0;
    const auto softmax = [](const std::array<double, 3>& x) {
        const double sum = std::exp(x[0]) + std::exp(x[1]) + std::exp(x[2]);
        return std::array<double, 3>{std::exp(x[0]) / sum, std::exp(x[1]) / sum, std::exp(x[2]) / sum};
    };
    const auto of = [&](std::array<double, 3> x) {
        const auto t = softmax({2, 2, 0}), s = softmax(x);
        double sum = 0;
        for (std::size_t i = 0; i < 3; ++i) sum += t[i] * std::log(t[i] / s[i]);
        return sum;
    };
    Eigen::RowVectorXf gradient = student;
    EXPECT_NEAR(divergence(gradient, teacher), of({0, 1, -1}), 1e-6);
    for (std::size_t i = 0; i < 3; ++i) {
        std::array<double, 3> above = {0, 1, -1}, below = above;
        above[i] += 1e-4;
        below[i] -= 1e-4;
        EXPECT_NEAR(gradient[Index(i)], (of(above) - of(below)) / 2e-4, 1e-6);
    }
    Eigen::RowVectorXf same = teacher;
    EXPECT_NEAR(divergence(same, teacher), 0, 1e-6);
    EXPECT_NEAR(same.norm(), 0, 1e-6);
}

// The norms are those of differences of the loss in the embeddings: here in a name's row, which one token reads.
TEST(Distillation, NormsAreOfTheLossesGradient) {
    Model model({}, 9);
    const Person person = random_people(1, true, 11).front();
    const std::vector<double> norms = gradient_norms(model, {person}).front();
    ASSERT_EQ(Index(norms.size()), length);
    Model::Tape tape(model);
    const auto loss = [&] {
        Matrix logits = model.forward(std::span(&person, 1), tape);
        return model::cross_entropy(logits.row(0), person.risk);
    };
    for (const Index t : {1, 5}) {
        const Index row = person.phrases[std::size_t(t - 1)].attribute;
        double square = 0;
        for (Index c = 0; c < model.weights.embedding.cols(); ++c) {
            float& x = model.weights.embedding(row, c);
            const float before = x;
            x = before + 1e-2F;
            const double above = loss();
            x = before - 1e-2F;
            const double below = loss();
            x = before;
            square += std::pow((above - below) / 2e-2, 2);
        }
        EXPECT_NEAR(norms[std::size_t(t)] / std::sqrt(square), 1, 0.02) << "token " << t;
    }
}

TEST(Distillation, KeepsWhatTheTeacherAnswersRight) {
    const Model teacher({}, 3);
    const std::vector<Person> people = random_people(60, true, 5);
    const auto spans = spurious_spans(people);
    for (const bool one_by_one : {true, false}) {
        const Counterfactuals all = kept(teacher, people, spans, one_by_one);
        Model::Tape tape(teacher);
        Index count = 0;
        for (std::size_t p = 0; p < people.size(); ++p) {
            EXPECT_EQ(spans[p].size(), 3U);
            EXPECT_LE(all[p].size(), one_by_one ? 3U : 1U);
            for (const auto& removed : all[p]) {
                EXPECT_EQ(removed.size(), one_by_one ? 1U : 3U);
                const std::vector<castle::Mask> mask = {without(removed)};
                Index best = 0;
                teacher.forward(std::span(&people[p], 1), tape, false, mask).row(0).maxCoeff(&best);
                EXPECT_EQ(best, people[p].risk);
                ++count;
            }
        }
        EXPECT_GT(count, 0);
        EXPECT_LT(count, one_by_one ? 180 : 60) << "a teacher that knows nothing is wrong now and then";
    }
}

TEST(Distillation, RandomSpansHaveTheSameLengths) {
    const std::vector<std::vector<TokenSpan>> spans = {{{1, 2}, {4, 9}}, {}, {{1, 9}}};
    const auto others = random_spans(spans, 3);
    ASSERT_EQ(others.size(), 3U);
    EXPECT_EQ(others[0][0].end - others[0][0].begin, 1);
    EXPECT_EQ(others[0][1].end - others[0][1].begin, 5);
    EXPECT_TRUE(others[1].empty());
    EXPECT_EQ(others[2], spans[2]);
    for (const auto& own : others) {
        for (const TokenSpan& span : own) {
            EXPECT_GE(span.begin, 1);
            EXPECT_LE(span.end, 1 + Index(attributes.size()));
        }
    }
}

TEST(Distillation, TeachersSeeRandomFollowers) {
    std::mt19937_64 bits(1);
    const std::vector<Person> people = random_people(400, true, 13);
    const std::vector<Person> others = with_random_followers(people, 0.7, bits);
    Index changed = 0;
    for (std::size_t p = 0; p < people.size(); ++p) {
        bool differs = false;
        for (std::size_t i = 0; i < people[p].phrases.size(); ++i) {
            const Phrase &was = people[p].phrases[i], &is = others[p].phrases[i];
            EXPECT_EQ(was.attribute, is.attribute);
            if (!was.is_spurious()) {
                EXPECT_EQ(was.value, is.value);
            }
            differs = differs || was.value != is.value;
        }
        changed += differs ? 1 : 0;
    }
    EXPECT_NEAR(double(changed) / 400, 0.7, 0.08);
}

}  // namespace
