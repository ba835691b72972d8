// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradient_oracle.hpp"

// The backward pass into poisoned gradients, and gradients by the index of their input.
namespace support {

template <class T>
std::array<const Matrix<T>*, 6> all_of(const castle::Gradient<T>& g) {
    return {&g.causal.q, &g.causal.k, &g.causal.v, &g.lookahead.q, &g.lookahead.k, &g.lookahead.v};
}

template <class T>
std::array<const oracle::Rows<T>*, 6> all_of(const oracle::Gradient<T>& g) {
    return {&g.qc, &g.kc, &g.vc, &g.qu, &g.ku, &g.vu};
}

/// The backward pass of what `workspace` holds. Lookahead gradients are empty where the input's views are.
template <class T>
castle::Gradient<T> run_backward(castle::Workspace<T>& workspace, const castle::Input<T>& input, const Matrix<T>& d_out,
                                 const castle::Executor& executor = {}) {
    castle::Gradient<T> g;
    const castle::Shape shape = workspace.shape();
    const Index rows = d_out.rows(), keys = shape.kv_heads * shape.d;
    const bool lookahead = input.lookahead.q.cols() > 0;
    const auto causal = [&](Matrix<T>& into, Index cols, const auto& next) { into = written<T>(rows, cols, next); };
    const auto ahead = [&](Matrix<T>& into, const auto& next) {
        into = written<T>(lookahead ? rows : 0, lookahead ? keys : 0, next);
    };
    causal(g.causal.q, shape.heads * shape.d, [&](castle::MatrixView<T> cq) {
        causal(g.causal.k, keys, [&](castle::MatrixView<T> ck) {
            causal(g.causal.v, shape.kv_heads * shape.dv, [&](castle::MatrixView<T> cv) {
                ahead(g.lookahead.q, [&](castle::MatrixView<T> lq) {
                    ahead(g.lookahead.k, [&](castle::MatrixView<T> lk) {
                        ahead(g.lookahead.v, [&](castle::MatrixView<T> lv) {
                            castle::backward(
                                workspace, input, d_out,
                                {.causal = {.q = cq, .k = ck, .v = cv}, .lookahead = {.q = lq, .k = lk, .v = lv}},
                                executor);
                        });
                    });
                });
            });
        });
    });
    return g;
}

/// Both passes.
template <class T>
castle::Gradient<T> run_backward(const castle::Shape& shape, const castle::Input<T>& input, const Matrix<T>& d_out,
                                 const castle::Options& options = {}) {
    castle::Workspace<T> workspace(shape, options);
    Matrix<T> out(d_out.rows(), d_out.cols());
    castle::forward(workspace, input, out);
    return run_backward(workspace, input, d_out);
}

/// Both passes of one head.
template <class T>
castle::Gradient<T> run_backward(const castle::Input<T>& input, const Matrix<T>& d_out,
                                 const castle::Options& options = {}) {
    return run_backward({.d = input.causal.q.cols(), .dv = input.causal.v.cols()}, input, d_out, options);
}

}  // namespace support
