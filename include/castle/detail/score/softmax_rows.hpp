// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/simd.hpp>

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

// The softmax of some query rows over one span of keys: for each row the largest score, the sum of
// exp(score - largest) in parts, one a lane of a packet, that over the keys of a second mask, where one is asked for,
// and the sum of exp(score - largest) v.
template <ComputeScalar T>
class SoftmaxRows {
  public:
    static constexpr Index lanes = Simd<T>::width;

    // In whole cache lines: those of neighbouring spans are written at the same time.
    static Index elements(Index rows, Index dv_padded) {
        return round_up(rows * (dv_padded + 2 * lanes + 1), cache_line / Index(sizeof(T)));
    }

    SoftmaxRows(T* data, Index rows, Index dv_padded) : data_(data), rows_(rows), dv_padded_(dv_padded) {}

    T* out(Index row) const { return data_ + row * dv_padded_; }
    T* sum(Index row) const { return data_ + rows_ * dv_padded_ + row * lanes; }
    T* mass(Index row) const { return data_ + rows_ * (dv_padded_ + lanes) + row * lanes; }
    T* largest() const { return data_ + rows_ * (dv_padded_ + 2 * lanes); }

    // As before the first key, for the first `count` rows.
    void clear(Index count) const {
        std::fill_n(out(0), count * dv_padded_, T(0));
        std::fill_n(sum(0), count * lanes, T(0));
        std::fill_n(mass(0), count * lanes, T(0));
        std::fill_n(largest(), count, -std::numeric_limits<T>::infinity());
    }

  private:
    T* data_;
    Index rows_;
    Index dv_padded_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
