// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include <fmt/core.h>

#include "../spurious_tokens/game.hpp"
#include "../spurious_tokens/model.hpp"
#include "../support/picture.hpp"

namespace causal_tuning {

using namespace spurious_tokens;

/// What the answer of one model looks at.
struct Look {
    std::string title;
    std::vector<double> weights;  // of each token
};

/// A row for each model, a column for each token of the person; causes have a frame.
inline void draw(const std::string& path, const Person& person, const std::vector<Look>& looks) {
    constexpr double left = 190, top = 60, cell = 88, height = 34, gap = 8;
    Picture picture(path, left + cell * double(length) + 10, top + (height + gap) * double(looks.size()) + 10);
    for (Index t = 0; t < length; ++t) {
        const double x = left + cell * double(t);
        std::string name = t == 0 ? "BOS" : "Answer", value;
        if (t > 0 && t < answer_row) {
            const Phrase& phrase = person.phrases[std::size_t(t - 1)];
            name = attributes[std::size_t(phrase.attribute)];
            value = fmt::format("{}", phrase.value);
        }
        picture.text(x + cell / 2, 24, name, 12, 0.5);
        picture.text(x + cell / 2, 44, value, 12, 0.5);
    }
    for (std::size_t i = 0; i < looks.size(); ++i) {
        const double y = top + (height + gap) * double(i);
        picture.text(left - 10, y + height / 2 + 4, looks[i].title, 12, 1);
        for (Index t = 0; t < length; ++t) {
            const double x = left + cell * double(t), weight = std::min(looks[i].weights[std::size_t(t)], 1.0);
            picture.fill(x + 1, y, cell - 2, height, 1 - 0.85 * weight, 1 - 0.6 * weight, 1 - 0.25 * weight);
            picture.text(x + cell / 2, y + height / 2 + 4, fmt::format("{:.2f}", weight), 12, 0.5);
            if (t > 0 && t < answer_row && person.phrases[std::size_t(t - 1)].is_cause()) {
                picture.frame(x + 1, y, cell - 2, height);
            }
        }
    }
    picture.finish();
}

}  // namespace causal_tuning
