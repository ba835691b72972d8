// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "adamw.hpp"
#include "batch.hpp"
#include "matrices.hpp"

namespace model {

/// Training of one model.
template <class Model>
class Descent {
  public:
    /// A batch may be learnt in several parts, on all cores.
    explicit Descent(Model& model, const AdamWSettings& settings = {}, Index parts = 1)
        : model_(model), settings_(settings), optimizer_(model.weights), gradient_(model.weights, parts) {}

    /// One step of AdamW along the mean gradient of `count` examples, whose sum learn(gradient) adds, in the calling
    /// thread; a mean that is longer than 1 is made that short.
    template <class Learn>
    void step(Index count, double learning_rate, const Learn& learn) {
        gradient_.set_zero();
        learn(gradient_.part(0));
        descend(count, learning_rate);
    }
    /// The same, where learn(part, gradient) adds that of a part. The result does not depend on the number of threads.
    template <class Learn>
    void step_in_parts(Index count, double learning_rate, const Learn& learn) {
        gradient_.set_zero();
        for_parts(gradient_.size(), [&](Index part) { learn(part, gradient_.part(part)); });
        descend(count, learning_rate);
    }

  private:
    using Weights = decltype(Model::weights);

    void descend(Index count, double learning_rate) {
        Weights& mean = gradient_.sum();
        const NamedMatrices gradient = mean.matrices();
        for (const NamedMatrix& m : gradient) *m.matrix /= float(count);
        clip(gradient, 1);
        optimizer_.step(model_.weights, mean, learning_rate, settings_);
        model_.update();
    }

    Model& model_;
    AdamWSettings settings_;
    AdamW<Weights> optimizer_;
    BatchGradient<Weights> gradient_;
};

}  // namespace model
