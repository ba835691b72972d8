// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string_view>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/detail/forward/panel_sweep.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/state/head_state.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What panel p has absorbed of the open block, under the masks of the calls, added to u, [d][panel_size].
template <Scalar T>
void fold_open_block(const HeadState<T>& state, const BlockFactors<T>& block, Index p, Compute<T>* u) {
    const Index tokens = state.size() % block_size;
    const BlockWords words = state.words_of(state.size() / block_size, p);
    if (tokens == 0 || cover_of(words, 0, tokens) == Cover::none) return;
    alignas(64) T gates[block_size * panel_size];
    std::copy_n(state.gates(p), tokens * panel_size, gates);
    close_gates<panel_size>(words, 0, tokens, gates);
    fold_words<panel_size>(words, 0, state.d(), block.lookahead_values(), gates, tokens, u);
}

// U with the open block folded in as well, [size, d]; zeros for keys that no row to come sees, or that are not here.
template <Scalar T>
Matrix<Compute<T>> lookahead_keys(const HeadState<T>& state) {
    using C = Compute<T>;
    const Index size = state.size();
    const Index d = state.d();
    Matrix<C> u = Matrix<C>::Zero(size, d);
    if (!state.has_lookahead()) return u;

    const Index origin = round_down(size, block_size);
    const AbsorbedTokens open(state.window(), origin, size);
    AlignedBuffer<C> panel(d * panel_size), factors(BlockFactors<T>::elements(state.operand_sizes()));
    const BlockFactors<T> block(state.open_block(), state.operand_sizes(), factors.data());
    if (size > origin) block.make_values(size - origin);
    const Index first_seen = state.sliding_window() <= size ? size - state.sliding_window() + 1 : 0;
    for (Index p = first_seen / panel_size; p * panel_size < size; ++p) {
        if (!state.share().has_panel(p)) continue;
        state.with_lookahead_keys(p, origin, [&](const auto* keys) { copy_numbers(keys, panel.size(), panel.data()); });
        if (state.is_masked()) {
            fold_open_block(state, block, p, panel.data());
        } else {
            fold_block(state, open, size - origin, block, state.gates(p), p, panel.data());
        }
        const Index first = (std::max)(p * panel_size, first_seen), end = (std::min)((p + 1) * panel_size, size);
        u.middleRows(first, end - first) = Eigen::Map<const Matrix<C>>(panel.data(), d, panel_size)
                                               .middleCols(first - p * panel_size, end - first)
                                               .transpose();
    }
    return u;
}

// Of one key-value head of a sequence, if there is one of this number.
template <Scalar T>
Matrix<Compute<T>> lookahead_keys(std::string_view where, const SequenceState<T>& state, Index kv_head) {
    if (kv_head < 0 || kv_head >= state.heads()) {
        fail(where, "kv_head is ", kv_head, " but must be within [0, ", state.heads(), ")");
    }
    return lookahead_keys(state.head(kv_head));
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
