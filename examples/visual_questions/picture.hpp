// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "../support/picture.hpp"
#include "model.hpp"
#include "task.hpp"

namespace visual_questions {

/// What one model looks at: the weights of each layer, means over its heads.
struct Look {
    std::string title;
    std::vector<Matrix> weights;
};

inline Look look_of(const std::string& title, const Model& model, const Sight& sight, const Prompt& prompt) {
    Model::Tape tape(model, sight);
    model.forward(std::span(&prompt, 1), tape);
    Look look{.title = title, .weights = {}};
    for (const auto& block : tape.blocks) look.weights.push_back(block.attention.weights());
    return look;
}

/// A patch as a letter on its colour, a word as a letter, other tokens by name.
inline void draw_token(Picture& picture, double x, double y, double cell, const std::vector<Index>& rows) {
    struct Colour {
        double red, green, blue;
    };
    constexpr std::array<Colour, std::size_t(colours)> shades = {
        {{0.95, 0.6, 0.55}, {0.6, 0.85, 0.6}, {0.6, 0.75, 0.98}, {0.98, 0.88, 0.5}}};
    std::string name = rows[0] == begin ? "BOS" : "?";
    for (const Index row : rows) {
        if (row < symbols) name = std::string(1, char('A' + row));
        if (row < symbols || row >= symbols + colours) continue;
        const Colour& shade = shades[std::size_t(row - symbols)];
        picture.fill(x, y, cell - 1, cell - 1, shade.red, shade.green, shade.blue);
    }
    picture.text(x + cell / 2, y + cell / 2 + 4, name, 10, 0.5);
}

/// A row of squares for each model, a square for each layer.
inline void draw(const std::string& path, const Prompt& prompt, const std::vector<Look>& looks) {
    constexpr double cell = 26, margin = 30, top = 70, side = cell * double(length), gap = 90;
    const double layers = double(looks.front().weights.size());
    Picture picture(path, margin + layers * (cell + side + gap), top + double(looks.size()) * (cell + side + gap));
    picture.text(margin, 30, "Two images of five patches. What colour was the one that is gone?", 16);
    picture.text(margin, 50, "Rows look at columns, mean over the heads; dark is 1. A row's weights sum to 1.", 11);
    for (std::size_t m = 0; m < looks.size(); ++m) {
        const double y = top + double(m) * (cell + side + gap) + gap / 2;
        for (std::size_t l = 0; l < looks[m].weights.size(); ++l) {
            const double x = margin + double(l) * (cell + side + gap);
            picture.text(x, y - 10, looks[m].title + ", layer " + std::to_string(l + 1), 13);
            for (Index t = 0; t < length; ++t) {
                draw_token(picture, x + double(t + 1) * cell, y, cell, prompt.tokens[std::size_t(t)]);
                draw_token(picture, x, y + double(t + 1) * cell, cell, prompt.tokens[std::size_t(t)]);
                for (Index key = 0; key <= t; ++key) {
                    const double weight = std::min(double(looks[m].weights[l](t, key)), 1.0);
                    picture.fill(x + double(key + 1) * cell, y + double(t + 1) * cell, cell - 1, cell - 1,
                                 0.95 - 0.87 * weight, 0.95 - 0.6 * weight, 0.97 - 0.27 * weight);
                }
            }
        }
    }
    picture.finish();
}

}  // namespace visual_questions
