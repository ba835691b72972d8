// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>
#include <utility>

#include <castle/causal.hpp>
#include <castle/detail/backward/head_record.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/input.hpp>
#include <castle/options.hpp>

namespace castle {
inline namespace CASTLE_ABI {

namespace detail {
struct WorkspaceAccess;
}  // namespace detail

/// What the workspaces of one head, Workspace and CausalWorkspace, have in common.
///
/// A workspace takes a forward pass to its backward pass, and has the memory that the two need beside inputs and
/// outputs: about `11.5 L d` numbers, `6.5 L d` for standard attention. Kept from step to step it asks for memory only
/// when a sequence is longer than any before. It moves but does not copy; one that was moved from may only be assigned
/// to or destroyed, and a move to itself changes nothing. It may be used from any thread, by one at a time.
template <Scalar T>
class HeadWorkspace {
  public:
    using value_type = T;

    HeadWorkspace(const HeadWorkspace&) = delete;
    HeadWorkspace& operator=(const HeadWorkspace&) = delete;
    HeadWorkspace(HeadWorkspace&&) = default;
    ~HeadWorkspace() = default;

    HeadShape shape() const { return record_.shape(); }

    /// Tokens of the forward pass that waits for its backward pass; 0 if none does.
    Index size() const { return record_.size(); }

    /// Memory that the workspace holds, in bytes.
    Index bytes() const { return record_.bytes() + out_.size() * Index(sizeof(T)); }

  protected:
    // Of another workspace; Workspace and CausalWorkspace see to it that it is another one.
    HeadWorkspace& operator=(HeadWorkspace&&) = default;

    HeadWorkspace(std::string_view where, HeadShape shape, Options options)
        : options_(detail::checked_options<T>(where, shape, std::move(options))), record_(shape, options_) {}

  private:
    friend detail::WorkspaceAccess;

    Options options_;
    detail::HeadRecord<T> record_;
    detail::AlignedBuffer<T> out_;  // what the caller gets a copy of
};

/// The workspace of a CASTLE head.
template <Scalar T>
class Workspace : public HeadWorkspace<T> {
  public:
    /// For heads of `shape`. Throws std::invalid_argument if a size is below 1 or above 2^24, the window negative or
    /// the scale not finite.
    explicit Workspace(HeadShape shape, Options options = {})
        : HeadWorkspace<T>("Workspace", shape, std::move(options)) {}

    Workspace(Workspace&&) = default;
    Workspace& operator=(Workspace&& other) noexcept {
        if (this != &other) HeadWorkspace<T>::operator=(std::move(other));
        return *this;
    }
    ~Workspace() = default;
};

/// The workspace of a head of standard causal attention.
template <Scalar T>
class CausalWorkspace : public HeadWorkspace<T> {
  public:
    /// For heads of `shape`. Throws std::invalid_argument if a size is below 1 or above 2^24, or the scale not finite.
    explicit CausalWorkspace(HeadShape shape, CausalOptions options = {})
        : HeadWorkspace<T>("CausalWorkspace", shape, detail::without_lookahead(std::move(options))) {}

    CausalWorkspace(CausalWorkspace&&) = default;
    CausalWorkspace& operator=(CausalWorkspace&& other) noexcept {
        if (this != &other) HeadWorkspace<T>::operator=(std::move(other));
        return *this;
    }
    ~CausalWorkspace() = default;
};

namespace detail {

struct WorkspaceAccess {
    template <Scalar T>
    static HeadRecord<T>& record(HeadWorkspace<T>& workspace) {
        return workspace.record_;
    }
    // The output of the tokens of the record.
    template <Scalar T>
    static MatrixView<T> out(HeadWorkspace<T>& workspace) {
        return {workspace.out_.data(), workspace.size(), workspace.shape().dv};
    }
    // Before a forward pass of `tokens` tokens. Where it throws, the workspace holds none.
    template <Scalar T>
    static void start(HeadWorkspace<T>& workspace, Index tokens) {
        workspace.record_.finish();
        const Index numbers = tokens * workspace.shape().dv;
        if (numbers > workspace.out_.size()) workspace.out_ = AlignedBuffer<T>(numbers);
        workspace.record_.reserve(tokens);
        workspace.record_.start(tokens);
    }
    template <Scalar T>
    static const Executor& executor(const HeadWorkspace<T>& workspace) {
        return workspace.options_.executor;
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
