// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/input.hpp>
#include <castle/types.hpp>

// Views of heads side by side, cut to what one key-value head and its group have of them; not checked.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Of a matrix with `cols` columns for each key-value head: `count` rows from `first` on.
template <class View>
View view_of_group(const View& m, Index kv_head, Index cols, Index first, Index count) {
    return {m.row(first) + kv_head * cols, count, cols, m.outer_stride()};
}

// Of an Input, or of where its gradient goes: its own columns, and the queries of its group side by side.
template <class Views>
Views views_of_group(const Shape& shape, const Views& all, Index kv_head, Index first, Index count) {
    const auto cut = [&](const auto& m, Index cols) { return view_of_group(m, kv_head, cols, first, count); };
    const Index d = shape.d;
    // Keys of another sequence are all of one call.
    const bool is_cross = all.causal.k.rows() != all.causal.q.rows();
    const auto cut_keys = [&](const auto& m, Index cols) {
        return is_cross ? view_of_group(m, kv_head, cols, 0, m.rows()) : cut(m, cols);
    };
    Views own{.causal = {.q = cut(all.causal.q, shape.heads / shape.kv_heads * d),
                         .k = cut_keys(all.causal.k, d),
                         .v = cut_keys(all.causal.v, shape.dv)}};
    if (all.lookahead.q.rows() > 0) {
        own.lookahead = {.q = cut(all.lookahead.q, d), .k = cut(all.lookahead.k, d), .v = cut(all.lookahead.v, d)};
    }
    return own;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
