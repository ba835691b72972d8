// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fstream>
#include <string>

#include <fmt/core.h>

#include "bad_input.hpp"

/// Throws BadInput if the file of an option cannot be written: better before a training than after it.
inline void expect_can_be_written(const std::string& option, const std::string& path) {
    if (!std::ofstream(path, std::ios::app)) throw BadInput(fmt::format("{} {} cannot be written", option, path));
}
