// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/allocations.hpp"
#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/saved.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Caches that let go of keys behind a sliding window have the bits of those that keep all under the window's mask.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;

template <class T>
class SlidingCache : public ::testing::Test {};
TYPED_TEST_SUITE(SlidingCache, support::Scalars);

constexpr castle::Shape shape{.d = 5, .dv = 3, .heads = 2, .kv_heads = 1};

/// Outputs and log-sum-exps side by side.
template <class T>
Matrix<castle::Compute<T>> run(castle::UqKvCache<T>& cache, const castle::Input<T>& input,
                               const castle::Masks& mask = {}, const castle::Executor& executor = {}) {
    using C = castle::Compute<T>;
    const Index rows = input.causal.q.rows();
    Matrix<T> out(rows, shape.heads * shape.dv);
    Matrix<C> sums(rows, shape.heads), both(rows, shape.heads * (shape.dv + 1));
    castle::extend(cache, input, castle::Output<T>{.out = out, .log_sum_exp = sums}, mask, executor);
    if (rows > 0) both << out.template cast<C>(), sums;
    return both;
}

/// The rows of U that later tokens may see.
template <class T>
Matrix<castle::Compute<T>> seen_keys(const castle::UqKvCache<T>& cache, Index sliding_window) {
    const Index rows = std::min(cache.size(), sliding_window - 1);
    return cache.lookahead_keys().bottomRows(rows);
}

// However calls cut the tokens, and whatever has been rolled back, forked, saved and loaded between them.
TYPED_TEST(SlidingCache, HasTheBitsOfOneThatKeepsAllKeys) {
    using T = TypeParam;
    ThreadPool threads(2);
    std::uint64_t seed = 17100;
    for (const Index sliding : {1, 2, 31, 64, 100, 300}) {
        for (const Index window : {Index(0), Index(7), Index(90), castle::unlimited}) {
            for (const Index rollback : {0, 64, 200}) {
                Random random(++seed);
                const Index length = 1100;
                SCOPED_TRACE(
                    describe("seed ", seed, ", sliding ", sliding, ", window ", window, ", rollback ", rollback));
                const castle::Options options{.lookahead_window = window};
                const Head<T> head = random_heads<T>(random, length, shape);
                castle::UqKvCache<T> all(shape, options, rollback), cache(shape, options, rollback, sliding);
                const auto expected = run(all, head.input(), masks::sliding_window(sliding));
                Index peak = 0;
                while (cache.size() < length) {
                    const Index first = cache.size(), left = length - first;
                    const Index count = std::min<Index>(
                        left, random.integer(0, 3) == 0 ? random.integer(1, 400) : random.integer(1, 40));
                    const auto out = run(cache, head.input().tokens(first, count), {},
                                         random.integer(0, 2) == 0 ? threads.executor() : castle::Executor());
                    ASSERT_TRUE(same_bits(out, Matrix<castle::Compute<T>>(expected.middleRows(first, count))))
                        << count << " tokens onto " << first;
                    peak = std::max(peak, cache.size());
                    ASSERT_GE(cache.max_rollback(), std::min(cache.size(), rollback - (peak - cache.size())));
                    switch (random.integer(0, 4)) {
                        case 0:
                            cache.rollback(random.integer(0, std::min<Index>(cache.max_rollback(), 90)));
                            break;
                        case 1: {
                            // Other tokens, in the fork or in the cache that it was made from.
                            castle::UqKvCache<T> fork = cache.fork();
                            const Index detour = random.integer(1, 300);
                            run(random.integer(0, 1) == 0 ? cache : fork, head.input().tokens(0, detour));
                            if (cache.size() != first + count) cache = std::move(fork);
                            break;
                        }
                        case 2: {
                            // Other tokens, and back.
                            const Index detour = random.integer(0, rollback);
                            run(cache, head.input().tokens(0, detour));
                            cache.rollback(detour);
                            peak = std::max(peak, cache.size() + detour);
                            break;
                        }
                        case 3:
                            cache = loaded<T>(saved(cache), rollback);
                            ASSERT_EQ(cache.sliding_window(), sliding);
                            break;
                        default:
                            break;
                    }
                }
                EXPECT_TRUE(same_bits(seen_keys(cache, sliding), seen_keys(all, sliding)));
                cache.clear();
                EXPECT_TRUE(same_bits(run(cache, head.input()), expected)) << "after clear()";
            }
        }
    }
}

TYPED_TEST(SlidingCache, SeesWhatItsWindowAndAMaskShow) {
    using T = TypeParam;
    Random random(17200);
    const Index length = 500, sliding = 70;
    const Head<T> head = random_heads<T>(random, length, shape);
    for (const Index window : {Index(0), castle::unlimited}) {
        for (const Mask& mask : {masks::prefix(300), masks::full(), masks::sliding_window(20, 3),
                                 masks::packed(length, length, [](Index t, Index s) { return (t + s) % 3 != 1; })}) {
            castle::UqKvCache<T> all(shape, {.lookahead_window = window});
            castle::UqKvCache<T> cache(shape, {.lookahead_window = window}, 64, sliding);
            const auto expected = run(all, head.input(), (mask & masks::sliding_window(sliding)).allowing_empty_rows());
            for (Index first = 0; first < length;) {
                const Index count = std::min<Index>(length - first, random.integer(1, 150));
                ASSERT_TRUE(same_bits(run(cache, head.input().tokens(first, count), mask.allowing_empty_rows()),
                                      Matrix<castle::Compute<T>>(expected.middleRows(first, count))));
                first += count;
            }
        }
    }
    castle::UqKvCache<T> cache(shape, {}, 64, sliding);
    const Mask old = masks::packed(length, length, [](Index t, Index s) { return s == t % 100; });
    run(cache, head.first_tokens(100));
    EXPECT_EQ(message<std::invalid_argument>([&] { run(cache, head.input().tokens(100, 1), old); }),
              "castle::extend: row 100 of mask sees none of the 101 keys; if that may be, pass "
              "mask.allowing_empty_rows()");
    EXPECT_EQ(cache.size(), 100);
}

TYPED_TEST(SlidingCache, StopsGrowing) {
    using T = TypeParam;
    Random random(17300);
    const Index length = 3000;
    const Head<T> head = random_heads<T>(random, length, shape);
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        const Index sliding = 200;
        castle::UqKvCache<T> cache(shape, {.lookahead_window = window}, 64, sliding);
        EXPECT_EQ(cache.capacity(), 0);
        run(cache, head.first_tokens(600));
        EXPECT_EQ(cache.capacity(), castle::unlimited);
        const auto bytes = cache.bytes();
        EXPECT_EQ(bytes.total(), cache.bytes_for(length));
        Matrix<T> out(1, shape.heads * shape.dv);
        {
            const Allocations::Count count;
            for (Index t = 600; t < 1600; ++t) castle::extend(cache, head.input().tokens(t, 1), out);
            EXPECT_EQ(count.allocations(), 0);
        }
        cache.reserve(100000000);
        run(cache, head.input().tokens(1600, 1400));
        EXPECT_EQ(cache.bytes(), bytes);
        EXPECT_LE(saved(cache).size(), std::size_t(bytes.total()) + 1000);
        // Of the keys 200, those of a group and what is rolled back, and two panels.
        castle::UqKvCache<T> all(shape, {.lookahead_window = window}, 64);
        run(all, head.first_tokens(200 + 128 + 2 * 64), masks::sliding_window(sliding));
        EXPECT_LE(bytes.total(), all.bytes().total() + Index(sizeof(T)) * 2 * shape.heads * 64);
    }
}

// Also where what was reserved is all that the window ever takes.
TYPED_TEST(SlidingCache, AllocatesNothingWithinWhatWasReserved) {
    using T = TypeParam;
    Random random(1930);
    const Head<T> head = random_heads<T>(random, 700, shape);
    for (const Index window : {Index(0), Index(30), castle::unlimited}) {
        for (const Index reserved : {Index(180), Index(445), Index(700)}) {
            castle::UqKvCache<T> cache(shape, {.lookahead_window = window}, 64, 60);
            castle::extend(cache, head.first_tokens(170));
            cache.reserve(reserved);
            EXPECT_EQ(cache.bytes().total(), cache.bytes_for(reserved));
            Matrix<T> out(1, shape.heads * shape.dv);
            for (Index t = 170; t < reserved; ++t) {
                const Allocations::Count count;
                castle::extend(cache, head.input().tokens(t, 1), out);
                EXPECT_EQ(count.allocations(), 0) << "token " << t << ", window " << window;
            }
        }
    }
}

TYPED_TEST(SlidingCache, OfABatchOrALayerIsAsAlone) {
    using T = TypeParam;
    ThreadPool threads(3);
    Random random(17400);
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Layer<T> layer({.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 4, .seed = 3},
                                     {.lookahead_window = window});
        const std::vector<Index> sliding = {1, 40, castle::unlimited, 150};
        std::vector<castle::LayerCache<T>> alone, together;
        std::vector<castle::LayerCache<T>*> caches;
        for (const Index tokens : sliding) {
            alone.push_back(layer.make_cache());
            together.push_back(layer.make_cache(64, tokens));
        }
        for (auto& cache : together) caches.push_back(&cache);
        const std::vector<std::vector<Index>> calls = {
            {200, 130, 7, 300}, {1, 1, 1, 1}, {0, 70, 200, 1}, {130, 0, 1, 9}};
        for (const auto& counts : calls) {
            Index rows = 0;
            for (const Index count : counts) rows += count;
            Matrix<T> x(rows, 12);
            fill_normal(random, x);
            Matrix<T> y(rows, 12), expected(rows, 12);
            Index first = 0;
            for (std::size_t i = 0; i < counts.size(); ++i) {
                const castle::MatrixView<T> own = castle::MatrixView<T>(expected).middle_rows(first, counts[i]);
                const Mask mask = sliding[i] == castle::unlimited ? Mask() : masks::sliding_window(sliding[i]);
                layer.extend(alone[i], castle::ConstMatrixView<T>(x).middle_rows(first, counts[i]),
                             castle::Output<T>{.out = own}, mask);
                first += counts[i];
            }
            layer.extend(caches, counts, x, y, threads.executor());
            ASSERT_TRUE(same_bits(y, expected));
        }
        std::istringstream file(saved(together[1]));
        EXPECT_EQ(layer.load_cache(file).sliding_window(), 40);
        EXPECT_EQ(together[2].sliding_window(), castle::unlimited);
    }
}

// A panel that begins takes the place of one that is gone, whose lookahead keys forks may still share. For the thread
// sanitizer: whoever begins it writes to memory of its own.
TYPED_TEST(SlidingCache, ForksBeginAPanelOnThreadsOfTheirOwn) {
    using T = TypeParam;
    Random random(17500);
    const Head<T> head = random_heads<T>(random, 2000, shape);
    castle::UqKvCache<T> cache(shape, {}, 0, 64);
    run(cache, head.first_tokens(448));
    for (Index first = 448; first < 1024; first += 64) {
        // Of memory that is shared U is copied where a block is finished.
        castle::UqKvCache<T> before = cache.fork();
        run(cache, head.input().tokens(first, 64));
        castle::UqKvCache<T> fork = cache.fork();
        const castle::Input<T> next = head.input().tokens(first + 64, 5);
        Matrix<castle::Compute<T>> out, of_fork;
        std::thread other([&] { of_fork = run(fork, next); });
        out = run(cache, next);
        other.join();
        ASSERT_TRUE(same_bits(out, of_fork));
        cache.rollback(5);
    }
}

TYPED_TEST(SlidingCache, NeedsAToken) {
    using T = TypeParam;
    EXPECT_EQ(message<std::invalid_argument>([] { castle::UqKvCache<T>(shape, {}, 64, 0); }),
              "castle::UqKvCache: sliding_window is 0 but must be at least 1");
}

}  // namespace
