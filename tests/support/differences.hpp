// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/types.hpp>

#include "support/generators.hpp"

// Derivatives by central differences.
namespace support {

/// A step that balances the differences' own error, of order step^2, with the rounding that it magnifies.
inline constexpr double difference_step = 1e-5;

/// How a loss changes along a direction: by central differences, and by a gradient.
struct Slopes {
    double by_differences;
    double by_gradient;
};

/// Along a random direction in the shape of `gradient`; move(by) adds to what the gradient is of, and loss() is of what
/// has been moved.
template <class Loss, class Move>
Slopes slopes_along(Random& random, const Matrix<double>& gradient, const Loss& loss, const Move& move) {
    Matrix<double> direction(gradient.rows(), gradient.cols());
    fill_normal(random, direction);
    direction /= direction.norm();
    move(Matrix<double>(difference_step * direction));
    const double above = loss();
    move(Matrix<double>(-2 * difference_step * direction));
    const double below = loss();
    move(Matrix<double>(difference_step * direction));
    return {.by_differences = (above - below) / (2 * difference_step),
            .by_gradient = gradient.cwiseProduct(direction).sum()};
}

}  // namespace support
