// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "matrices.hpp"

namespace model {

/// An exponential average of the weights that a training goes through. It is less noisy than the last of them.
template <class Weights>
class AveragedWeights {
  public:
    /// After every step `keep` of the average stays. It begins with the weights of the first step.
    explicit AveragedWeights(double keep) : keep_(float(keep)) {}

    void add(Weights& weights) {
        if (!begun_) average_ = weights;
        begun_ = true;
        const NamedMatrices to = average_.matrices(), from = weights.matrices();
        for (std::size_t i = 0; i < to.size(); ++i) {
            *to[i].matrix = keep_ * *to[i].matrix + (1 - keep_) * *from[i].matrix;
        }
    }
    const Weights& average() const { return average_; }

  private:
    float keep_;
    bool begun_ = false;
    Weights average_;
};

}  // namespace model
