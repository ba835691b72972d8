// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "matrices.hpp"

namespace model {

struct AdamWSettings {
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.1;
};

/// AdamW (arXiv:1711.05101) with its moments, which are shaped as the weights.
template <class Weights>
struct AdamW {
    Weights first;
    Weights second;
    Index steps = 0;

    explicit AdamW(const Weights& weights) : first(zeros_like(weights)), second(first) {}

    void step(Weights& weights, Weights& gradient, double learning_rate, const AdamWSettings& settings) {
        ++steps;
        const NamedMatrices w = weights.matrices(), g = gradient.matrices();
        const NamedMatrices m = first.matrices(), v = second.matrices();
        const auto bias = [&](double beta) { return 1 - std::pow(beta, static_cast<double>(steps)); };
        const float beta1 = static_cast<float>(settings.beta1), beta2 = static_cast<float>(settings.beta2);
        const float rate = static_cast<float>(learning_rate / bias(settings.beta1));
        const float root_bias = static_cast<float>(std::sqrt(bias(settings.beta2)));
        const float epsilon = static_cast<float>(settings.epsilon);
        for (std::size_t i = 0; i < w.size(); ++i) {
            const auto gradient_now = g[i].matrix->array();
            auto mean = m[i].matrix->array(), square = v[i].matrix->array(), weight = w[i].matrix->array();
            mean = beta1 * mean + (1 - beta1) * gradient_now;
            square = beta2 * square + (1 - beta2) * gradient_now.square();
            if (w[i].decays) weight *= static_cast<float>(1 - learning_rate * settings.weight_decay);
            weight -= rate * mean / (square.sqrt() / root_bias + epsilon);
        }
    }
};

/// The square root of the sum of all squares.
inline double norm(const NamedMatrices& matrices) {
    double squares = 0;
    for (const NamedMatrix& m : matrices) squares += m.matrix->cast<double>().squaredNorm();
    return std::sqrt(squares);
}

/// Scales a gradient down to a norm of `most`, if it is longer; returns what it was.
inline double clip(const NamedMatrices& gradient, double most) {
    const double length = norm(gradient);
    if (length > most) {
        for (const NamedMatrix& m : gradient) *m.matrix *= static_cast<float>(most / length);
    }
    return length;
}

}  // namespace model
