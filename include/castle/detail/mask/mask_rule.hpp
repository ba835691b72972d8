// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/scalar.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Keys [begin, end).
struct KeyRange {
    Index begin;
    Index end;
};

// The end of a range that goes as far as there are keys.
inline constexpr Index every_key = (std::numeric_limits<Index>::max)();

// Bit j is key 64 p + j: those of the range.
inline std::uint64_t range_word(Index begin, Index end, Index p) {
    const Index first = p * panel_size;
    begin = std::clamp<Index>(begin - first, 0, panel_size);
    end = end >= first + panel_size ? panel_size : (std::max)(end - first, Index(0));
    if (begin >= end) return 0;
    return (~std::uint64_t(0) >> (panel_size - (end - begin))) << begin;
}

// What is behind a mask: for a row and a panel of keys a word, in which bit j stands for key 64 p + j.
class MaskRule {
  public:
    MaskRule() = default;
    MaskRule(const MaskRule&) = delete;
    MaskRule& operator=(const MaskRule&) = delete;
    virtual ~MaskRule() = default;

    // to[i] is the word of row first + i, for the rows [first, end) and panel p. Bits of keys that are not there, from
    // `keys` on, mean what the mask says of them; a function of the user's is not asked about them.
    virtual void words(Index first, Index end, Index p, Index keys, std::uint64_t* to) const = 0;

    // No row of [first, end) sees a key outside of it.
    virtual KeyRange reach(Index first, Index end) const = 0;

    // One after the last key that has to be there for these rows; masks that show what is there ask for none.
    virtual Index needs(Index first, Index end) const {
        const Index last = reach(first, end).end;
        return last == every_key ? 0 : last;
    }

    // How many rows it knows.
    virtual Index rows() const { return every_key; }

    // Whether every row sees the key at its own position.
    virtual bool sees_itself() const { return false; }

    // Of documents that come one after the other from row 0 on: their lengths; otherwise none.
    virtual std::span<const Index> lengths() const { return {}; }
    // The mask within document i, null where it is the causal one.
    virtual std::shared_ptr<const MaskRule> within(Index) const { return nullptr; }

    std::uint64_t word(Index row, Index p, Index keys) const {
        std::uint64_t one;
        words(row, row + 1, p, keys, &one);
        return one;
    }
};

// Those of a mask that may be the causal one, which is null.
inline std::uint64_t word_of(const MaskRule* rule, Index row, Index p, Index keys) {
    return rule != nullptr ? rule->word(row, p, keys) : range_word(0, row + 1, p);
}
inline KeyRange reach_of(const MaskRule* rule, Index first, Index end) {
    return rule != nullptr ? rule->reach(first, end) : KeyRange{0, end};
}

// One that has a function for a row's word.
template <class Own>
class RowRule : public MaskRule {
  public:
    void words(Index first, Index end, Index p, Index keys, std::uint64_t* to) const final {
        for (Index row = first; row < end; ++row) to[row - first] = static_cast<const Own*>(this)->of_row(row, p, keys);
    }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
