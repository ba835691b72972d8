// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include <castle/layer_weights.hpp>

#include "../model/block.hpp"
#include "../model/dropout.hpp"
#include "../model/matrices.hpp"
#include "attention.hpp"

namespace forecasting {

/// Of a model: a token is a patch of some points in time.
struct Size {
    Index context = 336;  ///< points that it sees
    Index patch = 24;     ///< divides the context
    Index segment = 96;   ///< points that it forecasts at once
    Index d_model = 32;
    Index heads = 2;
    Index layers = 1;

    Index tokens() const { return context / patch; }
    Index hidden() const { return 2 * d_model; }
};

/// What is subtracted from the points of each window, and added to what comes after them: the mean of the last
/// `points`.
inline Eigen::VectorXf levels_of(const Matrix& windows, Index points) {
    return windows.rightCols(points).rowwise().mean();
}

struct Weights {
    Matrix embedding;  // [patch, d_model]
    std::vector<model::BlockWeights> blocks;
    Matrix gammas;  // [layers, heads]; empty where there is no decay
    Matrix head;    // [tokens d_model, segment]

    model::NamedMatrices matrices() {
        model::NamedMatrices all = {{"embedding", &embedding}, {"gammas", &gammas, false}, {"head", &head}};
        model::append(all, blocks);
        return all;
    }
};

/// The weights that training begins with. They are the same for every kind, but for lookahead projections.
inline Weights initial_weights(const Size& size, const Kind& kind, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    const Index d_model = size.d_model, flat = size.tokens() * d_model;
    const auto normal = [&](Index rows, Index cols) {
        return model::normal_matrix(rows, cols, 1 / std::sqrt(double(rows)), bits);
    };
    Weights w{.embedding = normal(size.patch, d_model),
              .blocks = {},
              .gammas = Matrix::Constant(kind.decay == Decay::none ? 0 : size.layers, size.heads, 0.5F),
              .head = 0.1F * normal(flat, size.segment)};
    for (Index i = 0; i < size.layers; ++i) {
        const auto square = [&] { return normal(d_model, d_model); };
        castle::LayerWeights<float> attention;
        attention.causal = {.q = square(), .k = square(), .v = square()};
        attention.w_out = square();
        w.blocks.push_back(model::initial_block(std::move(attention), size.hidden(), 0.5, bits));
    }
    for (model::BlockWeights& block : w.blocks) {
        if (!kind.lookahead) break;
        const auto square = [&] { return normal(d_model, d_model); };
        block.attention.lookahead = {.q = square(), .k = square(), .v = square()};
    }
    return w;
}

/// A model that sees a window of one variable, and forecasts its next points. With `size` the window's root mean
/// square: x = patches / size embedding; for every block x += attention(norm(x)), x += feed_forward(norm(x)); forecast
/// = all tokens of x side by side, times the head, times `size`. So a window of half the size has a forecast of half
/// the size.
class Model {
  public:
    Weights weights;

    Model(const Size& size, const Kind& kind, std::uint64_t seed)
        : weights(initial_weights(size, kind, seed)), size_(size), kind_(kind) {}

    void update() {}  // all of it is in the weights
    const Size& size() const { return size_; }

    /// That of a layer, before any pass.
    Attention attention() const {
        const Index d_head = size_.d_model / size_.heads;
        return Attention({.d = d_head, .dv = d_head, .heads = size_.heads, .kv_heads = size_.heads}, kind_,
                         size_.tokens());
    }

    /// What a pass over windows leaves for the backward pass.
    struct Tape {
        explicit Tape(const Model& model) {
            for (Index i = 0; i < model.size_.layers; ++i) {
                blocks.emplace_back(model.attention());
                attention_dropout.emplace_back();
            }
        }

        Eigen::VectorXf sizes;
        Matrix patches;
        model::Dropout embedding_dropout;
        std::vector<model::BlockTapeOf<Attention>> blocks;
        std::vector<model::Dropout> attention_dropout;
        model::Dropout head_dropout;
        Matrix tokens;
    };

    /// What comes after windows, `[windows, context]`, both less their level: `[windows, segment]`. Elements are left
    /// out at random where there are bits, as it is while the model learns.
    Matrix forward(const Matrix& windows, Tape& tape, double dropout = 0, std::mt19937_64* bits = nullptr) const {
        const std::vector<Index> counts(std::size_t(windows.rows()), size_.tokens());
        // A window without any change has no size; it is forecast to stay as it is.
        constexpr float least = 1e-4F;
        tape.sizes = (windows.array().square().rowwise().mean() + least).sqrt();
        tape.patches = reshaped(tape.sizes.cwiseInverse().asDiagonal() * windows, size_.patch);
        Matrix x = tape.patches * weights.embedding;
        tape.embedding_dropout.forward(x, dropout, bits);
        for (std::size_t i = 0; i < weights.blocks.size(); ++i) {
            auto& t = tape.blocks[i];
            t.forward(weights.blocks[i], x, [&](Matrix& y) {
                t.attention.forward(weights.blocks[i].attention, gammas(weights, i), t.attention_input, counts, y);
                tape.attention_dropout[i].forward(y, dropout, bits);
            });
        }
        tape.head_dropout.forward(x, dropout, bits);
        tape.tokens = reshaped(x, size_.tokens() * size_.d_model);
        return tape.sizes.asDiagonal() * (tape.tokens * weights.head);
    }

    /// Adds the gradient of the weights, from that of the forecasts of the last forward pass.
    void backward(const Matrix& d_forecasts, Tape& tape, Weights& gradient) const {
        const Matrix d_scaled = tape.sizes.asDiagonal() * d_forecasts;
        gradient.head.noalias() += tape.tokens.transpose() * d_scaled;
        Matrix d_x = reshaped(d_scaled * weights.head.transpose(), size_.d_model);
        tape.head_dropout.backward(d_x);
        for (std::size_t i = weights.blocks.size(); i-- > 0;) {
            auto& t = tape.blocks[i];
            model::BlockWeights& g = gradient.blocks[i];
            t.backward(weights.blocks[i], d_x, g, [&](const Matrix& d_y, Matrix& d_input) {
                Matrix d_attention = d_y;
                tape.attention_dropout[i].backward(d_attention);
                Matrix d_gammas = Matrix::Zero(gammas(weights, i).rows(), size_.heads);
                t.attention.backward(weights.blocks[i].attention, t.attention_input, d_attention, d_input, g.attention,
                                     d_gammas);
                if (d_gammas.size() > 0) gradient.gammas.row(Index(i)) += d_gammas;
            });
        }
        tape.embedding_dropout.backward(d_x);
        gradient.embedding.noalias() += tape.patches.transpose() * d_x;
    }

    /// The sum over windows of the mean squared errors, whose gradient is added. `after` is what comes after them, all
    /// less their level.
    double learn(const Matrix& windows, const Matrix& after, Tape& tape, Weights& gradient, double dropout = 0,
                 std::mt19937_64* bits = nullptr) const {
        Matrix difference = forward(windows, tape, dropout, bits) - after;
        const double loss = difference.cast<double>().squaredNorm() / double(size_.segment);
        difference *= 2 / float(size_.segment);
        backward(difference, tape, gradient);
        return loss;
    }

  private:
    // The same elements in rows of another length.
    static Matrix reshaped(const Matrix& m, Index cols) {
        return Eigen::Map<const Matrix>(m.data(), m.size() / cols, cols);
    }
    static Matrix gammas(const Weights& w, std::size_t layer) {
        return w.gammas.size() > 0 ? Matrix(w.gammas.row(Index(layer))) : Matrix();
    }

    Size size_;
    Kind kind_;
};

}  // namespace forecasting
