// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <castle/detail/score/absorption.hpp>
#include <castle/options.hpp>

// Against the definition, s < t <= s + window, over every pair.
namespace {

using castle::Index;
namespace detail = castle::detail;
using detail::Absorbed;

bool absorbs(Index s, Index t, Index window) { return s < t && t - s <= window; }

Absorbed counted(Index first, Index count, Index origin, Index end, Index window) {
    Index yes = 0;
    for (Index s = first; s < first + count; ++s) {
        for (Index t = origin; t < end; ++t) yes += absorbs(s, t, window);
    }
    if (yes == 0) return Absorbed::none;
    return yes == count * (end - origin) ? Absorbed::all : Absorbed::some;
}

template <class F>
void for_blocks_and_panels(const F& f) {
    for (const Index window :
         {Index(0), Index(1), Index(31), Index(32), Index(33), Index(64), Index(100), Index(128), castle::unlimited}) {
        for (Index origin = 0; origin < 10 * detail::block_size; origin += detail::block_size) {
            for (const Index tokens : {0, 1, 2, 17, 31, 32}) {
                for (Index p = 0; p <= (origin + tokens) / detail::panel_size; ++p) f(window, origin, tokens, p);
            }
        }
    }
}

TEST(Absorption, KeysAreToldApartAsTheyAreCounted) {
    for_blocks_and_panels([](Index window, Index origin, Index tokens, Index p) {
        const detail::AbsorbedTokens absorbed(window, origin, origin + tokens);
        for (const Index count : {detail::block_size, detail::panel_size}) {
            for (Index c = 0; c < detail::panel_size; c += count) {
                const Index first = p * detail::panel_size + c;
                ASSERT_EQ(absorbed.by_keys(first, count), counted(first, count, origin, origin + tokens, window))
                    << "window " << window << ", keys from " << first << ", tokens from " << origin;
            }
        }
    });
}

TEST(Absorption, ColumnsAreThoseOfTheDefinition) {
    for_blocks_and_panels([](Index window, Index origin, Index tokens, Index p) {
        const detail::AbsorbedTokens absorbed(window, origin, origin + tokens);
        for (Index j = 0; j < tokens; ++j) {
            const detail::ColumnRange range = absorbed.columns(j, p);
            for (Index c = 0; c < detail::panel_size; ++c) {
                ASSERT_EQ(range.begin <= c && c < range.end, absorbs(p * detail::panel_size + c, origin + j, window))
                    << "window " << window << ", panel " << p << ", column " << c << ", token " << origin + j;
            }
        }
    });
}

TEST(Absorption, RangesCoverTheColumnsInOrder) {
    for_blocks_and_panels([](Index window, Index origin, Index tokens, Index p) {
        const detail::AbsorbedTokens absorbed(window, origin, origin + tokens);
        for (const Index columns : {detail::block_size, detail::panel_size}) {
            Index next = 0;
            absorbed.for_column_ranges(p, columns, [&](auto size, Index first, Absorbed kind) {
                EXPECT_EQ(first, next);
                next += size;
                EXPECT_EQ(kind, counted(p * detail::panel_size + first, size, origin, origin + tokens, window));
            });
            ASSERT_EQ(next, columns);
        }
    });
}

}  // namespace
