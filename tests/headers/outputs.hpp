// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

// What every unit computes with.
struct Operands {
    static constexpr std::ptrdiff_t length = 150, d = 19, dv = 21;

    // The i-th number of a projection.
    static float number(float phase, std::ptrdiff_t i) { return std::sin(phase + 0.7F * static_cast<float>(i)); }
};

using Outputs = std::vector<float>;

Outputs baseline_outputs();
Outputs baseline_outputs_again();
Outputs native_outputs();
