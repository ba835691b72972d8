// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include <fmt/core.h>

#include "bad_input.hpp"

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

/// Whether there are `needed` bytes for `what`. Allocating too much does not fail on most systems: the program is
/// killed later, when it writes there.
inline void check_memory(const std::string& what, double needed) {
    constexpr double gib = 1024.0 * 1024.0 * 1024.0;
    const double available = available_memory();
    if (needed > available) {
        throw BadInput(fmt::format("there is not enough memory for {}: about {:.1f} GiB of {:.1f} GiB", what,
                                   needed / gib, available / gib));
    }
}
