// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include <castle/detail/aligned_buffer.hpp>
#include <castle/detail/checks.hpp>
#include <castle/detail/layout.hpp>
#include <castle/detail/simd.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Rotary position embedding of a multi-head layer: which of the six projections are rotated, and the base of the
/// wave lengths. The lookahead value is rotated by default because it becomes part of a key.
struct Rotary {
    bool causal_q = true;
    bool causal_k = true;
    bool causal_v = false;
    bool lookahead_q = true;
    bool lookahead_k = true;
    bool lookahead_v = true;
    double base = 10000.0;

    bool operator==(const Rotary&) const = default;
};

namespace detail {

// The angles of a head of size d, and the rotation by them.
template <Scalar T>
class RotaryTable {
    using S = Simd<T>;

  public:
    RotaryTable(Index d, double base) : half_(d / 2), frequencies_(std::size_t(half_)) {
        for (Index k = 0; k < half_; ++k) {
            frequencies_[std::size_t(k)] = std::pow(base, -static_cast<double>(k) / static_cast<double>(half_));
        }
    }

    // Numbers that a row of the table takes.
    Index row_size() const { return 2 * padded(); }

    // The cosines and sines of a position, to row[row_size()].
    void fill(Index position, T* row) const {
        for (Index k = 0; k < half_; ++k) {
            const double angle = static_cast<double>(position) * frequencies_[std::size_t(k)];
            row[k] = static_cast<T>(std::cos(angle));
            row[padded() + k] = static_cast<T>(std::sin(angle));
        }
    }

    // Rotates x[d] by one row of the table, or back, which is what rotation's gradient does.
    void rotate(T* x, const T* row) const {
        turn(x, row, [](auto sin) { return sin; });
    }
    void rotate_back(T* x, const T* row) const {
        turn(x, row, [](auto sin) { return S::negate(sin); });
    }

  private:
    Index padded() const { return round_up(half_, S::width); }

    template <class Sine>
    void turn(T* x, const T* row, const Sine& sine) const {
        Index k = 0;
        for (; k + S::width <= half_; k += S::width) turn_packet(x + k, x + half_ + k, row + k, sine);
        if (k < half_) {
            T low[S::width] = {};
            T high[S::width] = {};
            std::copy_n(x + k, half_ - k, low);
            std::copy_n(x + half_ + k, half_ - k, high);
            turn_packet(low, high, row + k, sine);
            std::copy_n(low, half_ - k, x + k);
            std::copy_n(high, half_ - k, x + half_ + k);
        }
    }

    template <class Sine>
    void turn_packet(T* low, T* high, const T* row, const Sine& sine) const {
        const auto a = S::load(low), b = S::load(high);
        const auto cos = S::load(row), sin = sine(S::load(row + padded()));
        S::store(low, S::fma(a, cos, S::negate(S::mul(b, sin))));
        S::store(high, S::fma(b, cos, S::mul(a, sin)));
    }

    Index half_;
    std::vector<double> frequencies_;
};

inline void check_rotary_base(std::string_view where, double base) {
    if (!(base >= 1) || !std::isfinite(base)) {
        fail(where, "the base of the rotary embedding is ", base, " but must be at least 1 and finite");
    }
}

}  // namespace detail

/// Rotary position embedding in place: row `i` of `x`, `[m, d]`, is at position `first_position + i`, and its numbers
/// `k` and `k + d / 2` are turned as a pair by the angle `position base^(-2 k / d)`.
///
/// Throws std::invalid_argument if `d` is odd, the position
/// negative or above 2^40, or the base below 1 or not finite.
template <class X, Scalar T = typename std::remove_cvref_t<X>::value_type>
requires std::convertible_to<X&&, MatrixView<T>>
void rotate(X&& x, Index first_position, double base = Rotary{}.base) {
    const MatrixView<T> rows(x);
    if (rows.cols() % 2 != 0) {
        detail::fail("rotate", "x is ", detail::as_shape(rows), " but must have an even number of columns");
    }
    detail::check_rotary_base("rotate", base);
    detail::check_tokens("rotate", "first_position", first_position);
    detail::check_shape("rotate", "", "x", rows, rows.rows(), rows.cols(), [] { return ""; });
    const detail::RotaryTable<T> table(rows.cols(), base);
    detail::AlignedBuffer<T> angles(table.row_size());
    for (Index i = 0; i < rows.rows(); ++i) {
        table.fill(first_position + i, angles.data());
        table.rotate(rows.row(i), angles.data());
    }
}

}  // namespace CASTLE_ABI
}  // namespace castle
