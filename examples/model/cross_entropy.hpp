// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "matrices.hpp"

namespace model {

/// -log softmax(logits)[target]; the logits become its gradient, softmax(logits) - one_hot(target).
template <class Row>
double cross_entropy(Row&& logits, Index target) {
    const float largest = logits.maxCoeff();
    const double at_target = static_cast<double>(logits(target) - largest);
    logits = (logits.array() - largest).exp();
    const float sum = logits.sum();
    logits /= sum;
    logits(target) -= 1;
    return std::log(static_cast<double>(sum)) - at_target;
}

}  // namespace model
