// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string_view>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/state/aligned_buffer.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// U with the open block folded in as well, [size, d].
template <Scalar T>
Matrix<T> lookahead_keys(const HeadState<T>& state) {
    const Index size = state.size();
    const Index d = state.d();
    Matrix<T> u = Matrix<T>::Zero(size, d);
    if (!state.has_lookahead()) return u;

    const Index origin = round_down(size, block_size);
    const AbsorbedTokens open(state.window(), origin, size);
    AlignedBuffer<T> panel(d * panel_size);
    for (Index p = 0; p * panel_size < size; ++p) {
        std::copy_n(state.lookahead_keys(p), panel.size(), panel.data());
        fold_block(state, open, size - origin, state.open_block(), state.gates(p), p, panel.data());
        const Index first = p * panel_size;
        const Index rows = (std::min)(panel_size, size - first);
        u.middleRows(first, rows) = Eigen::Map<const Matrix<T>>(panel.data(), d, panel_size).leftCols(rows).transpose();
    }
    return u;
}

// Of one key-value head of a sequence, if there is one of this number.
template <Scalar T>
Matrix<T> lookahead_keys(std::string_view where, const SequenceState<T>& state, Index kv_head) {
    if (kv_head < 0 || kv_head >= state.heads()) {
        fail(where, "kv_head is ", kv_head, " but must be within [0, ", state.heads(), ")");
    }
    return lookahead_keys(state.head(kv_head));
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
