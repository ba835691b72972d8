// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "../model/matrices.hpp"
#include "../model/token_sums.hpp"

// Questions about images of patches, each a symbol in a colour. The answer is a colour. Each needs another kind of look
// at what comes later, or none.
namespace visual_questions {

using model::Index;

inline constexpr Index symbols = 20, colours = 4;

enum class Question {
    gone,    ///< two images: what colour was the symbol of the first that the second does not have?
    added,   ///< two images: what colour is the symbol of the second that the first does not have?
    unread,  ///< an image and words for symbols: what colour is the patch that no word names?
    odd      ///< an image: what colour is the symbol that is there once? The others are there three times.
};
inline constexpr std::array all_questions = {Question::gone, Question::added, Question::unread, Question::odd};
inline constexpr std::array question_names = {"gone", "new", "unread", "odd"};

/// Rows of the embedding. A token is the sum of what it is, its place, and its symbol and colour where it has one.
inline constexpr Index first_image = symbols + colours, second_image = first_image + 1, word = second_image + 1,
                       begin = word + 1, question = begin + 1, positions = question + Index(all_questions.size());

/// BOS, ten patches or words, the question.
inline constexpr Index length = 12;

struct Prompt {
    model::TokenRows tokens;
    std::vector<bool> visual;
    Question question = Question::gone;
    Index answer = 0;  // a colour

    Index size() const { return Index(tokens.size()); }
    void add(std::vector<Index> rows, bool is_visual = false) {
        rows.push_back(positions + size() % length);
        tokens.push_back(std::move(rows));
        visual.push_back(is_visual);
    }
    void add_patch(Index image, Index symbol, Index colour) { add({image, symbol, symbols + colour}, true); }
};

/// Some symbols, all different.
inline std::vector<Index> different_symbols(Index count, std::mt19937_64& bits) {
    std::vector<Index> all(std::size_t(symbols), 0);
    std::iota(all.begin(), all.end(), Index(0));
    for (Index i = 0; i < count; ++i) {
        std::swap(all[std::size_t(i)], all[std::size_t(i + model::below(symbols - i, bits))]);
    }
    all.resize(std::size_t(count));
    return all;
}

template <class Values>
void shuffle(Values& values, std::mt19937_64& bits) {
    for (std::size_t i = values.size() - 1; i > 0; --i) {
        std::swap(values[i], values[std::size_t(model::below(Index(i) + 1, bits))]);
    }
}

inline Prompt random_prompt(Question asked, std::mt19937_64& bits) {
    constexpr Index patches = 5;
    Prompt prompt;
    prompt.question = asked;
    prompt.add({begin});
    if (asked == Question::odd) {
        const std::vector<Index> own = different_symbols(4, bits);
        std::vector<Index> shown = {own[0]};
        for (std::size_t i = 1; i < own.size(); ++i) shown.insert(shown.end(), 3, own[i]);
        shuffle(shown, bits);
        for (const Index symbol : shown) {
            const Index colour = model::below(colours, bits);
            prompt.add_patch(first_image, symbol, colour);
            if (symbol == own[0]) prompt.answer = colour;
        }
    } else {
        // The last one comes later only, in place of the first.
        const std::vector<Index> own = different_symbols(patches + 1, bits);
        std::vector<Index> earlier(own.begin(), own.end() - 1), later(own.begin() + 1, own.end());
        shuffle(earlier, bits);
        shuffle(later, bits);
        for (const Index symbol : earlier) {
            const Index colour = model::below(colours, bits);
            prompt.add_patch(first_image, symbol, colour);
            if (symbol == own.front() && asked != Question::added) prompt.answer = colour;
        }
        for (const Index symbol : later) {
            if (asked == Question::unread) {
                prompt.add({word, symbol});
                continue;
            }
            const Index colour = model::below(colours, bits);
            prompt.add_patch(second_image, symbol, colour);
            if (symbol == own.back() && asked == Question::added) prompt.answer = colour;
        }
    }
    prompt.add({question + Index(asked)});
    return prompt;
}

/// For measurements only: three quarters of the tokens are patches, of two images, with words around them.
inline Prompt long_prompt(Index tokens, std::mt19937_64& bits) {
    Prompt prompt;
    prompt.add({begin});
    while (prompt.size() < tokens) {
        const Index t = prompt.size(), symbol = model::below(symbols, bits);
        if (t < tokens / 8 || t >= tokens - tokens / 8) {
            prompt.add({word, symbol});
        } else {
            prompt.add_patch(t < tokens / 2 ? first_image : second_image, symbol, model::below(colours, bits));
        }
    }
    return prompt;
}

}  // namespace visual_questions
