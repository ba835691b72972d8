// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <utility>

#include <castle/detail/backward/training_record.hpp>
#include <castle/detail/layer/layer_kind.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/options.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

template <Scalar T>
class Layer;

/// What takes a layer's forward pass to its backward pass, and the memory that the two need beside input and output;
/// made by the layer's `make_workspace`. Kept from step to step it asks for memory only when sequences are longer or
/// more than any before. Moves but does not copy; one that was moved from may only be assigned to or destroyed. A move
/// to itself changes nothing.
///
/// A model that runs several forward passes before their backward passes keeps a workspace for each.
template <Scalar T>
class LayerWorkspace {
  public:
    using value_type = T;

    /// Tokens of the forward pass that waits for its backward pass; 0 if none does.
    Index size() const { return record_.size(); }

    /// For a layer whose score terms have been set to these; see `Layer::set_terms`. A forward pass that waits for its
    /// backward pass is lost. Throws std::invalid_argument, and changes nothing then, if they do not fit.
    void set_terms(ScoreTerms terms) {
        Options options = kind_.attention.options({});
        options.terms = std::move(terms);
        auto kind = detail::AttentionKind::checked<T>("LayerWorkspace::set_terms", kind_.attention.shape, options);
        record_.set_terms(kind);
        kind_.attention = std::move(kind);
    }

    /// Memory that the workspace holds, in bytes.
    Index bytes() const { return record_.bytes() + (rows_.size() + d_attended_.size()) * Index(sizeof(Compute<T>)); }

    LayerWorkspace(LayerWorkspace&&) = default;
    LayerWorkspace& operator=(LayerWorkspace&& other) noexcept {
        if (this == &other) return *this;
        kind_ = std::move(other.kind_);
        record_ = std::move(other.record_);
        rows_ = std::move(other.rows_);
        d_attended_ = std::move(other.d_attended_);
        return *this;
    }
    ~LayerWorkspace() = default;

  private:
    friend Layer<T>;

    explicit LayerWorkspace(const detail::LayerKind& kind) : kind_(kind), record_(kind.attention) {}

    // Before a forward pass. Where it throws, the workspace holds none.
    void start(std::span<const Index> counts, const detail::CallMasks& masks, Index row_elements,
               Index attended_elements, const Executor& executor) {
        record_.finish();
        if (row_elements > rows_.size()) rows_ = detail::AlignedBuffer<Compute<T>>(row_elements);
        if (attended_elements > d_attended_.size()) d_attended_ = detail::AlignedBuffer<Compute<T>>(attended_elements);
        record_.start(counts, masks, executor);
    }

    detail::LayerKind kind_;
    detail::TrainingRecord<T> record_;
    detail::AlignedBuffer<Compute<T>> rows_;  // what lies between the layer's steps; projections become their gradients
    detail::AlignedBuffer<Compute<T>> d_attended_;  // [tokens, heads d_head]
};

}  // namespace CASTLE_ABI
}  // namespace castle
