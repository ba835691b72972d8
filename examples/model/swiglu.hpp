// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "matrices.hpp"

namespace model {

struct SwiGluWeights {
    Matrix gate;  // [d_model, hidden]
    Matrix up;    // [d_model, hidden]
    Matrix down;  // [hidden, d_model]
};

/// (SiLU(x gate) * (x up)) down
struct SwiGlu {
    Matrix gate;     // x gate
    Matrix up;       // x up
    Matrix sigmoid;  // of the gate
    Matrix product;  // what goes into down

    Matrix forward(const Matrix& x, const SwiGluWeights& w) {
        gate = x * w.gate;
        up = x * w.up;
        sigmoid = (1 + (-gate.array()).exp()).inverse();
        product = gate.array() * sigmoid.array() * up.array();
        return product * w.down;
    }

    // The gradient of x, which forward got, from that of the result; those of the weights are added.
    Matrix backward(const Matrix& x, const Matrix& d_y, const SwiGluWeights& w, SwiGluWeights& d_w) const {
        d_w.down.noalias() += product.transpose() * d_y;
        const Matrix d_product = d_y * w.down.transpose();
        const auto s = sigmoid.array(), g = gate.array();
        const Matrix d_gate = d_product.array() * up.array() * s * (1 + g * (1 - s));
        const Matrix d_up = d_product.array() * g * s;
        d_w.gate.noalias() += x.transpose() * d_gate;
        d_w.up.noalias() += x.transpose() * d_up;
        Matrix d_x = d_gate * w.gate.transpose();
        d_x.noalias() += d_up * w.up.transpose();
        return d_x;
    }
};

}  // namespace model
