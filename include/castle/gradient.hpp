// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/input.hpp>
#include <castle/multi_head_weights.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Where the gradients of a Qkv go: writable views of its shapes.
template <Scalar T>
struct QkvGradientView {
    MatrixView<T> q = {};
    MatrixView<T> k = {};
    MatrixView<T> v = {};
};

/// Where the gradients of a HeadInput go: writable views of its shapes.
template <Scalar T>
struct HeadGradientView {
    QkvGradientView<T> causal = {};
    QkvGradientView<T> lookahead = {};
};

/// The gradients of a Qkv, in its shapes.
template <Scalar T>
struct QkvGradient {
    Matrix<T> q;
    Matrix<T> k;
    Matrix<T> v;

    QkvGradient() = default;
    /// Of `rows` tokens; the numbers are not set.
    QkvGradient(Index rows, HeadShape shape) : q(rows, shape.d), k(rows, shape.d), v(rows, shape.dv) {}

    QkvGradientView<T> view() { return {.q = q, .k = k, .v = v}; }
};

/// The gradients of a HeadInput, in its shapes.
template <Scalar T>
struct HeadGradient {
    QkvGradient<T> causal;
    QkvGradient<T> lookahead;

    HeadGradient() = default;
    /// Of `rows` tokens; the numbers are not set.
    HeadGradient(Index rows, HeadShape shape)
        : causal(rows, shape), lookahead(rows, HeadShape{.d = shape.d, .dv = shape.d}) {}

    HeadGradientView<T> view() { return {.causal = causal.view(), .lookahead = lookahead.view()}; }
};

/// The gradients of a layer: with respect to its input, `[L, d_model]`, and to its weights, in their shapes.
template <Scalar T>
struct MultiHeadGradient {
    Matrix<T> x;
    MultiHeadWeights<T> weights;
};

}  // namespace CASTLE_ABI
}  // namespace castle
