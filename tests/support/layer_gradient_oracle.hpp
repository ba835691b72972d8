// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cmath>

#include "support/gradient_oracle.hpp"
#include "support/layer_oracle.hpp"

// The gradients of the multi-head layer by the chain rule, in the manner of oracle.hpp: plain loops, nothing of the
// library.
namespace oracle {

template <class T>
struct LayerGradient {
    Rows<T> x;
    std::array<Rows<T>, 6> in;  // in the order of Layer::in, and as empty
    Rows<T> out;
};

template <class T>
Rows<T> transposed(const Rows<T>& a) {
    Rows<T> b(a.cols(), a.rows());
    for (Index i = 0; i < a.rows(); ++i) {
        for (Index j = 0; j < a.cols(); ++j) b(j, i) = a(i, j);
    }
    return b;
}

/// What sum(output * d_output) changes by with the input and each weight; `terms` as for a head.
template <class T>
LayerGradient<T> backward(const Layer<T>& layer, const Rows<T>& x, const Rows<T>& d_output, const Settings& settings,
                          Terms terms = Terms::as_they_are) {
    const bool absolute = terms == Terms::absolute;
    const auto size = [&](Rows<T> a) {
        for (Index i = 0; i < a.rows(); ++i) {
            for (Index j = 0; j < a.cols() && absolute; ++j) a(i, j) = std::abs(a(i, j));
        }
        return a;
    };
    const auto times = [&](const Rows<T>& a, const Rows<T>& b) { return product(size(a), size(b)); };
    const Index length = x.rows(), d = layer.d_head;
    const std::array<Rows<T>, 6> projected = project(layer, x);
    const Rows<T> d_attended = times(d_output, transposed(layer.out));

    LayerGradient<T> g{.x = Rows<T>(length, x.cols()),
                       .in = {},
                       .out = times(transposed(attend(layer, projected, settings)), d_output)};
    // A key-value head's gradient is the sum over the query heads that read it.
    std::array<Rows<T>, 6> d_projected;
    for (std::size_t i = 0; i < 6; ++i) d_projected[i] = Rows<T>(length, layer.heads_of(i) * d);
    for (Index h = 0; h < layer.heads; ++h) {
        const Gradient<T> head = backward(head_of(layer, projected, h), columns(d_attended, h * d, d), settings, terms);
        const std::array<const Rows<T>*, 6> parts{&head.qc, &head.kc, &head.vc, &head.qu, &head.ku, &head.vu};
        for (std::size_t i = 0; i < 6; ++i) {
            const Index first = layer.head_in(i, h) * d;
            for (Index t = 0; t < length; ++t) {
                for (Index k = 0; k < d; ++k) d_projected[i](t, first + k) += (*parts[i])(t, k);
            }
        }
    }
    for (std::size_t i = 0; i < 6; ++i) {
        if (!layer.rotated[i]) continue;
        for (Index h = 0; h < layer.heads_of(i); ++h) {
            for (Index t = 0; t < length; ++t) {
                if (!absolute) {
                    rotate(d_projected[i], t, h * d, d, -t, layer.base);
                    continue;
                }
                for (Index k = h * d; k < h * d + d / 2; ++k) {
                    const T both = d_projected[i](t, k) + d_projected[i](t, k + d / 2);
                    d_projected[i](t, k) = d_projected[i](t, k + d / 2) = both;
                }
            }
        }
    }
    for (std::size_t i = 0; i < 6; ++i) {
        if (layer.in[i].rows() == 0) continue;
        g.in[i] = times(transposed(x), d_projected[i]);
        const Rows<T> part = times(d_projected[i], transposed(layer.in[i]));
        for (Index t = 0; t < length; ++t) {
            for (Index j = 0; j < x.cols(); ++j) g.x(t, j) += part(t, j);
        }
    }
    return g;
}

}  // namespace oracle
