// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <numbers>

namespace model {

/// A learning rate that rises to `peak` over `warm_up` steps, and falls to a tenth of it by half a cosine.
inline double warm_cosine(double peak, double warm_up, double step, double steps) {
    if (step <= warm_up) return peak * step / warm_up;
    return peak * (0.55 + 0.45 * std::cos(std::numbers::pi * ((step - warm_up) / (steps - warm_up))));
}

}  // namespace model
