// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/simd/product.hpp>
#include <castle/detail/simd/simd.hpp>
#include <castle/mask.hpp>

// Masks as the kernels use them: for each row of a block a word over the keys of one panel, in which bit j stands for
// column j.
//
// What a word leaves out is set to 0 and multiplied along, as long as all that it is multiplied with is finite, which
// is looked up before: nothing comes of it then. Otherwise it is left out for real, run by run.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// What the rows of a block see of a panel.
enum class Cover { none, some, all };

using BlockWords = std::array<std::uint64_t, std::size_t(block_size)>;

// Of rows [first, end) of the words.
inline Cover cover_of(const BlockWords& words, Index first, Index end) {
    std::uint64_t any = 0, every = ~std::uint64_t(0);
    for (Index i = first; i < end; ++i) {
        any |= words[std::size_t(i)];
        every &= words[std::size_t(i)];
    }
    return any == 0 ? Cover::none : ~every == 0 ? Cover::all : Cover::some;
}

// The blocks of keys, as columns, of which rows [first, end) of the words have any; the whole panel if there are none.
inline ColumnRange blocks_with(const BlockWords& words, Index first, Index end) {
    std::uint64_t any = 0;
    for (Index i = first; i < end; ++i) any |= words[std::size_t(i)];
    const bool in_first = any << block_size != 0, in_second = any >> block_size != 0;
    return {in_second && !in_first ? block_size : 0, in_first && !in_second ? block_size : panel_size};
}

// From the first to the last set bit of a word.
inline ColumnRange range_of(std::uint64_t word) {
    if (word == 0) return {0, 0};
    return {Index(std::countr_zero(word)), Index(std::bit_width(word))};
}

// Sets words[i] for the tokens [first, end) of the block at `origin`: which keys of panel p they see, of `keys` keys.
inline void see(const MaskRule* rule, Index origin, Index first, Index end, Index p, Index keys, BlockWords& words) {
    std::uint64_t* to = words.data() + (first - origin);
    if (rule == nullptr) {
        for (Index t = first; t < end; ++t) to[t - first] = range_word(0, t + 1, p);
        return;
    }
    rule->words(first, end, p, keys, to);
    const std::uint64_t there = range_word(0, keys, p);
    for (Index i = 0; i < end - first; ++i) to[i] &= there;
}

// The same for which keys absorb them: earlier ones that they see, and within the window.
inline void absorb(const BlockWords& seen, Index window, Index origin, Index first, Index end, Index p,
                   BlockWords& words) {
    for (Index t = first; t < end; ++t) {
        const std::size_t i = std::size_t(t - origin);
        words[i] = seen[i] & range_word(window < t ? t - window : 0, t, p);
    }
}

// Which keys of panel p absorb the tokens [first, end) of the block at `origin` under a mask; none absorb others.
inline BlockWords absorbed_words(const MaskRule* rule, Index window, Index origin, Index first, Index end, Index p,
                                 Index keys) {
    BlockWords seen, absorbed{};
    see(rule, origin, first, end, p, keys, seen);
    absorb(seen, window, origin, first, end, p, absorbed);
    return absorbed;
}

// For each of so many keys a word over so many tokens, from the tokens' words over keys.
inline std::array<std::uint64_t, std::size_t(panel_size)> transposed_words(const std::uint64_t* words, Index tokens,
                                                                           Index keys) {
    std::array<std::uint64_t, std::size_t(panel_size)> by_key{};
    for (Index i = 0; i < tokens; ++i) {
        for (Index key = 0; key < keys; ++key) by_key[std::size_t(key)] |= (words[i] >> key & 1) << i;
    }
    return by_key;
}

// Eight lanes for every byte, all bits of a lane set or none.
template <ComputeScalar T>
struct ByteLanes {
    using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

    alignas(64) static constexpr auto of = [] {
        std::array<std::array<T, 8>, 256> lanes{};
        for (std::size_t byte = 0; byte < 256; ++byte) {
            for (std::size_t j = 0; j < 8; ++j) {
                lanes[byte][j] = std::bit_cast<T>((byte >> j & 1) != 0 ? ~Bits(0) : Bits(0));
            }
        }
        return lanes;
    }();
};

// The lanes of the word's columns, as masks for Simd<T>::select.
template <ComputeScalar T>
class Lanes {
    using S = Simd<T>;

  public:
    explicit Lanes(std::uint64_t word) : word_(word) {}

    // Those of the packet at column c.
    EIGEN_ALWAYS_INLINE typename S::Packet operator[](Index c) const {
        const auto of_byte = [&](Index first) { return ByteLanes<T>::of[std::size_t(word_ >> first & 0xff)].data(); };
        if constexpr (S::width <= 8) {
            return S::load(of_byte(c & ~Index(7)) + (c & 7));
        } else {
            alignas(64) T lanes[std::size_t(S::width)];
            for (Index j = 0; j < S::width; j += 8) std::memcpy(lanes + j, of_byte(c + j), 8 * sizeof(T));
            return S::load(lanes);
        }
    }

  private:
    std::uint64_t word_;
};

// x = other in the columns that the word leaves out of Cols.
template <Index Cols, Scalar T>
void keep_columns(std::uint64_t word, Compute<T> other, T* x) {
    using S = Simd<Compute<T>>;
    const Lanes<Compute<T>> lanes(word);
    for_packets<Compute<T>, Cols>(
        [&](Index c) CASTLE_INLINE_LAMBDA { S::store(x + c, S::select(lanes[c], S::load(x + c), S::set(other))); });
}

// Whether all numbers of a matrix are finite; rows lie `stride` elements apart.
template <Scalar T>
bool is_finite(const T* x, Index rows, Index cols, Index stride) {
    using S = Simd<Compute<T>>;
    // Several sums, so that none waits for another.
    constexpr int sums = 4;
    typename S::Packet zero_or_nan[sums] = {S::zero(), S::zero(), S::zero(), S::zero()};
    Compute<T> rest = 0;
    const Index whole = round_down(cols, sums * S::width);
    for (Index i = 0; i < rows; ++i) {
        const T* row = x + i * stride;
        for (Index c = 0; c < whole; c += sums * S::width) {
            unroll<sums>([&](auto j) CASTLE_INLINE_LAMBDA {
                const auto packet = S::load(row + c + j * S::width);
                zero_or_nan[j] = S::add(zero_or_nan[j], S::sub(packet, packet));
            });
        }
        for (Index c = whole; c < cols; ++c) rest += widened(row[c]) - widened(row[c]);
    }
    for (int j = 1; j < sums; ++j) zero_or_nan[0] = S::add(zero_or_nan[0], zero_or_nan[j]);
    return !std::isnan(S::sum(zero_or_nan[0]) + rest);
}
// The same of an operand's rows and columns, one of which lies side by side in memory.
template <Scalar T>
bool is_finite(const Operand<T>& a, Index rows, Index cols) {
    return a.col == 1 ? is_finite(a.data, rows, cols, a.row) : is_finite(a.data, cols, rows, a.col);
}
// Of pairs that lie side by side along k.
template <Scalar T>
bool is_finite(const PairOperand<T>& a, Index rows, Index cols) {
    return is_finite(a.data, rows, cols, a.row);
}

// Calls f(range) for the runs of set bits of a word, in order.
template <class F>
void for_runs(std::uint64_t word, const F& f) {
    for (Index begin = 0; word != 0;) {
        const Index skip = std::countr_zero(word);
        word >>= skip;
        const Index length = std::countr_one(word);
        begin += skip;
        f(ColumnRange{begin, begin + length});
        word = length < panel_size ? word >> length : 0;
        begin += length;
    }
}

// tile += a b for the rows of b of which the word has a bit, whatever stands in others.
template <Scalar A, Scalar B, ComputeScalar T, int V>
EIGEN_ALWAYS_INLINE void multiply_add_rows(Operand<A> a, const B* b, Index stride, std::uint64_t word,
                                           Tile<T, 1, V>& tile) {
    for_runs(word, [&](const ColumnRange& run) {
        tile.multiply_add(a.cols_from(run.begin), b + run.begin * stride, stride, run.end - run.begin);
    });
}
template <Scalar H, Scalar B, ComputeScalar T, int V>
EIGEN_ALWAYS_INLINE void multiply_add_rows(PairOperand<H> a, const B* b, Index stride, std::uint64_t word,
                                           Tile<T, 1, V>& tile) {
    const auto lanes = [&](Index k) {
        return Simd<T>::less(Simd<T>::zero(), Simd<T>::set(static_cast<T>(word >> k & 1)));
    };
    for (Index k = 0; k < panel_size; k += 2) {
        if ((word >> k & 3) == 0) continue;
        tile.multiply_add_pair_where(
            a.cols_from(k), b + k * stride, stride, (word >> k & 2) != 0, [&](auto) { return lanes(k); },
            [&](auto) { return lanes(k + 1); });
    }
}

// c[rows, Cols] += a b, where row k of b, of n, counts only in the columns of words[k], whatever stands elsewhere.
template <Index Cols, Scalar A, Scalar B, ComputeScalar T>
void multiply_add_where(Index rows, Index n, Operand<A> a, const B* b, Index b_stride, T* c, Index c_stride,
                        const std::uint64_t* words) {
    for (Index k = 0; k < n; ++k) {
        for_runs(words[k], [&](const ColumnRange& run) {
            for (Index i = 0; i < rows; ++i) {
                for_column_tiles<T, Cols, 1>([&](auto packets, Index j) {
                    Tile<T, 1, constant<decltype(packets)>> tile;
                    tile.load(c + i * c_stride + j, c_stride);
                    tile.multiply_add_within(a.rows_from(i).cols_from(k), b + k * b_stride + j, b_stride, 1, j,
                                             [&](Index) { return run; });
                    tile.store(c + i * c_stride + j, c_stride);
                });
            }
        });
    }
}
template <Index Cols, Scalar H, Scalar B, ComputeScalar T>
void multiply_add_where(Index rows, Index n, PairOperand<H> a, const B* b, Index b_stride, T* c, Index c_stride,
                        const std::uint64_t* words) {
    for (Index k = 0; k < n; k += 2) {
        const bool has_second = k + 1 < n;
        const std::uint64_t first = words[k], second = has_second ? words[k + 1] : 0;
        if ((first | second) == 0) continue;
        for (Index i = 0; i < rows; ++i) {
            for_column_tiles<T, Cols, 1>([&](auto packets, Index j) {
                Tile<T, 1, constant<decltype(packets)>> tile;
                tile.load(c + i * c_stride + j, c_stride);
                tile.multiply_add_pair_where(
                    a.rows_from(i).cols_from(k), b + k * b_stride + j, b_stride, has_second,
                    [&](auto) { return Lanes<T>(first)[j]; }, [&](auto) { return Lanes<T>(second)[j]; });
                tile.store(c + i * c_stride + j, c_stride);
            });
        }
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
