// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/input.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// An Input of 16-bit scalars widened to `float`, for what does not take them: the dense forms, or code of yours. Owns
/// the widened elements: `O(L d)` time and memory a head.
template <Scalar T>
class WideInput {
  public:
    explicit WideInput(const Input<T>& input)
        : causal_{wide(input.causal.q), wide(input.causal.k), wide(input.causal.v)},
          lookahead_{wide(input.lookahead.q), wide(input.lookahead.k), wide(input.lookahead.v)} {}

    Input<Compute<T>> input() const {
        return {.causal = {.q = causal_.q, .k = causal_.k, .v = causal_.v},
                .lookahead = {.q = lookahead_.q, .k = lookahead_.k, .v = lookahead_.v}};
    }

  private:
    static Matrix<Compute<T>> wide(const ConstMatrixView<T>& from) {
        Matrix<Compute<T>> to(from.rows(), from.cols());
        detail::copy_elements<T, Compute<T>>(from, to);
        return to;
    }

    Qkv<Matrix<Compute<T>>> causal_;
    Qkv<Matrix<Compute<T>>> lookahead_;
};

}  // namespace CASTLE_ABI
}  // namespace castle
