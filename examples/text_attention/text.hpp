// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <castle/types.hpp>

#include "../support/bad_input.hpp"
#include "../support/read_file.hpp"
#include "settings.hpp"

struct Text {
    std::string bytes;
    std::string origin;  ///< for people
};

/// The sources and documents of this repository, in an order that is the same everywhere.
inline std::vector<std::string> repository_files(const std::filesystem::path& root) {
    namespace fs = std::filesystem;
    const std::array<std::string, 5> kinds{".cmake", ".cpp", ".hpp", ".md", ".txt"};
    std::vector<std::string> files;
    const auto take = [&](const fs::directory_entry& entry) {
        const std::string kind = entry.path().extension().string();
        if (entry.is_regular_file() && std::find(kinds.begin(), kinds.end(), kind) != kinds.end()) {
            files.push_back(entry.path().lexically_relative(root).generic_string());
        }
    };
    for (const auto& entry : fs::directory_iterator(root)) take(entry);
    for (const char* folder : {"bench", "docs", "examples", "include", "tests"}) {
        if (!fs::is_directory(root / folder)) continue;
        for (const auto& entry : fs::recursive_directory_iterator(root / folder)) take(entry);
    }
    std::sort(files.begin(), files.end());
    return files;
}

inline Text repository_text(castle::Index most) {
    const std::filesystem::path root = CASTLE_REPOSITORY_DIR;
    std::string bytes;
    if (std::filesystem::is_directory(root)) {
        for (const std::string& file : repository_files(root)) {
            const castle::Index missing = most - static_cast<castle::Index>(bytes.size());
            if (missing == 0) break;
            bytes += read_file(root / file, missing);
        }
    }
    if (bytes.empty()) {
        throw BadInput(fmt::format("\"{}\" no longer holds this repository; name a text with --file", root.string()));
    }
    return {.bytes = bytes, .origin = "this repository's sources and documents"};
}

inline Text read_text(const Settings& settings) {
    if (!settings.file) return repository_text(settings.length);
    Text text{.bytes = read_file(*settings.file, settings.length), .origin = *settings.file};
    if (text.bytes.empty()) throw BadInput(fmt::format("\"{}\" is empty", *settings.file));
    return text;
}
