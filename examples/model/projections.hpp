// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/input.hpp>

#include "matrices.hpp"

// Projections to queries, keys and values, for attention that is no castle::Layer.
namespace model {

inline castle::Qkv<Matrix> project(const castle::Qkv<Matrix>& w, const Matrix& x) {
    return {.q = x * w.q, .k = x * w.k, .v = x * w.v};
}

/// Adds the gradients of x and of the weights, from those of what was projected.
inline void add_projection_gradients(const castle::Qkv<Matrix>& w, const Matrix& x,
                                     const castle::Qkv<Matrix>& d_projected, Matrix& d_x, castle::Qkv<Matrix>& d_w) {
    const auto pass = [&](const Matrix& d, const Matrix& weights, Matrix& d_weights) {
        d_weights.noalias() += x.transpose() * d;
        d_x.noalias() += d * weights.transpose();
    };
    pass(d_projected.q, w.q, d_w.q);
    pass(d_projected.k, w.k, d_w.k);
    pass(d_projected.v, w.v, d_w.v);
}

}  // namespace model
