// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// to[k, i] = scale from[i, k] for i < count and k < d: tokens become columns. Rows of `from` lie from_stride elements
// apart, those of `to` to_stride. The two may be stored in other scalars than the one that is multiplied in.
template <ComputeScalar T, Scalar From, Scalar To>
void transpose(const From* from, Index from_stride, Index count, Index d, T scale, To* to, Index to_stride) {
    using S = Simd<T>;
    constexpr Index width = S::width;
    const Index whole_rows = round_down(count, width);
    const Index whole_cols = round_down(d, width);
    const auto load = [&](Index i, Index k)
                          CASTLE_INLINE_LAMBDA { return S::mul(S::load(from + i * from_stride + k), S::set(scale)); };
    const auto one_by_one = [&](Index i, Index first, Index end) {
        const From* x = from + i * from_stride;
        for (Index k = first; k < end; ++k) to[k * to_stride + i] = narrowed<To>(scale * widened(x[k]));
    };
    for (Index i = 0; i < whole_rows; i += width) {
        for (Index k = 0; k < whole_cols; k += width) {
            typename S::Square square;
            unroll<width>([&](auto j) CASTLE_INLINE_LAMBDA { square.packet[j] = load(i + j, k); });
            S::transpose(square);
            unroll<width>([&](auto j)
                              CASTLE_INLINE_LAMBDA { S::store(to + (k + j) * to_stride + i, square.packet[j]); });
        }
        for (Index j = 0; j < width; ++j) one_by_one(i + j, whole_cols, d);
    }
    // The last rows are fewer than a packet: a square of them, as far as they are there.
    const Index rest = count - whole_rows;
    if (rest < 2) {
        if (rest == 1) one_by_one(whole_rows, 0, d);
        return;
    }
    for (Index k = 0; k < whole_cols; k += width) {
        typename S::Square square;
        unroll<width>([&](auto j)
                          CASTLE_INLINE_LAMBDA { square.packet[j] = j < rest ? load(whole_rows + j, k) : S::zero(); });
        S::transpose(square);
        unroll<width>([&](auto j) CASTLE_INLINE_LAMBDA {
            alignas(64) To column[width];
            S::store(column, square.packet[j]);
            std::copy_n(column, rest, to + (k + j) * to_stride + whole_rows);
        });
    }
    for (Index i = whole_rows; i < count; ++i) one_by_one(i, whole_cols, d);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
