// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "adamw.hpp"
#include "matrices.hpp"

namespace model {

/// Training of one model in the calling thread.
template <class Model>
class Descent {
  public:
    explicit Descent(Model& model) : model_(model), optimizer_(model.weights), gradient_(zeros_like(model.weights)) {}

    /// One step of AdamW along the mean gradient of `count` examples, whose sum learn(gradient) adds; a mean that is
    /// longer than 1 is made that short.
    template <class Learn>
    void step(Index count, double learning_rate, const Learn& learn) {
        const NamedMatrices gradient = gradient_.matrices();
        for (const NamedMatrix& m : gradient) m.matrix->setZero();
        learn(gradient_);
        for (const NamedMatrix& m : gradient) *m.matrix /= float(count);
        clip(gradient, 1);
        optimizer_.step(model_.weights, gradient_, learning_rate, {});
        model_.update();
    }

  private:
    using Weights = decltype(Model::weights);

    Model& model_;
    AdamW<Weights> optimizer_;
    Weights gradient_;
};

}  // namespace model
