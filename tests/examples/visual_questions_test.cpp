// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "examples/slope.hpp"
#include "support/table.hpp"
#include "visual_questions/model.hpp"
#include "visual_questions/task.hpp"

namespace {

using namespace visual_questions;
using castle::Future;
using castle::methods::Pooling;

// A token as a person sees it.
struct Seen {
    Index what, symbol = -1, colour = -1;
};

std::vector<Seen> seen(const Prompt& prompt) {
    std::vector<Seen> all;
    for (Index t = 0; t < prompt.size(); ++t) {
        Seen own{.what = -1};
        for (const Index row : prompt.tokens[std::size_t(t)]) {
            if (row < symbols) {
                own.symbol = row;
            } else if (row < symbols + colours) {
                own.colour = row - symbols;
            } else if (row < positions) {
                own.what = row;
            } else {
                EXPECT_EQ(row, positions + t);
            }
        }
        EXPECT_EQ(prompt.visual[std::size_t(t)], own.what == first_image || own.what == second_image);
        EXPECT_EQ(own.colour >= 0, prompt.visual[std::size_t(t)]);
        all.push_back(own);
    }
    return all;
}

// Of the tokens of one kind: how often each symbol is there, and in which colour it was last.
std::map<Index, std::pair<Index, Index>> counts_of(const std::vector<Seen>& tokens, Index what) {
    std::map<Index, std::pair<Index, Index>> counts;
    for (const Seen& t : tokens) {
        if (t.what != what) continue;
        ++counts[t.symbol].first;
        counts[t.symbol].second = t.colour;
    }
    return counts;
}

TEST(VisualQuestions, HaveTheAnswersThatTheySay) {
    std::mt19937_64 bits(3);
    std::array<Index, std::size_t(colours)> answers{};
    for (const Question asked : all_questions) {
        for (int i = 0; i < 200; ++i) {
            const Prompt prompt = random_prompt(asked, bits);
            const std::vector<Seen> tokens = seen(prompt);
            ASSERT_EQ(prompt.size(), length);
            EXPECT_EQ(tokens.front().what, begin);
            EXPECT_EQ(tokens.back().what, question + Index(asked));
            const auto first = counts_of(tokens, first_image), second = counts_of(tokens, second_image),
                       words = counts_of(tokens, word);
            std::vector<Index> expected;  // every colour that fits the question
            const auto ask = [&](const auto& of, const auto& fits) {
                for (const auto& [symbol, count] : of) {
                    if (fits(symbol, count.first)) expected.push_back(count.second);
                }
            };
            switch (asked) {
                case Question::gone:
                    ask(first, [&](Index s, Index) { return !second.contains(s); });
                    break;
                case Question::added:
                    ask(second, [&](Index s, Index) { return !first.contains(s); });
                    break;
                case Question::unread:
                    ask(first, [&](Index s, Index) { return !words.contains(s); });
                    break;
                case Question::odd:
                    ask(first, [&](Index, Index count) { return count == 1; });
                    break;
            }
            EXPECT_EQ(expected, std::vector<Index>{prompt.answer}) << question_names[std::size_t(asked)];
            EXPECT_EQ(first.size(), asked == Question::odd ? 4U : 5U);
            ++answers[std::size_t(prompt.answer)];
        }
    }
    for (const Index n : answers) EXPECT_NEAR(double(n), 200, 60);
}

std::vector<Sight> all_sights() {
    std::vector<Sight> all(1);
    for (const Future future : {Future::all, Future::visual, Future::text}) {
        all.push_back({.form = Sight::Form::full, .light = {.future = future}});
        all.push_back({.form = Sight::Form::light, .light = {.future = future}});
        all.push_back({.form = Sight::Form::light,
                       .light = {.future = future, .pooling = Pooling::mean, .kernel = 3, .prefix = 2}});
    }
    return all;
}

// Along the gradient the loss rises by the gradient's square.
TEST(VisualQuestions, HaveTheGradientOfTheirLoss) {
    std::mt19937_64 bits(5);
    const std::vector<Prompt> prompts = random_prompts(8, all_questions, bits);
    for (const Sight& sight : all_sights()) {
        Model model({}, 17);
        Model::Tape tape(model, sight);
        Weights gradient = model::zeros_like(model.weights), ignored = gradient;
        model.learn(prompts, tape, gradient);
        const auto loss = [&] { return model.learn(prompts, tape, ignored); };
        EXPECT_NEAR(support::slope_along(model, gradient, loss), 1, 0.01)
            << "form " << int(sight.form) << ", future " << int(sight.light.future);
    }
}

// A cache gives the same answers, also after words that follow the prompt.
TEST(VisualQuestions, AreAnsweredByCachesAlike) {
    std::mt19937_64 bits(7);
    const Model model({}, 19);
    for (const Question asked : all_questions) {
        const Prompt prompt = random_prompt(asked, bits);
        Prompt longer = prompt;
        longer.add({word, 3});
        for (const Sight& sight : all_sights()) {
            Model::Tape tape(model, sight);
            Model::Decoder decoder(model, sight, 4);
            const Matrix answer = decoder.extend(prompt, prompt.tokens);
            EXPECT_LE((answer - model.forward(std::span(&prompt, 1), tape)).cwiseAbs().maxCoeff(), 1e-5F);
            // Only the three masks let a patch see a word after the prompt, if it is part of it.
            if (sight.form != Sight::Form::causal && sight.light.future != Future::visual) continue;
            const Matrix next = decoder.extend(prompt, {longer.tokens.back()});
            EXPECT_LE((next - model.forward(std::span(&longer, 1), tape)).cwiseAbs().maxCoeff(), 1e-5F);
        }
    }
}

// What patches look at, of models that are not trained: a row's weights sum to one, and only masks look ahead.
TEST(VisualQuestions, LooksAreAttention) {
    std::mt19937_64 bits(11);
    const Model model({}, 23);
    const Prompt prompt = random_prompt(Question::gone, bits);
    for (const Sight& sight : all_sights()) {
        Model::Tape tape(model, sight);
        model.forward(std::span(&prompt, 1), tape);
        const Matrix weights = tape.blocks.front().attention.weights();
        EXPECT_LE((weights.rowwise().sum().array() - 1).abs().maxCoeff(), 1e-5F);
        const bool looks_ahead = weights.triangularView<Eigen::StrictlyUpper>().toDenseMatrix().maxCoeff() > 0;
        EXPECT_EQ(looks_ahead, sight.form == Sight::Form::full);
    }
}

TEST(Tables, AreAlignedMarkdown) {
    Table table({"", "name", "x"});
    table.add({"one", "1.0 ± 0.5", "7"});
    table.add({"fourteen", "", "1234"});
    EXPECT_EQ(table.text(),
              "|          |      name |    x |\n"
              "| -------- | --------: | ---: |\n"
              "| one      | 1.0 ± 0.5 |    7 |\n"
              "| fourteen |           | 1234 |\n");
}

}  // namespace
