// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "matrices.hpp"

namespace model {

/// x / sqrt(mean(x^2) + epsilon) * gain, row by row; gain is `[1, cols]`.
struct RmsNorm {
    static constexpr float epsilon = 1e-5F;

    Matrix normed;           // x over its root mean square
    Eigen::VectorXf factor;  // 1 over that, a row

    Matrix forward(const Matrix& x, const Matrix& gain) {
        factor = (x.array().square().rowwise().mean() + epsilon).rsqrt();
        normed = factor.asDiagonal() * x;
        return normed.array().rowwise() * gain.row(0).array();
    }

    // The gradient of x from that of the result; that of the gain is added.
    Matrix backward(const Matrix& d_y, const Matrix& gain, Matrix& d_gain) const {
        d_gain.row(0).array() += (d_y.array() * normed.array()).colwise().sum();
        const Matrix d_normed = d_y.array().rowwise() * gain.row(0).array();
        const Eigen::VectorXf along = (d_normed.array() * normed.array()).rowwise().mean();
        return factor.asDiagonal() * (d_normed - along.asDiagonal() * normed);
    }
};

}  // namespace model
