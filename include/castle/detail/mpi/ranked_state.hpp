// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <utility>

#include <castle/detail/cache/rollback.hpp>
#include <castle/detail/mpi/agreement.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/mpi/communicator.hpp>

// What caches of several ranks do with a sequence's state, whatever part of it each has: on all ranks or on none. A
// cache's identifier is the same on all of them.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

template <Scalar T>
void rollback_on_all(const mpi::Communicator& communicator, Index identifier, SequenceState<T>& state, Index tokens) {
    agree_on(
        "rollback", communicator, [&] { prepare_rollback(state, tokens); }, identifier, state.size(), tokens);
    finish_rollback(state, tokens);
}

// more() is what else may throw.
template <Scalar T, class More>
void reserve_on_all(const mpi::Communicator& communicator, Index identifier, SequenceState<T>& state, Index tokens,
                    const More& more) {
    const auto work = [&] {
        state.reserve(tokens);
        more();
    };
    agree_on("reserve", communicator, work, identifier, state.size(), tokens);
}
template <Scalar T, class More>
SequenceState<T> fork_on_all(const mpi::Communicator& communicator, Index identifier, const SequenceState<T>& state,
                             const More& more) {
    std::optional<SequenceState<T>> other;
    const auto work = [&] {
        other.emplace(state.fork());
        more();
    };
    agree_on("fork", communicator, work, identifier, state.size());
    return std::move(*other);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
