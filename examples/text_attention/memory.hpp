// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>

#include <fmt/core.h>

#include "../support/bad_input.hpp"
#include "settings.hpp"

/// Bytes that a program may still take, by Linux and by the container's limit; infinite where neither says.
inline double available_memory() {
    double available = std::numeric_limits<double>::infinity();
    std::ifstream system("/proc/meminfo");
    for (std::string word; system >> word;) {
        double kibibytes = 0;
        if (word == "MemAvailable:" && system >> kibibytes) available = 1024 * kibibytes;
    }
    std::ifstream container("/sys/fs/cgroup/memory.max");
    if (double limit = 0; container >> limit) available = std::min(available, limit);
    return available;
}

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

/// Allocating too much does not fail on most systems: the program is killed later, when it writes there.
inline void check_memory(const Settings& settings, castle::Index tokens) {
    constexpr double gib = 1024.0 * 1024.0 * 1024.0;
    const double needed = needed_memory(settings, tokens);
    const double available = available_memory();
    if (needed > available) {
        throw BadInput(
            fmt::format("{} tokens with these sizes need about {:.1f} GiB of memory but {:.1f} GiB are available",
                        tokens, needed / gib, available / gib));
    }
}
