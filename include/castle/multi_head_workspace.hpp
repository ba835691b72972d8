// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>
#include <vector>

#include <castle/detail/backward/head_record.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/multi_head_cache.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// What takes a layer's forward pass over a sequence to its backward pass, and the memory that the two need beside
/// input and output; made by the layer's `make_workspace`. Kept from step to step it asks for memory only when a
/// sequence is longer than any before. Moves but does not copy; one that was moved from may only be assigned to or
/// destroyed. A move to itself changes nothing.
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
        Index total = (rows_.size() + d_attended_.size()) * Index(sizeof(T));
        for (const auto& head : heads_) total += head.bytes();
        return total;
    }

  private:
    friend MultiHeadLayer<T>;

    MultiHeadWorkspace(const detail::LayerKind& kind, std::vector<detail::HeadRecord<T>> heads)
        : kind_(kind), heads_(std::move(heads)) {}

    // Before a forward pass. Where it throws, the workspace holds none.
    void start(Index tokens, Index row_numbers, Index attended_numbers) {
        for (auto& head : heads_) head.finish();
        if (row_numbers > rows_.size()) rows_ = detail::AlignedBuffer<T>(row_numbers);
        if (attended_numbers > d_attended_.size()) d_attended_ = detail::AlignedBuffer<T>(attended_numbers);
        for (auto& head : heads_) head.reserve(tokens);
        for (auto& head : heads_) head.start(tokens);
    }

    detail::LayerKind kind_;
    detail::SelfMovable<std::vector<detail::HeadRecord<T>>> heads_;
    detail::AlignedBuffer<T> rows_;        // what lies between the layer's steps; projections become their gradients
    detail::AlignedBuffer<T> d_attended_;  // [tokens, heads * d_head]
};

}  // namespace CASTLE_ABI
}  // namespace castle
