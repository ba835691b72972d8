// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include <castle/detail/check/message.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// The sizes of an attention: `heads` query heads side by side on `kv_heads` key-value heads (grouped queries where
/// these are fewer). Query head `h` reads key-value head `h / (heads / kv_heads)`; `heads` is a multiple of `kv_heads`.
/// A lone head is `{.d = d, .dv = dv}`.
struct Shape {
    Index d = 0;         ///< of one head's queries, keys and lookahead values
    Index dv = 0;        ///< of one head's causal values, and so of its output
    Index heads = 1;     ///< query heads
    Index kv_heads = 1;  ///< key-value heads

    bool operator==(const Shape&) const = default;
};

/// Queries, keys and values of one kind, causal or lookahead: views, their gradients' views, or matrices.
template <class M>
struct Qkv {
    M q = {};
    M k = {};
    M v = {};
};

/// What an attention reads, already projected: row `t` belongs to token `t`, heads lie side by side in the columns.
/// Views only; see ConstMatrixView. With a lookahead window of 0, standard attention, the lookahead views are left
/// empty.
template <Scalar T>
struct Input {
    Qkv<ConstMatrixView<T>> causal = {};  ///< `Q^C` `[L, heads d]`, `K^C` `[L, kv_heads d]`, `V^C` `[L, kv_heads dv]`
    Qkv<ConstMatrixView<T>> lookahead = {};  ///< `Q^U, K^U, V^U` `[L, kv_heads d]`: sums of `V^U` become keys

    bool has_lookahead() const { return lookahead.q.rows() != 0 || lookahead.k.rows() != 0 || lookahead.v.rows() != 0; }

    /// The `count` tokens from `first` on. Where the three lookahead views have no rows, only the causal part is cut.
    /// Throws std::invalid_argument if a view does not have all of these tokens.
    Input tokens(Index first, Index count) const {
        const auto cut = [&](std::string_view q, std::string_view k, std::string_view v, const auto& x) {
            const auto rows = [&](std::string_view name, ConstMatrixView<T> m) {
                detail::check_slice("tokens", name, m.rows(), "rows", first, count);
                return m.middle_rows(first, count);
            };
            return Qkv<ConstMatrixView<T>>{.q = rows(q, x.q), .k = rows(k, x.k), .v = rows(v, x.v)};
        };
        return {.causal = cut("causal.q", "causal.k", "causal.v", causal),
                .lookahead = has_lookahead() ? cut("lookahead.q", "lookahead.k", "lookahead.v", lookahead) : lookahead};
    }

    /// What query head `h` reads, as the input of a lone head: its queries, and everything else of its key-value head.
    /// Throws std::invalid_argument if there is no such head, or a view does not have its columns.
    Input head(const Shape& shape, Index h) const {
        if (h < 0 || h >= shape.heads || shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0) {
            detail::fail("Input::head", "h is ", h, " but the shape has ", shape.heads, " heads on ", shape.kv_heads,
                         " key-value heads");
        }
        const Index kv = h / (shape.heads / shape.kv_heads);
        return {.causal = {.q = causal.q.middle_cols(h * shape.d, shape.d),
                           .k = causal.k.middle_cols(kv * shape.d, shape.d),
                           .v = causal.v.middle_cols(kv * shape.dv, shape.dv)},
                .lookahead = has_lookahead()
                                 ? Qkv<ConstMatrixView<T>>{.q = lookahead.q.middle_cols(kv * shape.d, shape.d),
                                                           .k = lookahead.k.middle_cols(kv * shape.d, shape.d),
                                                           .v = lookahead.v.middle_cols(kv * shape.d, shape.d)}
                                 : lookahead};
    }
};

/// Where the gradients of an Input go: writable views of its shapes.
template <Scalar T>
struct GradientView {
    Qkv<MatrixView<T>> causal = {};
    Qkv<MatrixView<T>> lookahead = {};  ///< left empty where the input's are
};

/// The gradients of an Input, in its shapes.
template <Scalar T>
struct Gradient {
    Qkv<Matrix<T>> causal;
    Qkv<Matrix<T>> lookahead;

    Gradient() = default;
    /// Of `rows` tokens; elements are not set.
    Gradient(Index rows, const Shape& shape, bool has_lookahead = true) {
        const Index keys = shape.kv_heads * shape.d;
        causal.q.resize(rows, shape.heads * shape.d);
        causal.k.resize(rows, keys);
        causal.v.resize(rows, shape.kv_heads * shape.dv);
        if (!has_lookahead) return;
        for (Matrix<T>* m : {&lookahead.q, &lookahead.k, &lookahead.v}) m->resize(rows, keys);
    }

    GradientView<T> view() {
        const auto view_of = [](Qkv<Matrix<T>>& x) { return Qkv<MatrixView<T>>{.q = x.q, .k = x.k, .v = x.v}; };
        return {.causal = view_of(causal), .lookahead = view_of(lookahead)};
    }
};

}  // namespace CASTLE_ABI
}  // namespace castle
