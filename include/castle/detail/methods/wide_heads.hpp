// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string_view>

#include <castle/detail/check/message.hpp>
#include <castle/input.hpp>
#include <castle/types.hpp>

// A further term of the scores that is a product of something of the row and something of the key: queries and keys
// with more elements a head. Those of lookahead queries, keys and values are 0, so that lookahead keys stay as they
// were.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

inline Shape wider(Shape heads, Index more) {
    heads.d += more;
    return heads;
}

// Heads side by side, of d elements, with `more` behind each: write(t, h, x, to) writes those of row t, of which x are
// the d.
template <Scalar T, class Write>
Matrix<T> widened(const ConstMatrixView<T>& from, Index heads, Index d, Index more, const Write& write) {
    Matrix<T> to(from.rows(), heads * (d + more));
    for (Index t = 0; t < from.rows(); ++t) {
        T* x = to.row(t).data();
        for (Index h = 0; h < heads; ++h, x += d + more) {
            std::copy_n(from.row(t) + h * d, d, x);
            write(t, h, static_cast<const T*>(x), x + d);
        }
    }
    return to;
}

// Causal queries and keys as above, causal values left empty, and what is lookahead.
template <Scalar T, class WriteQuery, class WriteKey>
Gradient<T> widened(const Input<T>& input, const Shape& heads, Index more, const WriteQuery& query,
                    const WriteKey& key) {
    const Index d = heads.d;
    Gradient<T> wide;
    wide.causal.q = widened(input.causal.q, heads.heads, d, more, query);
    wide.causal.k = widened(input.causal.k, heads.kv_heads, d, more, key);
    if (!input.has_lookahead()) return wide;
    const auto zero = [&](Index, Index, const T*, T* to) { std::fill_n(to, more, T(0)); };
    wide.lookahead = {.q = widened(input.lookahead.q, heads.kv_heads, d, more, zero),
                      .k = widened(input.lookahead.k, heads.kv_heads, d, more, zero),
                      .v = widened(input.lookahead.v, heads.kv_heads, d, more, zero)};
    return wide;
}

// The gradient without the elements that were added, from that of `rows` rows with them, whose shapes are checked.
template <Scalar T>
Gradient<T> narrowed(std::string_view where, const Gradient<T>& of_input, const Shape& heads, Index more, Index rows,
                     bool has_lookahead) {
    const Shape wide = wider(heads, more);
    const auto expect = [&](std::string_view name, const Matrix<T>& m, Index cols) {
        if (m.rows() == rows && m.cols() == cols) return;
        fail(where, "of_input.", name, " is ", extents_of(m), " but must be ", Extents{rows, cols}, ", as input()");
    };
    expect("causal.q", of_input.causal.q, wide.heads * wide.d);
    expect("causal.k", of_input.causal.k, wide.kv_heads * wide.d);
    expect("causal.v", of_input.causal.v, wide.kv_heads * wide.dv);
    if (has_lookahead) {
        expect("lookahead.q", of_input.lookahead.q, wide.kv_heads * wide.d);
        expect("lookahead.k", of_input.lookahead.k, wide.kv_heads * wide.d);
        expect("lookahead.v", of_input.lookahead.v, wide.kv_heads * wide.d);
    }
    Gradient<T> g(rows, heads, has_lookahead);
    const auto narrow = [&](const Matrix<T>& from, Index count, Matrix<T>& to) {
        for (Index h = 0; h < count; ++h) to.middleCols(h * heads.d, heads.d) = from.middleCols(h * wide.d, heads.d);
    };
    narrow(of_input.causal.q, heads.heads, g.causal.q);
    narrow(of_input.causal.k, heads.kv_heads, g.causal.k);
    g.causal.v = of_input.causal.v;
    if (!has_lookahead) return g;
    narrow(of_input.lookahead.q, heads.kv_heads, g.lookahead.q);
    narrow(of_input.lookahead.k, heads.kv_heads, g.lookahead.k);
    narrow(of_input.lookahead.v, heads.kv_heads, g.lookahead.v);
    return g;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
