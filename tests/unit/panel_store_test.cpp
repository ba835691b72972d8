// SPDX-License-Identifier: Apache-2.0
#include <castle/detail/panel_store.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <vector>

#include <gtest/gtest.h>

namespace {

using castle::Index;
using castle::detail::AlignedBuffer;
using castle::detail::PanelStore;

bool is_zero(const double* panel, Index numbers) {
    return std::all_of(panel, panel + numbers, [](double x) { return x == 0; });
}

TEST(AlignedBuffer, StandsOnACacheLineAndIsZeroWhateverItsSize) {
    // Below, at, and well above the size of a huge page, and no whole number of them.
    for (const Index size : {1, 1 << 18, (1 << 18) + 1, 1000003}) {
        const AlignedBuffer<double> buffer(size);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0U) << size;
        EXPECT_TRUE(is_zero(buffer.data(), size)) << size;
    }
}

TEST(PanelStore, KeepsPanelsWhereTheyAreWhenItGrows) {
    constexpr Index numbers = 24;
    PanelStore<double> store(numbers);
    std::vector<double*> before;
    for (const Index panels : {1, 2, 7, 7, 3, 40}) {
        const Index expected = std::max(panels, store.size());
        store.add(store.missing(panels));
        ASSERT_EQ(store.size(), expected);
        EXPECT_EQ(store.numbers(), expected * numbers);
        for (Index p = 0; p < Index(before.size()); ++p) {
            EXPECT_EQ(store[p], before[std::size_t(p)]);
            EXPECT_EQ(store[p][numbers - 1], double(p));
        }
        for (Index p = Index(before.size()); p < store.size(); ++p) {
            EXPECT_TRUE(is_zero(store[p], numbers));
            store[p][numbers - 1] = double(p);
            before.push_back(store[p]);
        }
    }
}

TEST(PanelStore, LaysPanelsThatComeTogetherOneAfterTheOther) {
    PanelStore<double> store(8);
    store.add(store.missing(5));
    for (Index p = 1; p < 5; ++p) EXPECT_EQ(store[p], store[p - 1] + 8);
}

TEST(PanelStore, ThatCannotHoldSoManyPanelsIsAsItWas) {
    PanelStore<double> store(Index(1) << 32);
    EXPECT_THROW(static_cast<void>(store.missing(Index(1) << 32)), std::bad_alloc);
    EXPECT_THROW(static_cast<void>(store.missing(std::numeric_limits<Index>::max())), std::bad_alloc);
    EXPECT_EQ(store.size(), 0);
}

}  // namespace
