// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <castle/layer.hpp>
#include <castle/mask.hpp>
#include <castle/methods/reattention.hpp>

#include "../model/block.hpp"
#include "../model/cross_entropy.hpp"
#include "../model/matrices.hpp"
#include "../model/rms_norm.hpp"
#include "../model/token_sums.hpp"
#include "game.hpp"

namespace spurious_tokens {

using model::BlockWeights;
using model::Matrix;

/// BOS, the phrases, "Answer": a token each.
inline constexpr Index length = Index(attributes.size()) + 2;
inline constexpr Index answer_row = length - 1;
inline constexpr Index bos = Index(attributes.size()), answer = bos + 1, names = answer + 1;

inline constexpr Index d_head = 8;

struct Kind {
    bool castle = false;
    Index layers = 1;
    Index d_model = 32;

    /// Standard attention has 7/4 as many heads, and as many parameters.
    Index heads() const { return d_model / 32 * (castle ? 4 : 7); }
    Index hidden() const { return 2 * d_model; }
    castle::Options options() const { return {.lookahead_window = castle ? castle::unlimited : 0}; }
};

/// What the loss on the attention is to be, if there is one.
struct Tuning {
    castle::methods::ReattentionOptions options = {};
    double weight = 1;
    double decay = 1;  // the weight of epoch e is weight exp(-decay e)
};

struct Weights {
    Matrix embedding;  // [names + values, d_model]
    std::vector<BlockWeights> blocks;
    Matrix norm;  // [1, d_model]
    Matrix head;  // [d_model, risks]

    model::NamedMatrices matrices() {
        model::NamedMatrices all = {{"embedding", &embedding}, {"norm", &norm, false}, {"head", &head}};
        model::append(all, blocks);
        return all;
    }
};

/// Which tokens the answer should look at.
inline castle::Mask causes_of(const Person& person) {
    return castle::masks::packed(length, length, [&](Index row, Index key) {
        return row == answer_row && key > 0 && key < answer_row && person.phrases[std::size_t(key - 1)].is_cause();
    });
}

/// Rows of the embedding: of a phrase its attribute and its value.
inline model::TokenRows tokens_of(std::span<const Person> people) {
    model::TokenRows tokens;
    for (const Person& person : people) {
        tokens.push_back({bos});
        for (const Phrase& phrase : person.phrases) tokens.push_back({phrase.attribute, names + phrase.value});
        tokens.push_back({answer});
    }
    return tokens;
}

/// A model of a few layers, which reads the risk at the last token:
/// for every block x += attention(norm(x)), x += feed_forward(norm(x)); logits = norm(x)[answer] head.
class Model {
  public:
    Weights weights;

    Model(const Kind& kind, std::uint64_t seed) : d_model_(kind.d_model) {
        std::mt19937_64 bits(seed);
        weights.embedding = model::normal_matrix(names + most_value + 1, d_model_, 0.5, bits);
        for (Index i = 0; i < kind.layers; ++i) {
            attention_.emplace_back(
                castle::LayerConfig{.d_model = d_model_, .heads = kind.heads(), .d_head = d_head, .seed = bits()},
                kind.options());
            weights.blocks.push_back(model::initial_block(attention_.back().weights(), kind.hidden(), 0.5, bits));
        }
        weights.norm = Matrix::Ones(1, d_model_);
        weights.head = model::normal_matrix(d_model_, Index(risks.size()), 1 / std::sqrt(double(d_model_)), bits);
        update();
    }

    /// After `weights` have changed.
    void update() {
        for (std::size_t i = 0; i < attention_.size(); ++i) attention_[i].set_weights(weights.blocks[i].attention);
    }

    /// Numbers that are trained.
    Index parameters() const { return model::parameters(weights); }

    /// What a pass over some people leaves for the backward pass.
    class Tape {
      public:
        explicit Tape(const Model& model) {
            for (const auto& layer : model.attention_) blocks.emplace_back(layer.make_workspace());
        }

        struct Block : model::BlockTapeOf<castle::LayerWorkspace<float>> {
            using BlockTapeOf::BlockTapeOf;

            Matrix mass;
            Matrix d_mass;
        };
        std::vector<Block> blocks;
        model::TokenRows tokens;
        std::vector<castle::Mask> causes;
        std::vector<Index> counts;
        model::RmsNorm norm;
        Matrix norm_input;
    };

    /// The logits of some people, [people, risks]. The masses of attention on the causes are left in the tape where
    /// they are wanted. `seen` may say for each person which tokens are seen; all up to a token's own unless it does.
    Matrix forward(std::span<const Person> people, Tape& tape, bool with_masses = false,
                   const castle::Masks& seen = {}) const {
        const Index count = Index(people.size());
        tape.counts.assign(people.size(), length);
        tape.causes.clear();
        for (const Person& person : people) {
            if (with_masses) tape.causes.push_back(causes_of(person));
        }
        tape.tokens = tokens_of(people);
        Matrix x = model::embed(tape.tokens, weights.embedding);
        for (std::size_t i = 0; i < attention_.size(); ++i) {
            auto& t = tape.blocks[i];
            t.forward(weights.blocks[i], x, [&](Matrix& y) {
                castle::Output<float> output{.out = y};
                if (with_masses) {
                    t.mass.resize(y.rows(), attention_[i].config().heads);
                    output.mass = t.mass;
                    output.mass_over = tape.causes;
                }
                attention_[i].forward(t.attention, tape.counts, t.attention_input, output, seen);
            });
        }
        Matrix last(count, d_model_);
        for (Index p = 0; p < count; ++p) last.row(p) = x.row(p * length + answer_row);
        tape.norm_input = tape.norm.forward(last, weights.norm);
        return tape.norm_input * weights.head;
    }

    /// The pass back from the gradient of the logits and, where there are some, of the masses in the tape. Adds the
    /// gradient of the weights and returns that of the embedded tokens, [people length, d_model].
    Matrix backward(std::span<const Person> people, const Matrix& d_logits, bool with_masses, Tape& tape,
                    Weights& gradient) const {
        const Index count = Index(people.size());
        gradient.head.noalias() += tape.norm_input.transpose() * d_logits;
        const Matrix d_last = tape.norm.backward(d_logits * weights.head.transpose(), weights.norm, gradient.norm);
        Matrix d_x = Matrix::Zero(count * length, d_model_);
        for (Index p = 0; p < count; ++p) d_x.row(p * length + answer_row) = d_last.row(p);
        for (std::size_t i = attention_.size(); i-- > 0;) {
            auto& t = tape.blocks[i];
            BlockWeights& g = gradient.blocks[i];
            t.backward(weights.blocks[i], d_x, g, [&](const Matrix& d_y, Matrix& d_input) {
                castle::OutputGradient<float> d_output{.out = d_y};
                if (with_masses) d_output.mass = t.d_mass;
                attention_[i].backward(t.attention, t.attention_input, d_output, d_input, g.attention);
            });
        }
        model::add_gradient(tape.tokens, d_x, gradient.embedding);
        return d_x;
    }

    /// The sum of the losses of some people, whose gradient is added: the cross-entropy of the risk and, with a weight,
    /// the loss on the attention.
    double learn(std::span<const Person> people, const std::optional<Tuning>& tuning, double tuning_weight, Tape& tape,
                 Weights& gradient) const {
        Matrix d_logits = forward(people, tape, tuning.has_value());
        double loss = 0;
        for (std::size_t p = 0; p < people.size(); ++p) {
            loss += model::cross_entropy(d_logits.row(Index(p)), people[p].risk);
        }
        loss += tuning ? attention_loss(*tuning, tuning_weight, tape) : 0;
        backward(people, d_logits, tuning.has_value(), tape, gradient);
        return loss;
    }

    /// What each token of a person is looked at by the answer, a mean over the heads of the last layer.
    std::vector<double> attention_of(const Person& person) const {
        // The mass on one token after the other.
        std::vector<double> weights_of_answer;
        Tape tape(*this);
        forward(std::span(&person, 1), tape);
        auto& last = tape.blocks.back();
        for (Index key = 0; key < length; ++key) {
            const castle::Mask only = castle::masks::packed(length, length, [&](Index, Index s) { return s == key; });
            Matrix y(length, d_model_), mass(length, attention_.back().config().heads);
            attention_.back().forward(last.attention, tape.counts, last.attention_input,
                                      castle::Output<float>{.out = y, .mass = mass, .mass_over = only});
            weights_of_answer.push_back(double(mass.row(answer_row).mean()));
        }
        return weights_of_answer;
    }

  private:
    // Of all people of the tape, into d_mass of its blocks.
    static double attention_loss(const Tuning& tuning, double weight, Tape& tape) {
        double loss = 0;
        for (auto& block : tape.blocks) block.d_mass = Matrix::Zero(block.mass.rows(), block.mass.cols());
        for (std::size_t p = 0; p < tape.causes.size(); ++p) {
            std::vector<castle::ConstMatrixView<float>> masses;
            std::vector<castle::MatrixView<float>> d_masses;
            for (auto& block : tape.blocks) {
                masses.push_back(castle::ConstMatrixView<float>(block.mass).middle_rows(Index(p) * length, length));
                d_masses.push_back(castle::MatrixView<float>(block.d_mass).middle_rows(Index(p) * length, length));
            }
            const castle::methods::Reattention reattention(length, tape.causes[p], tuning.options);
            loss += weight * reattention.loss<float>(masses, d_masses, weight);
        }
        return loss;
    }

    Index d_model_;
    std::vector<castle::Layer<float>> attention_;
};

}  // namespace spurious_tokens
