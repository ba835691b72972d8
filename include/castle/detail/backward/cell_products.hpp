// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <type_traits>

#include <castle/detail/backward/cell_pairs.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/transpose.hpp>
#include <castle/detail/state/block_factors.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The products of block, panel and d in the backward pass, for the pairs of a cell that count. Those that sum over
// tokens multiply with packets along keys, and those that sum over keys with packets along tokens, from what was
// transposed.
template <Scalar T>
class CellProducts {
    using C = Compute<T>;

  public:
    // Of right factors that are made here.
    using Factor = std::conditional_t<multiplies_pairs<T>, T, C>;

    CellProducts(const BlockRows<T>& rows, const CellPairs<T>& pairs) : rows_(rows), pairs_(pairs) {}

    // A partial block leaves columns of what is transposed unwritten.
    void clear() { std::fill_n(transposed_, panel_size * block_size, Factor(0)); }

    // out[tokens, Cols] = a panel
    template <Index Cols>
    void multiply_with(const LeftFactor<T>& a, Index n, const C* panel, C* out) const {
        multiply<Cols>(rows_.count(), n, a, panel + pairs_.column(), panel_size, out, panel_size);
    }

    // panel[dims, Cols] += x y, x being [dims][block] and y [tokens][panel].
    template <Index Cols>
    void add_to_keys(Index dims, const C* x, const C* y, C* panel, const KeptPairs& kept) {
        add_product<Cols, block_size, panel_size>(dims, rows_.count(), x, y, panel + pairs_.column(), kept);
    }

    // sum[dims, tokens] += panel y^T for the y that was transposed last.
    template <Index Cols, Scalar A>
    void add_to_tokens(Index dims, const A* panel, C* sum, const KeptPairs& kept) {
        add_product<block_size, panel_size, block_size>(dims, Cols, panel + pairs_.column(), transposed_, sum, kept);
    }

    // transposed()[Cols][block] = y^T
    template <Index Cols, Scalar Y>
    void transpose(const Y* y) {
        detail::transpose(y, panel_size, rows_.count(), Cols, C(1), transposed_, block_size);
    }
    const Factor* transposed() const { return transposed_; }

  private:
    // What words leave out. Rare, and not to take stack where it does not happen.
    template <Index Cols, Index AStride, Index Stride, Scalar A, Scalar B>
    EIGEN_DONT_INLINE void add_where(Index rows, Index n, const A* a, const B* b, C* c, const KeptPairs& kept) const {
        const Operand<A> left{a, AStride, 1};
        if (kept.transposed) {
            multiply_add_where<Cols>(rows, n, left, b, Stride, c, Stride, pairs_.by_key(kept, n).data());
        } else {
            multiply_add_where<Cols>(rows, n, left, b, Stride, c, Stride, kept.words);
        }
    }

    // Only blocks of keys have ranges.
    template <Index Cols, Index AStride, Index Stride, Scalar A, Scalar B>
    void add_product(Index rows, Index n, const A* a, const B* b, C* c, const KeptPairs& kept) {
        if (Cols == block_size && kept.ranges != nullptr) {
            multiply_add_within<block_size, AStride, Stride>(rows, n, a, b, c, kept.ranges);
        } else if (kept.words != nullptr && !is_finite(a, rows, n, AStride)) {
            add_where<Cols, AStride, Stride>(rows, n, a, b, c, kept);
        } else if constexpr (!multiplies_pairs<T>) {
            multiply_add<Cols, AStride, Stride>(rows, n, a, b, c);
        } else if constexpr (std::same_as<B, T>) {
            multiply_add_pairs<T, Cols, AStride, Stride>(rows, n, a, b, c);
        } else {
            for (Index k = 0; k < n; ++k) round_row(b + k * Stride, Cols, rounded_ + k * Stride);
            multiply_add_pairs<T, Cols, AStride, Stride>(rows, n, a, rounded_, c);
        }
    }

    const BlockRows<T>& rows_;
    const CellPairs<T>& pairs_;
    alignas(64) Factor transposed_[panel_size * block_size];
    alignas(64) T rounded_[multiplies_pairs<T> ? block_size * panel_size : 1];  // a right factor
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
