// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

// Input that is the same everywhere: from integers of a generator of its own, by operations that do not round. The
// distributions of the standard library differ between libraries.
namespace compilers {

// The generator PCG32 (O'Neill 2014), with its usual stream.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

    // A multiple of 2^-16 within [-1, 1).
    double uniform() {
        const std::uint64_t old = state_;
        state_ = old * 6364136223846793005u + 1442695040888963407u;
        const auto shifted = static_cast<std::uint32_t>(((old >> 18) ^ old) >> 27);
        const auto turn = static_cast<unsigned>(old >> 59);
        const std::uint32_t bits = shifted >> turn | shifted << (-turn & 31);
        return (static_cast<double>(bits >> 15) - 65536.0) / 65536.0;
    }

  private:
    std::uint64_t state_;
};

}  // namespace compilers
