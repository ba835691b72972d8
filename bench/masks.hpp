// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include <castle/mask.hpp>

// The masks whose cost is measured, for sequences of n tokens.
namespace castle_bench {

using castle::Index;
using castle::Mask;

inline std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

inline std::vector<Index> sixteen_documents(Index n) { return std::vector<Index>(16, n / 16); }

/// Of each block of 32 rows half of all panels of 64 keys, and itself.
inline Mask half_of_panels(Index n) {
    return castle::masks::packed(
        n, n, [](Index t, Index s) { return t / 32 == s / 32 || mix(std::uint64_t(t / 32 * 1000 + s / 64)) % 2 == 0; });
}

/// Half of all keys, anywhere.
inline Mask random_bits(Index n) {
    return castle::masks::packed(n, n,
                                 [n](Index t, Index s) { return t == s || mix(std::uint64_t(t * n + s)) % 2 == 0; });
}

}  // namespace castle_bench
