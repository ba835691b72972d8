// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <type_traits>

#include <castle/detail/check/message.hpp>
#include <castle/detail/simd/storage.hpp>
#include <castle/mask.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Where a call writes what it computes for `m` rows. All but the first is left empty unless it is wanted, and is in
/// the scalar that is computed in.
template <Scalar T>
struct Output {
    MatrixView<T> out = {};  ///< `[m, heads dv]`

    /// `[m, heads]`: of each row and query head the logarithm of the sum of `exp(score)` over the keys that the row
    /// sees, and of its sink: a weight is `exp(score - log_sum_exp)`. Minus infinity where it sees none.
    MatrixView<Compute<T>> log_sum_exp = {};

    /// `[m, heads]`: the mass on the keys that `mass_over` shows to a row: the sum of its weights over those of them
    /// that the call's mask shows as well.
    MatrixView<Compute<T>> mass = {};
    Masks mass_over = {};
};

/// The gradients of a loss with respect to an Output, for the backward pass; all but the first may be left empty.
template <Scalar T>
struct OutputGradient {
    ConstMatrixView<T> out = {};          ///< `[L, heads dv]`
    ConstMatrixView<T> log_sum_exp = {};  ///< `[L, heads]`
    ConstMatrixView<T> mass = {};         ///< `[L, heads]`
};

/// Merges what the same `m` rows have of two sets of keys that have none in common, from their outputs, `[m, heads
/// dv]`, and log-sum-exps, `[m, heads]`: writes what they have of both to `merged`, whose `log_sum_exp` is left empty
/// unless it is wanted. Keys may thus be attended in parts, on several caches, or by other means:
///
///     out = (e^(a - c) out_a + e^(b - c) out_b),    c = log(e^a + e^b),    a, b the log-sum-exps
///
/// A row that sees nothing of a set takes the other's. A sink belongs to one of the two calls only. `merged` may be
/// where one of the two is. Throws std::invalid_argument, and changes nothing then, if a shape does not fit.
template <Scalar T>
void merge(const Output<T>& a, const std::type_identity_t<Output<T>>& b,
           const std::type_identity_t<Output<T>>& merged) {
    using C = Compute<T>;
    const Index rows = a.out.rows(), heads = a.log_sum_exp.cols();
    if (heads < 1 || a.out.cols() % heads != 0) {
        detail::fail("merge", "a.out is ", detail::extents_of(a.out), " and a.log_sum_exp ",
                     detail::extents_of(a.log_sum_exp), " but the former must have as many columns for each head");
    }
    const auto check_one = [&](std::string_view name, const auto& m, Index cols) {
        if (m.rows() == rows && m.cols() == cols) return;
        detail::fail("merge", name, " is ", detail::extents_of(m), " but must be ", detail::Extents{rows, cols});
    };
    check_one("a.log_sum_exp", a.log_sum_exp, heads);
    check_one("b.out", b.out, a.out.cols());
    check_one("b.log_sum_exp", b.log_sum_exp, heads);
    check_one("merged.out", merged.out, a.out.cols());
    if (merged.log_sum_exp.rows() != 0) check_one("merged.log_sum_exp", merged.log_sum_exp, heads);
    const Index dv = a.out.cols() / heads;
    for (Index row = 0; row < rows; ++row) {
        for (Index h = 0; h < heads; ++h) {
            const C of_a = a.log_sum_exp.row(row)[h], of_b = b.log_sum_exp.row(row)[h];
            const T* from_a = a.out.row(row) + h * dv;
            const T* from_b = b.out.row(row) + h * dv;
            T* to = merged.out.row(row) + h * dv;
            constexpr C nothing = -std::numeric_limits<C>::infinity();
            C sum = of_a;
            if (of_b == nothing) {
                std::copy_n(from_a, dv, to);
            } else if (of_a == nothing) {
                std::copy_n(from_b, dv, to);
                sum = of_b;
            } else {
                const C largest = (std::max)(of_a, of_b);
                const C part_a = std::exp(of_a - largest), part_b = std::exp(of_b - largest);
                const C total = part_a + part_b;
                for (Index c = 0; c < dv; ++c) {
                    to[c] = detail::narrowed<T>(std::fma(part_a / total, detail::widened(from_a[c]),
                                                         part_b / total * detail::widened(from_b[c])));
                }
                sum = largest + std::log(total);
            }
            if (merged.log_sum_exp.rows() != 0) merged.log_sum_exp.row(row)[h] = sum;
        }
    }
}

}  // namespace CASTLE_ABI
}  // namespace castle
