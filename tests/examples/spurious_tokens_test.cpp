// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "examples/slope.hpp"
#include "spurious_tokens/game.hpp"
#include "spurious_tokens/model.hpp"
#include "spurious_tokens/train.hpp"

namespace {

using namespace spurious_tokens;

Index value_of(const Person& person, Index attribute) {
    for (const Phrase& phrase : person.phrases) {
        if (phrase.attribute == attribute) return phrase.value;
    }
    return -1;
}

// In whole tenths: high above 7.2. Of the published files 2.7 is in the middle where doubles have it exactly.
TEST(SpuriousTokenGame, HasThePublishedRule) {
    Index high = 0, middle = 0;
    for (Index smoking = 1; smoking <= 10; ++smoking) {
        for (Index weight = 1; weight <= 10; ++weight) {
            for (Index exercise = 1; exercise <= 10; ++exercise) {
                const Index risk = risk_of(smoking, weight, exercise);
                EXPECT_EQ(risk == 2, 12 * smoking + 7 * weight - 10 * exercise > 72);
                high += risk == 2 ? 1 : 0;
                middle += risk == 1 ? 1 : 0;
            }
        }
    }
    EXPECT_EQ(middle, 2);
    EXPECT_EQ(risk_of(1, 5, 2), 1);
    EXPECT_EQ(risk_of(5, 1, 4), 1);
    // The most frequent risk is right for about two thirds, as in the published files (65.6, 68.8 and 66.5 %).
    EXPECT_NEAR(double(high) / 1000, 0.34, 0.02);
}

TEST(SpuriousTokenGame, HasFollowersInDistributionOnly) {
    for (const bool in : {true, false}) {
        Index followed = 0;
        for (const Person& person : random_people(500, in, 3)) {
            std::array<bool, attributes.size()> told{};
            for (const Phrase& phrase : person.phrases) told[std::size_t(phrase.attribute)] = true;
            EXPECT_TRUE(std::ranges::all_of(told, [](bool t) { return t; }));
            const Index smoking = value_of(person, 0), weight = value_of(person, 1), exercise = value_of(person, 2);
            EXPECT_EQ(person.risk, risk_of(smoking, weight, exercise));
            followed += value_of(person, 3) == smoking * 3 / 2 && value_of(person, 4) == weight &&
                                value_of(person, 5) == exercise / 2
                            ? 1
                            : 0;
        }
        if (in) {
            EXPECT_EQ(followed, 500);
        } else {
            EXPECT_LE(followed, 5);
        }
    }
}

TEST(CausalTuning, CausesAreTheThreePhrases) {
    const Person person = random_people(1, true, 5).front();
    const castle::Mask mask = causes_of(person);
    for (Index row = 0; row < length; ++row) {
        for (Index key = 0; key < length; ++key) {
            const bool is_cause = key > 0 && key < answer_row && person.phrases[std::size_t(key - 1)].attribute < 3;
            EXPECT_EQ(mask.sees(row, key, length), row == answer_row && is_cause);
        }
    }
}

// Along the gradient the loss rises by the gradient's square, of every kind of model and loss.
TEST(CausalTuning, HasTheGradientOfItsLoss) {
    const std::vector<Person> people = random_people(7, true, 11);
    for (const bool castle : {false, true}) {
        for (const Index layers : {1, 2}) {
            for (const bool tuned : {false, true}) {
                Model model({.castle = castle, .layers = layers}, 17);
                std::optional<Tuning> tuning;
                if (tuned) tuning = Tuning{.options = {.alpha = 20}};
                Model::Tape tape(model);
                Weights gradient = model::zeros_like(model.weights), ignored = gradient;
                const auto loss = [&](Weights& to) { return model.learn(people, tuning, 0.1, tape, to); };
                loss(gradient);
                EXPECT_NEAR(support::slope_along(model, gradient, [&] { return loss(ignored); }), 1, 0.01)
                    << "castle " << castle << ", layers " << layers << ", tuned " << tuned;
            }
        }
    }
}

TEST(CausalTuning, HasEqualParameters) {
    EXPECT_EQ(Model({}, 1).parameters(), Model({.castle = true}, 1).parameters());
}

// The answer's attention sums to one.
TEST(CausalTuning, LooksAreAttention) {
    const Person person = random_people(1, true, 23).front();
    const Model model({.castle = true, .layers = 2}, 29);
    double sum = 0;
    for (const double weight : model.attention_of(person)) sum += weight;
    EXPECT_NEAR(sum, 1, 1e-5);
}

TEST(CausalTuning, RatesWarmUpAndFallToATenth) {
    EXPECT_EQ(learning_rate(0, 100), 0);
    EXPECT_NEAR(learning_rate(5, 100), peak_rate, 1e-12);
    EXPECT_NEAR(learning_rate(100, 100), peak_rate / 10, 1e-12);
}

}  // namespace
