// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <string_view>

#include <castle/detail/check/checks.hpp>
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
template <ComputeScalar T, class Write>
void widen(const ConstMatrixView<T>& from, Index heads, Index d, Index more, const Write& write, Matrix<T>& to) {
    to.resize(from.rows(), heads * (d + more));
    for (Index t = 0; t < from.rows(); ++t) {
        T* x = to.row(t).data();
        for (Index h = 0; h < heads; ++h, x += d + more) {
            std::copy_n(from.row(t) + h * d, d, x);
            write(t, h, static_cast<const T*>(x), x + d);
        }
    }
}

// Causal queries and keys as above, causal values left empty, and what is lookahead. Where `wide` has had as many rows
// before, nothing is allocated.
template <ComputeScalar T, class WriteQuery, class WriteKey>
void widen(const Input<T>& input, const Shape& heads, Index more, const WriteQuery& query, const WriteKey& key,
           Gradient<T>& wide) {
    const Index d = heads.d;
    widen(input.causal.q, heads.heads, d, more, query, wide.causal.q);
    widen(input.causal.k, heads.kv_heads, d, more, key, wide.causal.k);
    if (!input.has_lookahead()) return;
    const auto zero = [&](Index, Index, const T*, T* to) { std::fill_n(to, more, T(0)); };
    widen(input.lookahead.q, heads.kv_heads, d, more, zero, wide.lookahead.q);
    widen(input.lookahead.k, heads.kv_heads, d, more, zero, wide.lookahead.k);
    widen(input.lookahead.v, heads.kv_heads, d, more, zero, wide.lookahead.v);
}

// The gradient without the elements that were added, from that of `rows` rows with them, whose shapes are checked.
template <ComputeScalar T>
void narrow(std::string_view where, const Gradient<T>& of_input, const Shape& heads, Index more, Index rows,
            bool has_lookahead, const GradientView<T>& to) {
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
    Call{.where = where, .rows = rows, .rows_of = "the rows of input()", .object = "a head", .shape = heads}
        .check_gradient(to, has_lookahead);
    // Of each of `count` heads, which lie `stride` columns apart, the first `kept` elements.
    const auto copy = [&](const Matrix<T>& from, Index count, Index stride, Index kept, const MatrixView<T>& into) {
        for (Index t = 0; t < rows; ++t) {
            for (Index h = 0; h < count; ++h) std::copy_n(&from(t, h * stride), kept, into.row(t) + h * kept);
        }
    };
    copy(of_input.causal.q, heads.heads, wide.d, heads.d, to.causal.q);
    copy(of_input.causal.k, heads.kv_heads, wide.d, heads.d, to.causal.k);
    copy(of_input.causal.v, heads.kv_heads, wide.dv, heads.dv, to.causal.v);
    if (!has_lookahead) return;
    copy(of_input.lookahead.q, heads.kv_heads, wide.d, heads.d, to.lookahead.q);
    copy(of_input.lookahead.k, heads.kv_heads, wide.d, heads.d, to.lookahead.k);
    copy(of_input.lookahead.v, heads.kv_heads, wide.d, heads.d, to.lookahead.v);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
