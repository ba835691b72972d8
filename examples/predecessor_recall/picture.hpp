// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <castle/reference/dense.hpp>

#include "../model/matrices.hpp"
#include "../support/picture.hpp"
#include "model.hpp"
#include "task.hpp"

// What the trained layers do with one sequence, as an SVG.
namespace recall {

/// Of the head that looks most at the answer.
struct Attention {
    Matrix gates;    // [length, length]: how far key s takes in token j; empty for standard attention
    Matrix weights;  // [length, length]: how much position t looks at position s
};

inline Attention attention_of(const Model& model, const Sequence& s) {
    const Matrix x = model.embed(s);
    const auto project = [&](const castle::Qkv<Matrix>& w) {
        return castle::Qkv<Matrix>{.q = x * w.q, .k = x * w.k, .v = x * w.v};
    };
    const castle::LayerWeights<float>& w = model.weights.attention;
    const castle::Options& options = model.layer.options();
    const bool has_lookahead = options.lookahead_window > 0;
    const castle::Qkv<Matrix> causal = project(w.causal);
    const castle::Qkv<Matrix> lookahead = has_lookahead ? project(w.lookahead) : w.lookahead;
    const castle::Input<float> input{.causal = {.q = causal.q, .k = causal.k, .v = causal.v},
                                     .lookahead = {.q = lookahead.q, .k = lookahead.k, .v = lookahead.v}};
    const castle::Shape shape{.d = d_head, .dv = d_head, .heads = heads, .kv_heads = heads};

    const std::vector<Matrix> weights = castle::dense::weights(shape, input, options);
    const auto at_answer = [&](const Matrix& of_head) { return of_head(question, s.place_of_answer()); };
    std::size_t best = 0;
    for (std::size_t h = 1; h < weights.size(); ++h) {
        if (at_answer(weights[h]) > at_answer(weights[best])) best = h;
    }
    return {.gates = has_lookahead ? castle::dense::gates(shape, input, options)[best] : Matrix(),
            .weights = weights[best]};
}

inline constexpr double cell = 22;

// A row of values in [0, 1] as cells from nearly white to blue; there are none outside [first, end).
inline void draw_row(Picture& picture, double x, double y, const Eigen::RowVectorXf& row, Index first, Index end) {
    for (Index i = first; i < end; ++i) {
        const double value = static_cast<double>(row(i));
        picture.fill(x + static_cast<double>(i) * cell, y, cell - 1, cell - 1, 0.93 - 0.85 * value, 0.95 - 0.6 * value,
                     0.98 - 0.28 * value);
    }
}

inline void draw_names(Picture& picture, double x, double y, const Sequence& s, Index count) {
    for (Index i = 0; i < count; ++i) {
        picture.text(x + (static_cast<double>(i) + 0.5) * cell, y, name(s.tokens[std::size_t(i)]), 9, 0.5);
    }
}

/// The gates of CASTLE's keys, and what both layers look at before and at the question.
inline void draw(const std::string& path, const Sequence& s, const Attention& castle, const Attention& causal) {
    constexpr double margin = 30, label = 70, side = length * cell;
    constexpr double right = margin + label + side + 60 + label;
    Picture picture(path, right + side + margin, 470);
    const std::string asked = name(s.tokens[question]), answer = name(s.answer);
    picture.text(margin, 32, "Which A came before " + asked + "? The answer is " + answer + ".", 18);

    const double top = 95, left = margin + label;
    picture.text(left, 64, "CASTLE: how far each key takes in later tokens", 13);
    picture.text(left, 80, "(the gates: sigmoid of lookahead query and key)", 11);
    draw_names(picture, left, top - 4, s, length);
    for (Index t = 0; t < length; ++t) {
        const double y = top + static_cast<double>(t) * cell;
        picture.text(left - 6, y + 15, name(s.tokens[std::size_t(t)]), 9, 1);
        draw_row(picture, left, y, castle.gates.row(t), t + 1, length);
    }
    picture.frame(left + static_cast<double>(s.place_of_answer() + 1) * cell,
                  top + static_cast<double>(s.place_of_answer()) * cell, cell, cell);
    picture.text(left, top + side + 22,
                 "Framed: the key of " + answer + " takes in " + asked + ", which came after it.", 11);

    const auto draw_attention = [&](double y, const std::string& title, const Attention& attention) {
        picture.text(right, y - 31, title, 13);
        draw_names(picture, right, y - 4, s, length);
        const auto row = [&](double at, const std::string& words, Index t) {
            picture.text(right - 6, at + 15, words, 10, 1);
            draw_row(picture, right, at, attention.weights.row(t), 0, t + 1);
        };
        row(y, "before", question - 1);
        row(y + cell + 4, "at " + asked, question);
        picture.frame(right + static_cast<double>(s.place_of_answer()) * cell, y + cell + 4, cell, cell);
    };
    draw_attention(top, "CASTLE: attention before and at the question", castle);
    draw_attention(top + 140, "Standard attention: the same", causal);
    const double key = top + 230;
    picture.text(right - 6, key + 15, "weight 0", 10, 1);
    draw_row(picture, right, key, Eigen::RowVectorXf::LinSpaced(length, 0, 1), 0, length);
    picture.text(right + side + 4, key + 15, "1", 10);
    picture.text(right, key + 50, "Framed: the answer. Standard attention cannot find it:", 11);
    picture.text(right, key + 66, "the key of " + answer + " was fixed before " + asked + " was read.", 11);
    picture.finish();
}

}  // namespace recall
