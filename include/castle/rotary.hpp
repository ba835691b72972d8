// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <new>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/simd/aligned_buffer.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// Rotary position embedding of a layer: which of the six projections are rotated, and the base of the
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

inline void check_rotary_base(std::string_view where, double base) {
    if (!(base >= 1) || !std::isfinite(base)) {
        fail(where, "the base of the rotary embedding is ", base, " but must be at least 1 and finite");
    }
}

template <Scalar T>
class LayerHeads;

}  // namespace detail

/// Rotary position embedding of rows of size `d`, in place and at any positions: elements `k` and `k + d / 2` of a row
/// are turned as a pair by the angle `position base^(-2 k / d)` (half-split pairs, as in GPT-NeoX, not interleaved).
/// For code that rotates often: calls allocate nothing, and evaluate no sines or cosines at reserved positions.
/// Layer rotates by this class; the free `rotate` is bitwise identical.
///
/// Rotating does not change the table, so several threads may share it. Moves but does not copy; one that was moved
/// from may only be assigned to or destroyed. A move to itself changes nothing.
template <ComputeScalar T>
class RotaryTable {
  public:
    using value_type = T;

    /// For rows of size `d`, with positions `[0, positions)` reserved, as by `reserve`. Takes `d / 2` powers.
    ///
    /// Throws std::invalid_argument if `d` is odd, below 2 or above 2^24, or the base below 1 or not finite; otherwise
    /// as `reserve`.
    explicit RotaryTable(Index d, double base = Rotary{}.base, Index positions = 0)
        : base_(base), half_(checked(d, base) / 2), frequencies_(std::vector<double>(std::size_t(half_))) {
        for (Index k = 0; k < half_; ++k) {
            frequencies_[std::size_t(k)] = std::pow(base, -static_cast<double>(k) / static_cast<double>(half_));
        }
        reserve(positions);
    }

    Index d() const { return 2 * half_; }
    double base() const { return base_; }

    /// Positions below this are looked up, others are computed.
    Index reserved() const { return reserved_; }

    /// Memory that the table holds, in bytes.
    Index bytes() const { return half_ * Index(sizeof(double)) + table_.size() * Index(sizeof(T)); }

    /// Keeps the cosines and sines of positions `[0, positions)`, which take `d` elements a position; each half is
    /// padded to a whole packet. Those that are there already stay. Changes no bits.
    ///
    /// Throws std::invalid_argument if `positions` is negative or above 2^40, and std::bad_alloc if memory runs out;
    /// the table is as it was then.
    void reserve(Index positions) {
        detail::check_tokens(where, "positions", positions);
        if (positions <= reserved_) return;
        if (positions > (std::numeric_limits<Index>::max)() / row_size()) throw std::bad_array_new_length();
        detail::AlignedBuffer<T> table(positions * row_size());
        std::copy_n(table_.data(), reserved_ * row_size(), table.data());
        for (Index i = reserved_; i < positions; ++i) compute(i, 0, half_, table.data() + i * row_size());
        table_ = std::move(table);
        reserved_ = positions;
    }

    /// Rotates row `i` of `x`, `[m, d]`, by position `first_position + i`.
    ///
    /// Throws std::invalid_argument, and changes nothing then, if `x` does not have `d` columns or a position is
    /// negative or above 2^40.
    void rotate(MatrixView<T> x, Index first_position) const { turn_from(x, first_position, forwards); }

    /// Rotates row `i` of `x`, `[m, d]`, by position `positions[i]`: several sequences in one matrix, or tokens that
    /// are not neighbours. Throws as above, or if `positions.size()` differs from the number of rows.
    void rotate(MatrixView<T> x, std::span<const Index> positions) const { turn_at(x, positions, forwards); }

    /// Inverse rotation. Maps the gradient with respect to the rotated rows to that with respect to the unrotated rows.
    /// Throws as `rotate`.
    void rotate_back(MatrixView<T> x, Index first_position) const { turn_from(x, first_position, backwards); }

    /// As above, row `i` by position `positions[i]`.
    void rotate_back(MatrixView<T> x, std::span<const Index> positions) const { turn_at(x, positions, backwards); }

  private:
    template <Scalar Weight>
    friend class detail::LayerHeads;

    using S = detail::Simd<T>;

    static constexpr std::string_view where = "RotaryTable";
    static constexpr auto forwards = [](auto sin) CASTLE_INLINE_LAMBDA { return sin; };
    static constexpr auto backwards = [](auto sin) CASTLE_INLINE_LAMBDA { return S::negate(sin); };

    static Index checked(Index d, double base) {
        constexpr Index most = Index(1) << 24;
        if (d < 2 || d % 2 != 0) detail::fail(where, "d is ", d, " but must be even and at least 2");
        if (d > most) detail::fail(where, "d is ", d, " but must not exceed ", most);
        detail::check_rotary_base(where, base);
        return d;
    }

    void check_rows(MatrixView<T> x) const {
        const detail::Call call{
            .where = where, .rows = x.rows(), .rows_of = "the rows of x", .object = "a table", .shape = {.d = d()}};
        call.check_argument("", "x", x, d());
    }
    static void check_positions(MatrixView<T> x, Index first) {
        detail::check_tokens(where, "first_position", first);
        if (x.rows() > 0 && first > detail::most_tokens - (x.rows() - 1)) {
            detail::fail(where, "first_position is ", first, " and x has ", x.rows(),
                         " rows but no position may exceed ", detail::most_tokens);
        }
    }
    static void check_positions(MatrixView<T> x, std::span<const Index> positions) {
        if (Index(positions.size()) != x.rows()) {
            detail::fail(where, "positions has ", Index(positions.size()), " elements but x has ", x.rows(), " rows");
        }
        for (std::size_t i = 0; i < positions.size(); ++i) {
            if (positions[i] < 0 || positions[i] > detail::most_tokens) {
                detail::fail(where, "positions[", Index(i), "] is ", positions[i],
                             " but must be at least 0 and must not exceed ", detail::most_tokens);
            }
        }
    }

    // A row of the table is the cosines and then the sines, each padded to whole packets.
    Index padded() const { return detail::round_up(half_, S::width); }
    Index row_size() const { return 2 * padded(); }

    // The cosines of `count` pairs from `first` on to row, and their sines padded() elements behind.
    void compute(Index position, Index first, Index count, T* row) const {
        compute(position, first, count, row, row + padded());
    }
    void compute(Index position, Index first, Index count, T* cos, T* sin) const {
        for (Index k = 0; k < count; ++k) {
            const double angle = static_cast<double>(position) * frequencies_[std::size_t(first + k)];
            cos[k] = static_cast<T>(std::cos(angle));
            sin[k] = static_cast<T>(std::sin(angle));
        }
    }

    // For a caller who turns many rows at one position: row_size() elements at row, and the rotation of x by them.
    void fill(Index position, T* row) const {
        if (position < reserved_) {
            std::copy_n(table_.data() + position * row_size(), row_size(), row);
        } else {
            compute(position, 0, half_, row);
        }
    }
    void rotate_row(T* x, const T* row) const { turn(x, 0, half_, row, row + padded(), forwards); }
    void rotate_row_back(T* x, const T* row) const { turn(x, 0, half_, row, row + padded(), backwards); }

    template <class Sine>
    void turn_from(MatrixView<T> x, Index first_position, const Sine& sine) const {
        check_rows(x);
        check_positions(x, first_position);
        turn_rows(
            x, [&](Index i) { return first_position + i; }, sine);
    }
    template <class Sine>
    void turn_at(MatrixView<T> x, std::span<const Index> positions, const Sine& sine) const {
        check_rows(x);
        check_positions(x, positions);
        turn_rows(
            x, [&](Index i) { return positions[std::size_t(i)]; }, sine);
    }

    // Angles that are not in the table are computed some at a time.
    template <class Position, class Sine>
    void turn_rows(MatrixView<T> x, const Position& position, const Sine& sine) const {
        constexpr Index some = 64;
        static_assert(some % S::width == 0);
        T cos[some] = {};
        T sin[some] = {};
        for (Index i = 0; i < x.rows(); ++i) {
            if (position(i) < reserved_) {
                const T* row = table_.data() + position(i) * row_size();
                turn(x.row(i), 0, half_, row, row + padded(), sine);
                continue;
            }
            for (Index k = 0; k < half_; k += some) {
                const Index count = (std::min)(some, half_ - k);
                compute(position(i), k, count, cos, sin);
                turn(x.row(i), k, count, cos, sin, sine);
            }
        }
    }

    // Turns `count` pairs of x from `first` on; cos and sin are theirs, readable up to a whole packet.
    template <class Sine>
    void turn(T* x, Index first, Index count, const T* cos, const T* sin, const Sine& sine) const {
        T* a = x + first;
        T* b = x + half_ + first;
        Index k = 0;
        for (; k + S::width <= count; k += S::width) turn_packet(a + k, b + k, cos + k, sin + k, sine);
        if (k < count) {
            T low[S::width] = {};
            T high[S::width] = {};
            std::copy_n(a + k, count - k, low);
            std::copy_n(b + k, count - k, high);
            turn_packet(low, high, cos + k, sin + k, sine);
            std::copy_n(low, count - k, a + k);
            std::copy_n(high, count - k, b + k);
        }
    }

    template <class Sine>
    static void turn_packet(T* low, T* high, const T* cosines, const T* sines, const Sine& sine) {
        const auto a = S::load(low), b = S::load(high);
        const auto cos = S::load(cosines), sin = sine(S::load(sines));
        S::store(low, S::fma(a, cos, S::negate(S::mul(b, sin))));
        S::store(high, S::fma(b, cos, S::mul(a, sin)));
    }

    double base_;
    Index half_;
    detail::SelfMovable<std::vector<double>> frequencies_;
    detail::AlignedBuffer<T> table_;  // [reserved][row_size]
    Index reserved_ = 0;
};

/// Rotary position embedding in place: row `i` of `x`, `[m, d]`, is at position `first_position + i`, and its elements
/// `k` and `k + d / 2` are turned as a pair by the angle `position base^(-2 k / d)`.
///
/// The short way in: every call makes a RotaryTable, so it allocates `d / 2` doubles and takes `d / 2` powers, and then
/// a cosine and a sine for every pair of `x`. Code that rotates often keeps a RotaryTable, which is bitwise identical.
///
/// Throws std::invalid_argument if `d` is odd or above 2^24, a position negative or above 2^40, or the base below 1 or
/// not finite.
template <class X, ComputeScalar T = typename std::remove_cvref_t<X>::value_type>
requires std::convertible_to<X&&, MatrixView<T>>
void rotate(X&& x, Index first_position, double base = Rotary{}.base) {
    const MatrixView<T> rows(x);
    if (rows.cols() % 2 != 0) {
        detail::fail("rotate", "x is ", detail::extents_of(rows), " but must have an even number of columns");
    }
    detail::check_rotary_base("rotate", base);
    detail::check_tokens("rotate", "first_position", first_position);
    detail::Call{.where = "rotate", .rows = rows.rows(), .rows_of = "the rows of x", .object = "x"}.check_argument(
        "", "x", rows, rows.cols());
    if (rows.cols() > 0) RotaryTable<T>(rows.cols(), base).rotate(rows, first_position);
}

// Instead of "no matching function", as at the views.
template <class X, detail::ScalarOfColumnMajor<X> T = typename std::remove_cvref_t<X>::value_type,
          class Needed = detail::row_major_matrix>
void rotate(X&&, Index, double = 0) = delete;

}  // namespace CASTLE_ABI
}  // namespace castle
