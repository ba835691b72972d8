// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <span>

#include <castle/detail/backward/training_record.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/mpi/split_output.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/mpi/communicator.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace mpi {

template <Scalar T>
class SplitLayer;

/// What takes one rank's part of a forward pass to the backward pass; made by the layer's `make_workspace` on every
/// rank. Kept from step to step it asks for memory only when sequences are longer or more than any before. Moves but
/// does not copy; one that was moved from may only be assigned to or destroyed.
template <Scalar T>
class SplitLayerWorkspace {
    using C = Compute<T>;

  public:
    using value_type = T;

    /// Tokens of the forward pass that waits for its backward pass; 0 if none does.
    Index size() const { return record_.size(); }

    /// Memory that the workspace holds on this rank, in bytes.
    Index bytes() const { return record_.bytes() + rows_.size() * Index(sizeof(C)) + output_memory_.bytes(); }

  private:
    friend SplitLayer<T>;

    SplitLayerWorkspace(const detail::LayerKind& kind, const Communicator& communicator,
                        const detail::AttentionKind& own)
        : kind_(kind), communicator_(communicator), record_(own) {}

    // Before a forward pass. Where it throws, the workspace holds none.
    void start(std::span<const Index> counts, const detail::CallMasks& masks, Index row_elements,
               const Executor& executor) {
        record_.finish();
        if (row_elements > rows_.size()) rows_ = detail::AlignedBuffer<C>(row_elements);
        record_.start(counts, masks, executor);
    }

    detail::LayerKind kind_;  // of the whole layer
    Communicator communicator_;
    detail::TrainingRecord<T> record_;       // of this rank's heads
    detail::AlignedBuffer<C> rows_;          // what lies between the steps of this rank's heads
    detail::OutputMemory<T> output_memory_;  // what all heads attend waits in it for the backward pass
};

}  // namespace mpi
}  // namespace CASTLE_ABI
}  // namespace castle
