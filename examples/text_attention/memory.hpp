// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "settings.hpp"

/// About as many bytes as the run will need, a little more rather than less.
inline double needed_memory(const Settings& settings, castle::Index tokens) {
    const auto number = [](castle::Index n) { return static_cast<double>(n); };
    // Caches keep whole panels of 64 tokens, and values padded to a packet of up to 16.
    const double length = number(tokens);
    const double panels = 64 * std::ceil(length / 64);
    const double padded = 16 * std::ceil(number(settings.d_head) / 16);
    const double heads = number(settings.heads), d_head = number(settings.d_head), d_model = number(settings.d_model);
    const double width = heads * d_head;
    const double weights = 2 * 7 * width * d_model;         // random ones, and as the layer keeps them
    const double tokens_in_and_out = 3 * length * d_model;  // x, the output, the output to compare with
    const double open_blocks = heads * 32 * (3 * d_head + 32);
    const double cache = heads * panels * (3 * d_head + padded + 32) + open_blocks;
    const double scratch = 128 * (7 * width + heads * (2 + std::ceil(length / 512)) * (padded + 2)) + 3 * open_blocks;
    return sizeof(float) * (weights + 256 * d_model + tokens_in_and_out + cache + scratch);
}
