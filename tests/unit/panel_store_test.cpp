// SPDX-License-Identifier: Apache-2.0
#include <castle/detail/state/panel_store.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace {

using castle::Index;
using castle::detail::AlignedBuffer;
using castle::detail::PanelStore;

bool is_zero(const double* panel, Index elements) {
    return std::all_of(panel, panel + elements, [](double x) { return x == 0; });
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
    constexpr Index elements = 24;
    PanelStore<double> store(elements);
    std::vector<double*> before;
    for (const Index panels : {1, 2, 7, 7, 3, 40}) {
        const Index expected = std::max(panels, store.size());
        store.add(store.missing(panels));
        ASSERT_EQ(store.size(), expected);
        EXPECT_EQ(store.elements(), expected * elements);
        for (Index p = 0; p < Index(before.size()); ++p) {
            EXPECT_EQ(store[p], before[std::size_t(p)]);
            EXPECT_EQ(store[p][elements - 1], double(p));
        }
        for (Index p = Index(before.size()); p < store.size(); ++p) {
            EXPECT_TRUE(is_zero(store[p], elements));
            store[p][elements - 1] = double(p);
            before.push_back(store[p]);
        }
    }
}

TEST(PanelStore, LaysPanelsThatComeTogetherOneAfterTheOther) {
    PanelStore<double> store(8);
    store.add(store.missing(5));
    for (Index p = 1; p < 5; ++p) EXPECT_EQ(store[p], store[p - 1] + 8);
}

TEST(PanelStore, TakesPanelsOfItsSlabsAgainThatNobodyHolds) {
    PanelStore<double> store(8);
    store.add(store.missing(5));
    for (Index p = 0; p < 5; ++p) std::fill_n(store[p], 8, double(p + 1));
    PanelStore<double> fork = store.share(2);
    PanelStore<double> other = store.share(2);
    double* const first = store[0];
    store = PanelStore<double>(8);
    {
        const auto unused = fork.missing(4);
        EXPECT_EQ(unused.size(), 2U);
    }
    fork.add(fork.missing(4));
    other.add(other.missing(4));
    fork.add(fork.missing(7));
    EXPECT_EQ(fork.size(), 7);
    for (Index p = 0; p < 4; ++p) EXPECT_EQ(fork[p], first + 8 * p);
    for (Index p = 2; p < 7; ++p) EXPECT_TRUE(is_zero(fork[p], 8)) << p;
    // The fork was first.
    EXPECT_EQ(other[1], first + 8);
    for (Index p = 2; p < 4; ++p) {
        for (Index q = 2; q < 7; ++q) EXPECT_NE(other[p], fork[q]);
        EXPECT_FALSE(other.is_shared(p));
    }
}

TEST(PanelStore, GivesAPanelToOneThreadAtATime) {
    constexpr Index elements = 64;
    PanelStore<double> store(elements);
    store.add(store.missing(2));
    double* const free = store[1];
    std::vector<PanelStore<double>> forks;
    for (int i = 0; i < 4; ++i) forks.push_back(store.share(1));
    store = PanelStore<double>(elements);
    std::atomic<int> taken = 0, wrong = 0;
    std::vector<std::thread> threads;
    for (auto& fork : forks) {
        threads.emplace_back([&, own = double(threads.size() + 1)] {
            for (int turn = 0; turn < 5000; ++turn) {
                const auto panels = fork.missing(2);
                double* const panel = panels.front().data();
                taken += panel == free ? 1 : 0;
                if (!is_zero(panel, elements)) ++wrong;
                std::fill_n(panel, elements, own);
                if (std::count(panel, panel + elements, own) != elements) ++wrong;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GT(taken, 0);
    EXPECT_EQ(wrong, 0);
}

TEST(PanelStore, ThatCannotHoldSoManyPanelsIsAsItWas) {
    PanelStore<double> store(Index(1) << 32);
    EXPECT_THROW(static_cast<void>(store.missing(Index(1) << 32)), std::bad_alloc);
    EXPECT_THROW(static_cast<void>(store.missing(std::numeric_limits<Index>::max())), std::bad_alloc);
    EXPECT_EQ(store.size(), 0);
}

}  // namespace
