// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "../model/block.hpp"
#include "../model/matrices.hpp"
#include "attention.hpp"
#include "config.hpp"

namespace language_model {

using model::BlockWeights;
using model::Matrix;
using model::RmsNorm;
using model::SwiGlu;

struct Weights {
    Matrix embedding;  // [bytes, d_model]
    std::vector<BlockWeights> blocks;
    Matrix norm;  // [1, d_model]
    Matrix head;  // [d_model, bytes]

    model::NamedMatrices matrices() {
        model::NamedMatrices all = {{"embedding", &embedding}};
        model::append(all, blocks);
        all.push_back({"norm", &norm, false});
        all.push_back({"head", &head});
        return all;
    }
};

/// The weights that training begins with.
inline Weights initial_weights(const Config& config, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    const Index d = config.d_model, hidden = config.hidden();
    const auto matrix = [&](Index rows, Index cols, double deviation) {
        return model::normal_matrix(rows, cols, deviation, random);
    };
    const auto inverse_root = [](Index n) { return 1 / std::sqrt(static_cast<double>(n)); };
    // What is added to the residual stream grows with the number of blocks, unless it begins smaller.
    const double residual = inverse_root(2 * config.layers);
    Weights w{.embedding = matrix(bytes, d, 0.5), .blocks = {}, .norm = Matrix::Ones(1, d), .head = {}};
    for (Index i = 0; i < config.layers; ++i) {
        w.blocks.push_back(
            model::initial_block(attention_layer<float>(config, random()).weights(), hidden, residual, random));
    }
    w.head = matrix(d, bytes, inverse_root(d) / 4);
    return w;
}

}  // namespace language_model
