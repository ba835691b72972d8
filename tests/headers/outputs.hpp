// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

// What every unit computes with.
struct Operands {
    static constexpr std::ptrdiff_t length = 150, d = 19, dv = 21;
    static constexpr std::ptrdiff_t saved = 70;  // tokens of a cache that is saved

    // The i-th element of a projection.
    static float element(float phase, std::ptrdiff_t i) { return std::sin(phase + 0.7F * static_cast<float>(i)); }
};

using Outputs = std::vector<float>;

// Lookahead attention, causal attention and lookahead keys, of all tokens.
Outputs baseline_outputs();
Outputs baseline_outputs_again();
Outputs native_outputs();

// A cache of the first tokens, and lookahead attention of those after it, and lookahead keys, when it goes on.
std::string baseline_saved();
Outputs baseline_outputs_after(const std::string& saved);
Outputs native_outputs_after(const std::string& saved);
