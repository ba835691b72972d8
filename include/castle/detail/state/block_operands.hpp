// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The rows of one block as the kernels read them, transposed: row k, column j belongs to token j of the block. Without
// lookahead there are only the queries.
template <Scalar T>
class BlockOperands {
  public:
    static Index numbers(Index d, bool has_lookahead) { return (has_lookahead ? 3 * d + block_size : d) * block_size; }

    BlockOperands(T* data, Index d) : data_(data), d_(d) {}

    T* causal_queries() const { return data_; }                          // scale Q^C^T, [d][block]
    T* lookahead_keys() const { return data_ + d_ * block_size; }        // scale K^U^T, [d][block]
    T* lookahead_values() const { return data_ + 2 * d_ * block_size; }  // V^U^T, [d][block]
    T* triangle() const { return data_ + 3 * d_ * block_size; }          // scale Q^C V^U^T, [block][block], tril used

  private:
    T* data_;
    Index d_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
