// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <type_traits>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/tile.hpp>

// Which keys absorb which tokens: key s absorbs token t where s < t <= s + window.
namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Which pairs of a range of keys and a range of tokens there are where the key absorbs the token.
enum class Absorbed { none, some, all };

// The first panel with keys that absorb tokens of the block of `token`.
inline Index oldest_panel(Index window, Index token) {
    const Index origin = round_down(token, block_size);
    return window < origin ? (origin - window) / panel_size : 0;
}

// The tokens [origin, end) of one block, to be absorbed.
class AbsorbedTokens {
  public:
    AbsorbedTokens(Index window, Index origin, Index end) : window_(window), origin_(origin), end_(end) {}

    // By `count` keys from key `first` on.
    Absorbed by_keys(Index first, Index count) const {
        const Index last = first + count - 1;
        if (window_ == 0 || origin_ == end_) return Absorbed::none;
        if (first >= end_ - 1 || last < origin_ - window_) return Absorbed::none;
        return last < origin_ && first >= end_ - 1 - window_ ? Absorbed::all : Absorbed::some;
    }

    // The columns of panel p whose keys absorb the j-th token.
    ColumnRange columns(Index j, Index p) const {
        const Index token = origin_ + j;
        const Index first = p * panel_size;
        const Index oldest = window_ < token ? token - window_ : 0;
        const Index begin = std::clamp<Index>(oldest - first, 0, panel_size);
        return {begin, std::clamp<Index>(token - first, begin, panel_size)};
    }

    // Covers the first `columns` columns of panel p, a multiple of the block size, with ranges, and calls
    // f(size, first, absorbed) for each of them: the whole panel where it is of one kind, which is the rule, and
    // otherwise each block of keys. The size comes as a constant.
    template <class F>
    EIGEN_ALWAYS_INLINE void for_column_ranges(Index p, Index columns, const F& f) const {
        const Absorbed whole = by_keys(p * panel_size, panel_size);
        if (columns == panel_size && whole != Absorbed::some) {
            f(std::integral_constant<Index, panel_size>{}, Index(0), whole);
            return;
        }
        for (Index c = 0; c < columns; c += block_size) {
            f(std::integral_constant<Index, block_size>{}, c, by_keys(p * panel_size + c, block_size));
        }
    }

  private:
    Index window_;
    Index origin_;
    Index end_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
