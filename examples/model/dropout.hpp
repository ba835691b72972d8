// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

#include "matrices.hpp"

namespace model {

/// Leaves elements out at random, and makes the others larger by as much. Without random bits it changes nothing.
class Dropout {
  public:
    /// `rate` is the part that is left out, below 1, in steps of 2^-16.
    void forward(Matrix& x, double rate, std::mt19937_64* bits) {
        if (bits == nullptr) {
            factors_.resize(0, 0);
            return;
        }
        const auto least = std::uint64_t(std::lround(rate * 65536));
        const float kept = 65536 / float(65536 - least);
        factors_.resize(x.rows(), x.cols());
        for (Index i = 0; i < x.size(); i += 4) {
            std::uint64_t random = (*bits)();
            for (Index j = i; j < std::min(i + 4, x.size()); ++j, random >>= 16) {
                factors_.data()[j] = (random & 0xFFFF) < least ? 0 : kept;
            }
        }
        x.array() *= factors_.array();
    }
    /// From the gradient of the result to that of x, in place.
    void backward(Matrix& d_x) const {
        if (factors_.size() > 0) d_x.array() *= factors_.array();
    }

  private:
    Matrix factors_;
};

}  // namespace model
