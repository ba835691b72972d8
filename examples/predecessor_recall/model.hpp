// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <random>
#include <utility>

#include <castle/layer.hpp>

#include "../model/cross_entropy.hpp"
#include "../model/matrices.hpp"
#include "task.hpp"

namespace recall {

using model::Matrix;

inline constexpr Index d_model = 64;
inline constexpr Index heads = 2;
inline constexpr Index d_head = 32;

struct Weights {
    Matrix symbols;    // [2 symbols, d_model]
    Matrix positions;  // [length, d_model]
    castle::LayerWeights<float> attention;
    Matrix answers;  // [d_model, symbols]

    model::NamedMatrices matrices() {
        model::NamedMatrices all = {{"symbols", &symbols}, {"positions", &positions}, {"answers", &answers}};
        model::append(all, "attention", attention);
        return all;
    }
};

/// One attention layer between embeddings and answer, and nothing else:
/// x = symbols[tokens] + positions, logits = (x + attention(x))[question] answers.
class Model {
  public:
    Model(std::uint64_t seed, const castle::Options& options)
        : layer({.d_model = d_model, .heads = heads, .d_head = d_head, .seed = seed}, options) {
        std::mt19937_64 bits(seed);
        weights.symbols = model::normal_matrix(2 * symbols, d_model, 1, bits);
        weights.positions = model::normal_matrix(length, d_model, 1, bits);
        weights.answers = model::normal_matrix(d_model, symbols, 0.02, bits);
        weights.attention = layer.weights();
    }

    Matrix embed(const Sequence& s) const {
        Matrix x = weights.positions;
        for (Index t = 0; t < length; ++t) x.row(t) += weights.symbols.row(s.tokens[std::size_t(t)]);
        return x;
    }

    Index answer(const Sequence& s) const {
        const Matrix x = embed(s);
        return model::likeliest((x + layer.forward(x)).row(question) * weights.answers);
    }

    // The loss of one sequence, whose gradient is added.
    double learn(const Sequence& s, castle::LayerWorkspace<float>& workspace, Weights& gradient) const {
        const Matrix x = embed(s);
        Matrix y(length, d_model);
        layer.forward(workspace, x, y);
        const Eigen::RowVectorXf last = (x + y).row(question);
        Eigen::RowVectorXf d_logits = last * weights.answers;
        const double loss = model::cross_entropy(d_logits, s.answer);

        gradient.answers += last.transpose() * d_logits;
        Matrix d_y = Matrix::Zero(length, d_model), d_x(length, d_model);
        d_y.row(question) = d_logits * weights.answers.transpose();
        layer.backward(workspace, x, d_y, d_x, gradient.attention);
        d_x.row(question) += d_y.row(question);
        gradient.positions += d_x;
        for (Index t = 0; t < length; ++t) gradient.symbols.row(s.tokens[std::size_t(t)]) += d_x.row(t);
        return loss;
    }

    // After `weights` have changed.
    void update() { layer.set_weights(weights.attention); }

    castle::Layer<float> layer;
    Weights weights;
};

}  // namespace recall
