// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <utility>

#include <castle/detail/backward/training_record.hpp>
#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>
#include <castle/terms.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {
struct WorkspaceAccess;
}  // namespace detail

/// Takes a forward pass to its backward pass, and has the memory that the two need beside inputs and outputs: about
/// `11.5 L d` elements a head, `6.5 L d` for standard attention, and less where query heads share a key-value head.
/// Each sequence takes whole panels of 64 tokens. Kept from step to step it asks for memory only when sequences are
/// longer or more than any before.
///
/// It moves but does not copy; one that was moved from may only be assigned to or destroyed, and a move to itself
/// changes nothing. It may be used from any thread, by one at a time.
template <Scalar T>
class Workspace {
  public:
    using value_type = T;

    /// For heads of `shape`. Throws std::invalid_argument as UqKvCache does.
    explicit Workspace(const Shape& shape, Options options = {})
        : options_(std::move(options)), record_(detail::AttentionKind::checked<T>("Workspace", shape, options_)) {}

    Workspace(Workspace&&) = default;
    Workspace& operator=(Workspace&& other) noexcept {
        if (this == &other) return *this;
        options_ = std::move(other.options_);
        record_ = std::move(other.record_);
        out_ = std::move(other.out_);
        return *this;
    }
    ~Workspace() = default;

    const Shape& shape() const { return record_.kind().shape; }
    const Options& options() const { return options_; }

    /// Other score terms, for tables and sinks that are trained. A forward pass that waits for its backward pass is
    /// lost. Throws std::invalid_argument, and changes nothing then, if they do not fit.
    void set_terms(ScoreTerms terms) {
        Options options = options_;
        options.terms = std::move(terms);
        record_.set_terms(detail::AttentionKind::checked<T>("Workspace::set_terms", shape(), options));
        options_ = std::move(options);
    }

    /// Tokens of the forward pass that waits for its backward pass; 0 if none does.
    Index size() const { return record_.size(); }

    /// Memory that the workspace holds, in bytes.
    Index bytes() const { return record_.bytes() + out_.size() * Index(sizeof(Compute<T>)); }

  private:
    friend detail::WorkspaceAccess;

    Options options_;
    detail::TrainingRecord<T> record_;
    detail::AlignedBuffer<Compute<T>> out_;  // what the caller gets a copy of
};

namespace detail {

struct WorkspaceAccess {
    template <Scalar T>
    static TrainingRecord<T>& record(Workspace<T>& workspace) {
        return workspace.record_;
    }
    // The output of the tokens of the record.
    template <Scalar T>
    static MatrixView<Compute<T>> out(Workspace<T>& workspace) {
        const Shape& shape = workspace.shape();
        return {workspace.out_.data(), workspace.size(), shape.heads * shape.dv};
    }
    // Before a forward pass of sequences of so many tokens. Where it throws, the workspace holds none.
    template <Scalar T>
    static void start(Workspace<T>& workspace, std::span<const Index> counts, const CallMasks& masks, Index tokens,
                      const Executor& executor) {
        workspace.record_.finish();
        const Index elements = tokens * workspace.shape().heads * workspace.shape().dv;
        if (elements > workspace.out_.size()) workspace.out_ = AlignedBuffer<Compute<T>>(elements);
        workspace.record_.start(counts, masks, executor);
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
