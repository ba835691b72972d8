// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Queries, keys and values of one kind, causal or lookahead, as views: row `t` belongs to token `t`.
template <Scalar T>
struct Qkv {
    ConstMatrixView<T> q = {};  ///< `[L, d]`
    ConstMatrixView<T> k = {};  ///< `[L, d]`
    ConstMatrixView<T> v = {};  ///< causal: `[L, dv]`; lookahead: `[L, d]`, since sums of its rows become keys
};

/// What one attention head reads: the six projections of the layer's input. Views only; see ConstMatrixView.
template <Scalar T>
struct HeadInput {
    Qkv<T> causal = {};     ///< `Q^C, K^C` `[L, d]` and `V^C` `[L, dv]`
    Qkv<T> lookahead = {};  ///< `Q^U, K^U, V^U` `[L, d]`

    /// The `count` tokens from `first` on; asserted to be there.
    HeadInput tokens(Index first, Index count) const {
        const auto cut = [&](const Qkv<T>& x) {
            return Qkv<T>{.q = x.q.middle_rows(first, count),
                          .k = x.k.middle_rows(first, count),
                          .v = x.v.middle_rows(first, count)};
        };
        return {.causal = cut(causal), .lookahead = cut(lookahead)};
    }
};

/// The sizes of one head.
struct HeadShape {
    Index d = 0;   ///< of queries, keys and lookahead values
    Index dv = 0;  ///< of causal values, and so of the output
};

}  // namespace CASTLE_ABI
}  // namespace castle
