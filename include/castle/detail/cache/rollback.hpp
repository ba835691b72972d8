// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/detail/state/sequence_state.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The gates of the open block, from its lookahead keys and all lookahead queries.
template <Scalar T>
void make_open_gates(HeadState<T>& state) {
    const Index size = state.size(), origin = round_down(size, block_size);
    if (!state.has_lookahead() || size == origin) return;
    const BlockRows<T> rows{
        .origin = origin, .first = origin, .end = size, .sight = {}, .factors = state.open_factors()};
    rows.factors.make(0, size - origin);
    for (Index p = oldest_panel(state.window(), origin); p * panel_size < size; ++p) {
        if (state.share().has_panel(p)) PanelSweep<T>(state, rows, p).make_gates();
    }
}

// Rolls back the last `tokens` tokens, at most max_rollback() of them, and leaves what there would be without them.
//
// Tokens of the open block have left nothing but rows that are written anew. A finished block's folding is undone from
// the history, the last one first; then one that loses only a part of its tokens is open again, and needs its gates. If
// anything that this writes to is shared with a fork, it is to be owned first.
template <Scalar T>
void rollback(HeadState<T>& state, Index tokens) {
    const Index size = state.size() - tokens;
    const Index block = size / block_size, open = state.size() / block_size;
    if (state.has_limited_rollback() && block < open) {
        for (Index b = open - 1; b >= block; --b) state.undo_fold(b);
        if (size % block_size != 0) state.history().restore_operands(block, state.open_block());
        state.cut(size);
        make_open_gates(state);
        return;
    }
    state.cut(size);
}

// The same of all heads, if they can. The first part throws where they cannot, or where there is no memory for what is
// shared with a fork; no token has changed then.
template <Scalar T>
void prepare_rollback(SequenceState<T>& state, Index tokens) {
    check_rollback(tokens, state.max_rollback());
    state.own_for_rollback(state.size() - tokens);
}
template <Scalar T>
void finish_rollback(SequenceState<T>& state, Index tokens) {
    for (Index h = 0; h < state.heads(); ++h) rollback(state.head(h), tokens);
}
template <Scalar T>
void rollback(SequenceState<T>& state, Index tokens) {
    prepare_rollback(state, tokens);
    finish_rollback(state, tokens);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
