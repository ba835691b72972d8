// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <castle/detail/check/message.hpp>
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

    /// The `count` tokens from `first` on. A head without lookahead, whose three lookahead views have no rows, is cut
    /// by its causal part alone. Throws std::invalid_argument if a view does not have all of these tokens.
    HeadInput tokens(Index first, Index count) const {
        const auto cut = [&](std::string_view q, std::string_view k, std::string_view v, const Qkv<T>& x) {
            const auto rows = [&](std::string_view name, ConstMatrixView<T> m) {
                detail::check_slice("tokens", name, m.rows(), "rows", first, count);
                return m.middle_rows(first, count);
            };
            return Qkv<T>{.q = rows(q, x.q), .k = rows(k, x.k), .v = rows(v, x.v)};
        };
        const bool causal_alone = lookahead.q.rows() == 0 && lookahead.k.rows() == 0 && lookahead.v.rows() == 0;
        return {.causal = cut("causal.q", "causal.k", "causal.v", causal),
                .lookahead = causal_alone ? lookahead : cut("lookahead.q", "lookahead.k", "lookahead.v", lookahead)};
    }
};

/// The sizes of one head.
struct HeadShape {
    Index d = 0;   ///< of queries, keys and lookahead values
    Index dv = 0;  ///< of causal values, and so of the output
};

}  // namespace CASTLE_ABI
}  // namespace castle
