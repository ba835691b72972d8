// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <castle/cache.hpp>
#include <castle/layer_weights.hpp>

#include "../model/block.hpp"
#include "../model/cross_entropy.hpp"
#include "../model/descent.hpp"
#include "../model/matrices.hpp"
#include "../model/rms_norm.hpp"
#include "../model/schedule.hpp"
#include "../model/token_sums.hpp"
#include "attention.hpp"
#include "task.hpp"

namespace visual_questions {

struct Size {
    Index layers = 2;
    Index heads = 4;
    Index d_head = 8;

    Index d_model() const { return heads * d_head; }
    Index hidden() const { return 2 * d_model(); }
};

struct Weights {
    Matrix embedding;  // [positions + length, d_model]
    std::vector<model::BlockWeights> blocks;
    Matrix norm;  // [1, d_model]
    Matrix head;  // [d_model, colours]

    model::NamedMatrices matrices() {
        model::NamedMatrices all = {{"embedding", &embedding}, {"norm", &norm, false}, {"head", &head}};
        model::append(all, blocks);
        return all;
    }
};

/// The weights that training begins with.
inline Weights initial_weights(const Size& size, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    const Index d_model = size.d_model();
    const auto normal = [&](Index rows, Index cols, double deviation) {
        return model::normal_matrix(rows, cols, deviation, bits);
    };
    Weights w{.embedding = Matrix(positions + length, d_model),
              .blocks = {},
              .norm = Matrix::Ones(1, d_model),
              .head = normal(d_model, colours, 1 / std::sqrt(double(d_model)))};
    w.embedding << normal(symbols, d_model, 1), normal(positions - symbols, d_model, 0.5), normal(length, d_model, 0.1);
    for (Index i = 0; i < size.layers; ++i) {
        const auto square = [&] { return normal(d_model, d_model, 1 / std::sqrt(double(d_model))); };
        castle::LayerWeights<float> attention;
        attention.causal = {.q = square(), .k = square(), .v = square()};
        // Tokens begin by looking at those that resemble them. Otherwise it takes them hundreds of steps to find out
        // that they should, some seeds more than others.
        attention.causal.k = (attention.causal.k + attention.causal.q) / 2;
        attention.w_out = square();
        w.blocks.push_back(model::initial_block(std::move(attention), size.hidden(), 0.5, bits));
    }
    return w;
}

/// A model of a few layers that answers at the last token:
/// for every block x += attention(norm(x)), x += feed_forward(norm(x)); logits = norm(x)[last] head.
class Model {
  public:
    Weights weights;

    Model(const Size& size, std::uint64_t seed) : weights(initial_weights(size, seed)), size_(size) {}

    void update() {}  // all of it is in the weights

    /// What a pass over prompts leaves for the backward pass. How patches look ahead is a matter of the pass, and not
    /// of the weights.
    struct Tape {
        Tape(const Model& model, const Sight& sight) {
            for (Index i = 0; i < model.size_.layers; ++i) blocks.emplace_back(model.attention(sight));
        }

        std::vector<model::BlockTapeOf<Attention>> blocks;
        model::TokenRows tokens;
        std::vector<Index> last;  // rows
        model::RmsNorm norm;
        Matrix norm_input;
    };

    /// The logits of the answers, [prompts, colours].
    Matrix forward(std::span<const Prompt> prompts, Tape& tape) const {
        tape.tokens.clear();
        tape.last.clear();
        for (const Prompt& prompt : prompts) {
            tape.tokens.insert(tape.tokens.end(), prompt.tokens.begin(), prompt.tokens.end());
            tape.last.push_back(Index(tape.tokens.size()) - 1);
        }
        Matrix x = model::embed(tape.tokens, weights.embedding);
        for (std::size_t i = 0; i < weights.blocks.size(); ++i) {
            auto& t = tape.blocks[i];
            t.forward(weights.blocks[i], x, [&](Matrix& y) {
                t.attention.forward(weights.blocks[i].attention, t.attention_input, prompts, y);
            });
        }
        tape.norm_input = tape.norm.forward(x(tape.last, Eigen::all), weights.norm);
        return tape.norm_input * weights.head;
    }

    /// The sum of the losses, whose gradient is added.
    double learn(std::span<const Prompt> prompts, Tape& tape, Weights& gradient) const {
        Matrix d_logits = forward(prompts, tape);
        double loss = 0;
        for (std::size_t p = 0; p < prompts.size(); ++p) {
            loss += model::cross_entropy(d_logits.row(Index(p)), prompts[p].answer);
        }
        gradient.head.noalias() += tape.norm_input.transpose() * d_logits;
        Matrix d_x = Matrix::Zero(Index(tape.tokens.size()), size_.d_model());
        d_x(tape.last, Eigen::all) =
            tape.norm.backward(d_logits * weights.head.transpose(), weights.norm, gradient.norm);
        for (std::size_t i = weights.blocks.size(); i-- > 0;) {
            auto& t = tape.blocks[i];
            model::BlockWeights& g = gradient.blocks[i];
            t.backward(weights.blocks[i], d_x, g, [&](const Matrix& d_y, Matrix& d_input) {
                t.attention.backward(weights.blocks[i].attention, t.attention_input, d_y, d_input, g.attention);
            });
        }
        model::add_gradient(tape.tokens, d_x, gradient.embedding);
        return loss;
    }

    /// A prompt and what is generated after it, token by token.
    class Decoder {
      public:
        /// With room for as many tokens as `most`, before it has to grow.
        Decoder(const Model& model, const Sight& sight, Index most) : model_(model), tape_(model, sight) {
            for (const auto& block : tape_.blocks) caches_.push_back(block.attention.make_cache(most));
        }

        /// The logits after the next tokens: first those of the whole prompt, then others.
        Matrix extend(const Prompt& prompt, const model::TokenRows& tokens) {
            Matrix x = model::embed(tokens, model_.weights.embedding);
            for (std::size_t i = 0; i < caches_.size(); ++i) {
                auto& t = tape_.blocks[i];
                const model::BlockWeights& w = model_.weights.blocks[i];
                t.forward(w, x, [&](Matrix& y) {
                    t.attention.extend(w.attention, t.attention_input, prompt, caches_[i], y);
                });
            }
            return tape_.norm.forward(x.bottomRows(1), model_.weights.norm) * model_.weights.head;
        }

      private:
        const Model& model_;
        Tape tape_;
        std::vector<castle::UqKvCache<float>> caches_;
    };

  private:
    Attention attention(const Sight& sight) const {
        return Attention({.d = size_.d_head, .dv = size_.d_head, .heads = size_.heads, .kv_heads = size_.heads}, sight);
    }

    Size size_;
};

inline constexpr Index batch = 64;
inline constexpr double peak_rate = 5e-3, warm_up = 0.05;

/// As many fresh prompts, of these questions in turn.
inline std::vector<Prompt> random_prompts(Index count, std::span<const Question> asked, std::mt19937_64& bits) {
    std::vector<Prompt> prompts;
    for (Index i = 0; i < count; ++i) prompts.push_back(random_prompt(asked[std::size_t(i) % asked.size()], bits));
    return prompts;
}

/// Trains with these questions, in the calling thread; calls done() after every step.
template <class Done>
void train(Model& model, const Sight& sight, std::span<const Question> asked, Index steps, std::uint64_t seed,
           const Done& done) {
    std::mt19937_64 bits(seed);
    model::Descent descent(model);
    Model::Tape tape(model, sight);
    for (Index step = 1; step <= steps; ++step) {
        const std::vector<Prompt> prompts = random_prompts(batch, asked, bits);
        descent.step(batch, model::warm_cosine(peak_rate, warm_up * double(steps), double(step), double(steps)),
                     [&](Weights& gradient) { model.learn(prompts, tape, gradient); });
        done();
    }
}

/// The part of fresh prompts with this question that is answered right.
inline double accuracy(const Model& model, const Sight& sight, Question asked, Index count, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    const std::vector<Prompt> prompts = random_prompts(count, std::span(&asked, 1), bits);
    Model::Tape tape(model, sight);
    const Matrix logits = model.forward(prompts, tape);
    Index right = 0;
    for (Index i = 0; i < count; ++i) {
        right += model::likeliest(logits.row(i)) == prompts[std::size_t(i)].answer ? 1 : 0;
    }
    return double(right) / double(count);
}

}  // namespace visual_questions
