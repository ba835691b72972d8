// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/scalar.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// How large the operands of a block are: d, the query heads of the group, and whether there is lookahead.
struct OperandSizes {
    Index d;
    Index group;
    bool has_lookahead;

    Index elements() const { return (has_lookahead ? (group + 2) * d + group * block_size : group * d) * block_size; }
};

// The rows of one block as the kernels read them, transposed: row k, column j belongs to token j of the block. Queries
// and triangles are there for each query head of the group; without lookahead there are only the queries.
template <ComputeScalar T>
class BlockOperands {
  public:
    BlockOperands(T* data, const OperandSizes& sizes) : data_(data), d_(sizes.d), group_(sizes.group) {}

    T* data() const { return data_; }

    // scale Q^C^T of query head h, [d][block]; from one head to the next there are so many elements.
    T* causal_queries(Index h) const { return data_ + h * query_stride(); }
    Index query_stride() const { return d_ * block_size; }

    T* lookahead_keys() const { return causal_queries(group_); }        // scale K^U^T, [d][block]
    T* lookahead_values() const { return causal_queries(group_ + 1); }  // V^U^T, [d][block]

    // scale Q^C V^U^T of query head h, [block][block], tril used.
    T* triangle(Index h) const { return causal_queries(group_ + 2) + h * triangle_stride(); }
    static constexpr Index triangle_stride() { return block_size * block_size; }

  private:
    T* data_;
    Index d_;
    Index group_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
