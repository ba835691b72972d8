// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <castle/layer_weights.hpp>
#include <castle/layer_workspace.hpp>

#include "matrices.hpp"
#include "rms_norm.hpp"
#include "swiglu.hpp"

namespace model {

/// Of a block: x += attention(norm(x)), x += feed_forward(norm(x)).
struct BlockWeights {
    Matrix attention_norm;  // [1, d_model]
    castle::LayerWeights<float> attention;
    Matrix feed_forward_norm;  // [1, d_model]
    SwiGluWeights feed_forward;
};

/// Appends the matrices that a block has.
inline void append(NamedMatrices& all, const std::string& prefix, BlockWeights& block) {
    all.push_back({prefix + ".attention_norm", &block.attention_norm, false});
    append(all, prefix + ".attention", block.attention);
    all.push_back({prefix + ".feed_forward_norm", &block.feed_forward_norm, false});
    all.push_back({prefix + ".feed_forward.gate", &block.feed_forward.gate});
    all.push_back({prefix + ".feed_forward.up", &block.feed_forward.up});
    all.push_back({prefix + ".feed_forward.down", &block.feed_forward.down});
}

/// Those of all blocks of a model.
inline void append(NamedMatrices& all, std::vector<BlockWeights>& blocks) {
    for (std::size_t i = 0; i < blocks.size(); ++i) append(all, "blocks." + std::to_string(i), blocks[i]);
}

/// A block that training begins with, around the weights of its attention, of which the output's are made smaller. What
/// is added to the residual stream begins at `residual` of what it would be.
inline BlockWeights initial_block(castle::LayerWeights<float> attention, Index hidden, double residual,
                                  std::mt19937_64& bits) {
    const Index d_model = attention.w_out.cols();
    const auto matrix = [&](Index rows, Index cols, double factor) {
        return normal_matrix(rows, cols, factor / std::sqrt(double(rows)), bits);
    };
    BlockWeights block{.attention_norm = Matrix::Ones(1, d_model),
                       .attention = std::move(attention),
                       .feed_forward_norm = Matrix::Ones(1, d_model),
                       .feed_forward = {.gate = matrix(d_model, hidden, 1),
                                        .up = matrix(d_model, hidden, 1),
                                        .down = matrix(hidden, d_model, residual)}};
    block.attention.w_out *= float(residual);
    return block;
}

/// What a block's forward pass leaves for its backward pass, with what its attention keeps for that. Kept from sequence
/// to sequence.
template <class Kept>
struct BlockTapeOf {
    explicit BlockTapeOf(Kept own) : attention(std::move(own)) {}

    RmsNorm attention_norm;
    Matrix attention_input;
    Kept attention;
    RmsNorm feed_forward_norm;
    Matrix feed_forward_input;
    SwiGlu feed_forward;

    /// attend(y) writes the attention of `attention_input`.
    template <class Attend>
    void forward(const BlockWeights& w, Matrix& x, const Attend& attend) {
        attention_input = attention_norm.forward(x, w.attention_norm);
        Matrix y(x.rows(), x.cols());
        attend(y);
        x += y;
        feed_forward_input = feed_forward_norm.forward(x, w.feed_forward_norm);
        x += feed_forward.forward(feed_forward_input, w.feed_forward);
    }

    /// From the gradient of the result to that of x, in place; those of the weights are added. attend(d_y, d_input)
    /// writes the gradient of `attention_input`, and adds that of the attention's weights.
    template <class Attend>
    void backward(const BlockWeights& w, Matrix& d_x, BlockWeights& d_w, const Attend& attend) const {
        const Matrix d_feed = feed_forward.backward(feed_forward_input, d_x, w.feed_forward, d_w.feed_forward);
        d_x += feed_forward_norm.backward(d_feed, w.feed_forward_norm, d_w.feed_forward_norm);
        Matrix d_input(d_x.rows(), d_x.cols());
        attend(d_x, d_input);
        d_x += attention_norm.backward(d_input, w.attention_norm, d_w.attention_norm);
    }
};

/// Of a block whose attention is a castle::Layer.
using BlockTape = BlockTapeOf<castle::LayerWorkspace<float>>;

}  // namespace model
