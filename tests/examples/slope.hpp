// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "model/adamw.hpp"
#include "model/matrices.hpp"

namespace support {

/// How much a model's loss rises along a gradient, over what it should: the gradient's norm. loss() is that of the
/// weights as they are; the model is left as it was.
template <class Model, class Weights, class Loss>
double slope_along(Model& model, Weights& gradient, const Loss& loss) {
    constexpr double step = 1e-2;
    const double norm = model::norm(gradient.matrices());
    const auto moved = [&](double by) {
        const Weights before = model.weights;
        const model::NamedMatrices to = model.weights.matrices(), along = gradient.matrices();
        for (std::size_t i = 0; i < to.size(); ++i) *to[i].matrix += float(by / norm) * *along[i].matrix;
        model.update();
        const double there = loss();
        model.weights = before;
        model.update();
        return there;
    };
    return (moved(step) - moved(-step)) / (2 * step) / norm;
}

}  // namespace support
