// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/packet_math.hpp>
#include <castle/detail/simd/simd.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The state of a row over some keys, (largest, sum, out): the largest score, the sum of exp(score - largest) in parts,
// one a lane of a packet, that over the keys of a second mask, where one is asked for, and the sum of
// exp(score - largest) v. Before the first key it is (minus infinity, 0, 0).
template <ComputeScalar T>
struct SpanState {
    T largest;
    const T* sum;
    const T* mass;
    const T* out;
};

// The states of some rows over one span of keys.
template <ComputeScalar T>
class SpanStates {
  public:
    static constexpr Index lanes = Simd<T>::width;

    // In whole cache lines: those of neighbouring spans are written at the same time.
    static Index elements(Index rows, Index dv_padded) {
        return round_up(rows * (dv_padded + 2 * lanes + 1), cache_line / Index(sizeof(T)));
    }

    SpanStates(T* data, Index rows, Index dv_padded) : data_(data), rows_(rows), dv_padded_(dv_padded) {}

    T* out(Index row) const { return data_ + row * dv_padded_; }
    T* sum(Index row) const { return data_ + rows_ * dv_padded_ + row * lanes; }
    T* mass(Index row) const { return data_ + rows_ * (dv_padded_ + lanes) + row * lanes; }
    T* largest() const { return data_ + rows_ * (dv_padded_ + 2 * lanes); }

    SpanState<T> of(Index row) const {
        return {.largest = largest()[row], .sum = sum(row), .mass = mass(row), .out = out(row)};
    }

    // As before the first key, for the first `count` rows.
    void clear(Index count) const {
        std::fill_n(out(0), count * dv_padded_, T(0));
        std::fill_n(sum(0), count * lanes, T(0));
        std::fill_n(mass(0), count * lanes, T(0));
        std::fill_n(largest(), count, -std::numeric_limits<T>::infinity());
    }

  private:
    T* data_;
    Index rows_;
    Index dv_padded_;
};

// exp(x) of one x <= 0, as all others are computed.
template <ComputeScalar T>
T exp_of_one(T x) {
    alignas(64) T result[std::size_t(Simd<T>::width)];
    Simd<T>::store(result, exp_nonpositive<T>(Simd<T>::set(x)));
    return result[0];
}

// A row over all of its keys.
template <ComputeScalar T>
struct MergedRow {
    T largest;  // 0 where no score is finite
    T sum;      // of exp(score - largest)
    T mass;     // that over the keys of the second mask
};

// The states state_of(s) of one row over the spans [first, end), at least one, merged in the order of the spans, which
// the bits depend on. The sum of exp(score - largest) v goes to `out`, which may be where the first state has it, but
// not where another one does. A sink is one more score, without a value; minus infinity where there is none.
template <ComputeScalar T, class StateOf>
MergedRow<T> merge_spans(Index first, Index end, T sink, Index dv_padded, bool has_mass, const StateOf& state_of,
                         T* out) {
    using S = Simd<T>;
    constexpr T minus_infinity = -std::numeric_limits<T>::infinity();
    T largest = sink;
    for (Index s = first; s < end; ++s) largest = (std::max)(largest, state_of(s).largest);
    if (largest == minus_infinity) largest = T(0);

    auto sum = S::zero(), mass = S::zero();
    for (Index s = first; s < end; ++s) {
        const SpanState<T> state = state_of(s);
        const auto factor = exp_nonpositive<T>(S::set(state.largest - largest));
        sum = S::fma(factor, S::load(state.sum), sum);
        if (has_mass) mass = S::fma(factor, S::load(state.mass), mass);
        for (Index c = 0; c < dv_padded; c += S::width) {
            const auto x = S::load(state.out + c);
            S::store(out + c, s == first ? S::mul(factor, x) : S::fma(factor, x, S::load(out + c)));
        }
    }
    T total = S::sum(sum);
    if (sink != minus_infinity) total += exp_of_one(sink - largest);
    return {.largest = largest, .sum = total, .mass = has_mass ? S::sum(mass) : T(0)};
}

// The softmax's division, in place. A row that is empty, since it sees no key and has no sink, is 0, and so is its
// mass.
template <ComputeScalar T>
void normalize(MergedRow<T>& row, bool is_empty, Index dv_padded, T* out) {
    using S = Simd<T>;
    if (is_empty) {
        std::fill_n(out, dv_padded, T(0));
        row.mass = T(0);
        return;
    }
    for (Index c = 0; c < dv_padded; c += S::width) {
        S::store(out + c, S::add(S::div(S::load(out + c), S::set(row.sum)), S::zero()));
    }
    row.mass /= row.sum;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
