// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "../model/block.hpp"
#include "../model/cross_entropy.hpp"
#include "attention.hpp"
#include "config.hpp"
#include "weights.hpp"

// A LLaMA-style model of bytes: for every block x += attention(norm(x)), x += feed_forward(norm(x)); then a norm and
// the logits of the next byte.
namespace language_model {

using BlockTape = model::BlockTapeOf<Attention::Workspace>;

/// What a pass over one sequence leaves for its backward pass. Kept from sequence to sequence.
class Tape {
  public:
    std::vector<BlockTape> blocks;
    RmsNorm norm;
    Matrix head_input;
};

class Model {
  public:
    Weights weights;

    /// With the weights that training begins with.
    Model(const Config& config, std::uint64_t seed) : weights(initial_weights(config, seed)), config_(config) {
        for (Index i = 0; i < config.layers; ++i) attention_.emplace_back(config, seed);
        update();
    }

    const Config& config() const { return config_; }

    /// To be called when `weights` have changed.
    void update() {
        for (std::size_t i = 0; i < attention_.size(); ++i) attention_[i].set_weights(weights.blocks[i].attention);
    }

    Tape make_tape() const {
        Tape tape;
        for (const Attention& layer : attention_) tape.blocks.emplace_back(layer.make_workspace());
        return tape;
    }

    /// The logits after every byte, [L, bytes].
    Matrix logits(std::string_view text) const {
        return run(text, [&](std::size_t i, const Matrix& x) { return attention_[i].forward(x); });
    }

    /// The same for bytes that come after those in the caches, one a block.
    Matrix logits(std::string_view text, std::vector<Attention::Cache>& caches) const {
        return run(text, [&](std::size_t i, const Matrix& x) { return attention_[i].extend(caches[i], x); });
    }
    std::vector<Attention::Cache> make_caches() const {
        std::vector<Attention::Cache> caches;
        for (const Attention& layer : attention_) caches.push_back(layer.make_cache());
        return caches;
    }

    /// The sum over the bytes of `text` but the first of -log p(byte), by the bytes before it.
    double loss(std::string_view text) const {
        Matrix predicted = logits(text.substr(0, text.size() - 1));
        return cross_entropies(predicted, text.substr(1));
    }

    /// The same; the gradient of the loss times `factor` is added to `gradient`.
    double learn(std::string_view text, float factor, Tape& tape, Weights& gradient) const {
        const std::string_view read = text.substr(0, text.size() - 1);
        Matrix x = embed(read);
        for (std::size_t i = 0; i < attention_.size(); ++i) {
            BlockTape& t = tape.blocks[i];
            t.forward(weights.blocks[i], x,
                      [&](Matrix& y) { attention_[i].forward(t.attention, t.attention_input, y); });
        }
        tape.head_input = tape.norm.forward(x, weights.norm);
        Matrix d_logits = tape.head_input * weights.head;
        const double loss = cross_entropies(d_logits, text.substr(1));

        d_logits *= factor;
        gradient.head.noalias() += tape.head_input.transpose() * d_logits;
        const Matrix d_head_input = d_logits * weights.head.transpose();
        Matrix d_x = tape.norm.backward(d_head_input, weights.norm, gradient.norm);
        for (std::size_t i = attention_.size(); i-- > 0;) {
            BlockTape& t = tape.blocks[i];
            BlockWeights& g = gradient.blocks[i];
            t.backward(weights.blocks[i], d_x, g, [&](const Matrix& d_y, Matrix& d_input) {
                attention_[i].backward(t.attention, t.attention_input, d_y, d_input, g.attention);
            });
        }
        for (Index t = 0; t < d_x.rows(); ++t) gradient.embedding.row(token(read, t)) += d_x.row(t);
        return loss;
    }

  private:
    static Index token(std::string_view text, Index t) { return static_cast<unsigned char>(text[std::size_t(t)]); }

    Matrix embed(std::string_view text) const {
        Matrix x(Index(text.size()), config_.d_model);
        for (Index t = 0; t < x.rows(); ++t) x.row(t) = weights.embedding.row(token(text, t));
        return x;
    }

    // attend(i, x) is what the attention of block i makes of x.
    template <class Attend>
    Matrix run(std::string_view text, const Attend& attend) const {
        Matrix x = embed(text);
        for (std::size_t i = 0; i < attention_.size(); ++i) {
            const BlockWeights& w = weights.blocks[i];
            x += attend(i, RmsNorm().forward(x, w.attention_norm));
            x += SwiGlu().forward(RmsNorm().forward(x, w.feed_forward_norm), w.feed_forward);
        }
        return RmsNorm().forward(x, weights.norm) * weights.head;
    }

    // Of all rows; the logits become its gradient.
    static double cross_entropies(Matrix& logits, std::string_view targets) {
        double sum = 0;
        for (Index t = 0; t < logits.rows(); ++t) sum += model::cross_entropy(logits.row(t), token(targets, t));
        return sum;
    }

    Config config_;
    std::vector<Attention> attention_;
};

}  // namespace language_model
