// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include <castle/detail/backward/cell_pairs.hpp>
#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
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
    void clear() { std::fill_n(transposed_.data(), panel_size * block_size, Factor(0)); }

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
        add_product<block_size, panel_size, block_size>(dims, Cols, panel + pairs_.column(), transposed_.data(), sum,
                                                        kept);
    }

    // transposed()[Cols][block] = y^T
    template <Index Cols, Scalar Y>
    void transpose(const Y* y) {
        detail::transpose(y, panel_size, rows_.count(), Cols, C(1), transposed_.data(), block_size);
    }
    const Factor* transposed() const { return transposed_.data(); }

  private:
    // Only blocks of keys have ranges.
    template <Index Cols, Index AStride, Index Stride, Scalar A, Scalar B>
    void add_product(Index rows, Index n, const A* a, const B* b, C* c, const KeptPairs& kept) {
        if (Cols == block_size && kept.ranges != nullptr) {
            multiply_add_within<block_size, AStride, Stride>(rows, n, a, b, c, kept.ranges);
            return;
        }
        const bool leaves_out = kept.words != nullptr && !is_finite(a, rows, n, AStride);
        if constexpr (multiplies_pairs<T>) {
            const T* right = rounded_.data();
            if constexpr (std::same_as<B, T>) {
                right = b;
            } else {
                for (Index k = 0; k < n; ++k) round_row(b + k * Stride, Cols, rounded_.data() + k * Stride);
            }
            if (leaves_out) {
                add_where<Cols, AStride, Stride>(rows, n, a, right, c, kept);
            } else {
                multiply_add_pairs<T, Cols, AStride, Stride>(rows, n, a, right, c);
            }
        } else if (leaves_out) {
            add_where<Cols, AStride, Stride>(rows, n, a, b, c, kept);
        } else {
            multiply_add<Cols, AStride, Stride>(rows, n, a, b, c);
        }
    }

    // The same of what words leave out. Rare, and not to take stack where it does not happen.
    template <Index Cols, Index AStride, Index Stride, Scalar A, Scalar B>
    EIGEN_DONT_INLINE void add_where(Index rows, Index n, const A* a, const B* b, C* c, const KeptPairs& kept) const {
        std::array<std::uint64_t, std::size_t(panel_size)> words{};
        if (kept.transposed) {
            words = pairs_.by_key(kept, n);
        } else {
            std::copy_n(kept.words, n, words.begin());
        }
        if constexpr (multiplies_pairs<T>) {
            for (Index i = 0; i < rows; ++i) {
                Uninitialized<T, AStride> left;
                for (Index k = 0; k < n; ++k) left.data()[k] = narrowed<T>(widened(a[i * AStride + k]));
                multiply_add_where<Cols>(1, n, PairOperand<T>{left.data(), AStride, 1}, b, Stride, c + i * Stride,
                                         Stride, words.data());
            }
        } else {
            multiply_add_where<Cols>(rows, n, Operand<A>{a, AStride, 1}, b, Stride, c, Stride, words.data());
        }
    }

    const BlockRows<T>& rows_;
    const CellPairs<T>& pairs_;
    Uninitialized<Factor, panel_size * block_size> transposed_;
    Uninitialized<T, multiplies_pairs<T> ? block_size * panel_size : 1> rounded_;  // a right factor
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
