// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <stdexcept>

#include <castle/castle.hpp>

#include "support/generators.hpp"

// What the fuzz targets share.
namespace fuzz {

using castle::Index;
using castle::Matrix;

/// The bytes that a target gets, as the choices it makes. There are always more: zeros at the end.
class Input {
  public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    bool empty() const { return left_ == 0; }
    std::uint8_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    /// Within [0, count).
    Index below(Index count) { return byte() % count; }
    std::uint64_t word() {
        std::uint64_t x = 0;
        for (int i = 0; i < 8; ++i) x = x << 8 | byte();
        return x;
    }

  private:
    const std::uint8_t* data_;
    std::size_t left_;
};

/// What must hold, or the target has found something.
inline void require(bool holds, const char* what) {
    if (holds) return;
    std::cerr << what << '\n';
    std::abort();
}

/// Whether call() throws an Error.
template <class Error, class F>
bool throws(const F& call) {
    try {
        call();
    } catch (const Error&) {
        return true;
    }
    return false;
}

}  // namespace fuzz
