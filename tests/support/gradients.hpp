// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradient_oracle.hpp"

// The backward pass into poisoned gradients, and gradients by number.
namespace support {

template <class T>
std::array<const Matrix<T>*, 6> all_of(const castle::HeadGradient<T>& g) {
    return {&g.causal.q, &g.causal.k, &g.causal.v, &g.lookahead.q, &g.lookahead.k, &g.lookahead.v};
}

template <class T>
std::array<const oracle::Rows<T>*, 6> all_of(const oracle::Gradient<T>& g) {
    return {&g.qc, &g.kc, &g.vc, &g.qu, &g.ku, &g.vu};
}

/// The backward pass of what `workspace` holds.
template <class T>
castle::HeadGradient<T> run_backward(castle::Workspace<T>& workspace, const castle::HeadInput<T>& head,
                                     const Matrix<T>& d_out) {
    castle::HeadGradient<T> g;
    const Index rows = d_out.rows(), d = workspace.shape().d, dv = workspace.shape().dv;
    const auto poisoned = [&](Matrix<T>& into, Index cols, const auto& next) { into = written<T>(rows, cols, next); };
    poisoned(g.causal.q, d, [&](castle::MatrixView<T> cq) {
        poisoned(g.causal.k, d, [&](castle::MatrixView<T> ck) {
            poisoned(g.causal.v, dv, [&](castle::MatrixView<T> cv) {
                poisoned(g.lookahead.q, d, [&](castle::MatrixView<T> lq) {
                    poisoned(g.lookahead.k, d, [&](castle::MatrixView<T> lk) {
                        poisoned(g.lookahead.v, d, [&](castle::MatrixView<T> lv) {
                            castle::backward(
                                workspace, head, d_out,
                                {.causal = {.q = cq, .k = ck, .v = cv}, .lookahead = {.q = lq, .k = lk, .v = lv}});
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
castle::HeadGradient<T> run_backward(const castle::HeadInput<T>& head, const Matrix<T>& d_out,
                                     const castle::Options& options = {}) {
    castle::Workspace<T> workspace({.d = head.causal.q.cols(), .dv = head.causal.v.cols()}, options);
    Matrix<T> out(d_out.rows(), d_out.cols());
    castle::forward(workspace, head, out);
    return run_backward(workspace, head, d_out);
}

}  // namespace support
