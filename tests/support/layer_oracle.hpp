// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cmath>

#include "support/oracle.hpp"

// The multi-head layer of eq. 14, with grouped queries, in the manner of oracle.hpp: plain loops, nothing of the
// library.
namespace oracle {

/// Rotary position embedding of the columns [first, first + d) of one row: elements k and k + d / 2 turn as a pair.
template <class T>
void rotate(Rows<T>& x, Index row, Index first, Index d, Index position, double base) {
    for (Index k = 0; k < d / 2; ++k) {
        const double angle =
            static_cast<double>(position) * std::pow(base, -2.0 * static_cast<double>(k) / static_cast<double>(d));
        const T cos = static_cast<T>(std::cos(angle)), sin = static_cast<T>(std::sin(angle));
        const T low = x(row, first + k), high = x(row, first + k + d / 2);
        x(row, first + k) = low * cos - high * sin;
        x(row, first + k + d / 2) = high * cos + low * sin;
    }
}

template <class T>
Rows<T> product(const Rows<T>& a, const Rows<T>& b) {
    Rows<T> c(a.rows(), b.cols());
    for (Index i = 0; i < a.rows(); ++i) {
        for (Index j = 0; j < b.cols(); ++j) {
            for (Index k = 0; k < a.cols(); ++k) c(i, j) += a(i, k) * b(k, j);
        }
    }
    return c;
}

template <class T>
Rows<T> columns(const Rows<T>& a, Index first, Index count) {
    Rows<T> c(a.rows(), count);
    for (Index i = 0; i < a.rows(); ++i) {
        for (Index j = 0; j < count; ++j) c(i, j) = a(i, first + j);
    }
    return c;
}

template <class T>
struct Layer {
    Index heads;
    Index kv_heads;  // query head h reads key-value head h / (heads / kv_heads)
    Index d_head;
    // Q^C [d_model, heads d_head]; K^C, V^C, Q^U, K^U, V^U, each [d_model, kv_heads d_head]. The last three may be
    // empty.
    std::array<Rows<T>, 6> in;
    Rows<T> out;                  // [heads d_head, d_model]
    std::array<bool, 6> rotated;  // in the same order
    double base;

    /// How many heads projection i has.
    Index heads_of(std::size_t i) const { return i == 0 ? heads : kv_heads; }
    /// Which of them query head h reads.
    Index head_in(std::size_t i, Index h) const { return i == 0 ? h : h / (heads / kv_heads); }
};

/// The six projections of the input, rotated where they are to be; empty where the layer has none.
template <class T>
std::array<Rows<T>, 6> project(const Layer<T>& layer, const Rows<T>& x) {
    std::array<Rows<T>, 6> projected;
    for (std::size_t i = 0; i < 6; ++i) {
        if (layer.in[i].rows() == 0) continue;
        projected[i] = product(x, layer.in[i]);
        for (Index t = 0; t < x.rows() && layer.rotated[i]; ++t) {
            for (Index h = 0; h < layer.heads_of(i); ++h) {
                rotate(projected[i], t, h * layer.d_head, layer.d_head, t, layer.base);
            }
        }
    }
    return projected;
}

/// What query head h reads of the projections. Standard attention is that of lookahead projections which are zero.
template <class T>
Head<T> head_of(const Layer<T>& layer, const std::array<Rows<T>, 6>& projected, Index h) {
    const auto part = [&](std::size_t i) {
        return projected[i].cols() == 0 ? Rows<T>(projected[0].rows(), layer.d_head)
                                        : columns(projected[i], layer.head_in(i, h) * layer.d_head, layer.d_head);
    };
    return {.qc = part(0), .kc = part(1), .vc = part(2), .qu = part(3), .ku = part(4), .vu = part(5)};
}

/// The query heads' outputs side by side.
template <class T>
Rows<T> attend(const Layer<T>& layer, const std::array<Rows<T>, 6>& projected, const Settings& settings) {
    Rows<T> attended(projected[0].rows(), layer.heads * layer.d_head);
    for (Index h = 0; h < layer.heads; ++h) {
        const Rows<T> o = evaluate(head_of(layer, projected, h), settings).output;
        for (Index t = 0; t < attended.rows(); ++t) {
            for (Index c = 0; c < layer.d_head; ++c) attended(t, h * layer.d_head + c) = o(t, c);
        }
    }
    return attended;
}

template <class T>
Rows<T> evaluate(const Layer<T>& layer, const Rows<T>& x, const Settings& settings) {
    return product(attend(layer, project(layer, x), settings), layer.out);
}

}  // namespace oracle
