// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// to[k, i] = scale from[row + i, k] for i < count: tokens become columns.
template <Scalar T>
void transpose(ConstMatrixView<T> from, Index row, Index count, T scale, T* to, Index stride) {
    using S = Simd<T>;
    constexpr Index width = S::width;
    const Index d = from.cols();
    const Index whole_rows = round_down(count, width);
    const Index whole_cols = round_down(d, width);
    const auto one_by_one = [&](Index i, Index first, Index end) {
        const T* x = from.row(row + i);
        for (Index k = first; k < end; ++k) to[k * stride + i] = scale * x[k];
    };
    for (Index i = 0; i < whole_rows; i += width) {
        for (Index k = 0; k < whole_cols; k += width) {
            typename S::Square square;
            unroll<width>([&](auto j) CASTLE_INLINE_LAMBDA {
                square.packet[j] = S::mul(S::load(from.row(row + i + j) + k), S::set(scale));
            });
            S::transpose(square);
            unroll<width>([&](auto j) CASTLE_INLINE_LAMBDA { S::store(to + (k + j) * stride + i, square.packet[j]); });
        }
        for (Index j = 0; j < width; ++j) one_by_one(i + j, whole_cols, d);
    }
    for (Index i = whole_rows; i < count; ++i) one_by_one(i, 0, d);
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
