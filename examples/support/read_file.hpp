// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include <fmt/core.h>
#include <castle/types.hpp>

#include "bad_input.hpp"

/// At most the first `most` bytes of a file.
inline std::string read_file(const std::filesystem::path& path, castle::Index most) {
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
        throw BadInput(fmt::format("\"{}\" is a directory, not a file", path.string()));
    }
    std::ifstream file(path, std::ios::binary);
    if (!file) throw BadInput(fmt::format("cannot open \"{}\"", path.string()));
    std::string bytes;
    constexpr std::size_t step = std::size_t(1) << 20;
    while (file && static_cast<castle::Index>(bytes.size()) < most) {
        const std::size_t before = bytes.size();
        bytes.resize(before + std::min(step, static_cast<std::size_t>(most) - before));
        file.read(bytes.data() + before, static_cast<std::streamsize>(bytes.size() - before));
        bytes.resize(before + static_cast<std::size_t>(file.gcount()));
    }
    if (file.bad()) throw BadInput(fmt::format("cannot read \"{}\"", path.string()));
    return bytes;
}
