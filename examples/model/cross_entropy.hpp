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

/// The place of the largest logit.
template <class Row>
Index likeliest(const Row& logits) {
    Index best = 0;
    logits.maxCoeff(&best);
    return best;
}

}  // namespace model
