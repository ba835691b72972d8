// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/simd/scalar.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Of some rows the logarithm of the sum over their keys of exp(score), in two parts: the largest score, and the
// logarithm of the sum of exp(score - largest). Added up, the latter would be rounded at the size of the former.
template <ComputeScalar T>
struct LogSumExp {
    T* largest = nullptr;
    T* log_sum = nullptr;

    explicit operator bool() const { return largest != nullptr; }
    LogSumExp from(Index row) const {
        return largest == nullptr ? LogSumExp() : LogSumExp{largest + row, log_sum + row};
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
