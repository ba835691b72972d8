// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

/// To tell bytes apart (FNV-1a). Of several stretches of bytes: `before` is that of those before these.
inline std::uint64_t fingerprint_of(std::string_view bytes, std::uint64_t before = 14695981039346656037U) {
    std::uint64_t hash = before;
    for (const char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
    return hash;
}
