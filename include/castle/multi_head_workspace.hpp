// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>
#include <vector>

#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/head_record.hpp>
#include <castle/detail/packed_matrix.hpp>
#include <castle/multi_head_cache.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// What takes a layer's forward pass over a sequence to its backward pass, and the memory that the two need beside
/// input and output; made by the layer's `make_workspace`. Kept from step to step it asks for memory only when a
/// sequence is longer than any before. Moves but does not copy; one that was moved from can only be assigned to or
/// destroyed.
///
/// A model that runs several sequences before their backward passes keeps a workspace for each.
template <Scalar T>
class MultiHeadWorkspace {
  public:
    using value_type = T;

    /// Tokens of the forward pass that waits for its backward pass; 0 if none does.
    Index size() const { return heads_.front().size(); }

    /// Memory that the workspace holds, in bytes.
    Index bytes() const {
        const Index numbers = rows_.size() + d_attended_.size() + in_transposed_.numbers() + out_transposed_.numbers();
        Index total = numbers * Index(sizeof(T));
        for (const auto& head : heads_) total += head.bytes();
        return total;
    }

  private:
    friend MultiHeadLayer<T>;

    // For a layer whose packed weights are [d_model, in_cols] and [width, d_model].
    MultiHeadWorkspace(const detail::LayerKind& kind, std::vector<detail::HeadRecord<T>> heads, Index d_model,
                       Index in_cols, Index width)
        : kind_(kind), heads_(std::move(heads)), in_transposed_(in_cols, d_model), out_transposed_(d_model, width) {}

    // Before a forward pass. Where it throws, the workspace holds none.
    void start(Index tokens, Index row_numbers, Index attended_numbers) {
        for (auto& head : heads_) head.finish();
        if (row_numbers > rows_.size()) rows_ = detail::AlignedBuffer<T>(row_numbers);
        if (attended_numbers > d_attended_.size()) d_attended_ = detail::AlignedBuffer<T>(attended_numbers);
        for (auto& head : heads_) head.reserve(tokens);
        for (auto& head : heads_) head.start(tokens);
    }

    detail::LayerKind kind_;
    std::vector<detail::HeadRecord<T>> heads_;
    detail::AlignedBuffer<T> rows_;        // what lies between the layer's steps; projections become their gradients
    detail::AlignedBuffer<T> d_attended_;  // [tokens, heads * d_head]
    // The weights, for products with their transposes.
    detail::PackedMatrix<T> in_transposed_;
    detail::PackedMatrix<T> out_transposed_;
};

}  // namespace CASTLE_ABI
}  // namespace castle
