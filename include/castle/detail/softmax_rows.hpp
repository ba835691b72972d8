// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The softmax of some query rows over one span of keys: for each row the largest score, the sum of
// exp(score - largest), and the sum of exp(score - largest) v.
template <Scalar T>
class SoftmaxRows {
  public:
    static Index numbers(Index rows, Index dv_padded) { return rows * (dv_padded + 2); }

    SoftmaxRows(T* data, Index rows, Index dv_padded) : data_(data), rows_(rows), dv_padded_(dv_padded) {}

    T* out(Index row) const { return data_ + row * dv_padded_; }
    T* largest() const { return data_ + rows_ * dv_padded_; }
    T* sum() const { return largest() + rows_; }

  private:
    T* data_;
    Index rows_;
    Index dv_padded_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
