// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The cache as a container, and that of standard attention as a form of it.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Cache : public ::testing::Test {};
TYPED_TEST_SUITE(Cache, support::Scalars);

TYPED_TEST(Cache, SaysItsSizeShapeAndOptions) {
    using T = TypeParam;
    Random random(1);
    const Head<T> head = random_head<T>(random, {.length = 200, .d = 3, .dv = 5});
    castle::UqKvCache<T> cache({.d = 3, .dv = 5}, {.scale = 0.25, .lookahead_window = 9});
    EXPECT_EQ(cache.size(), 0);
    EXPECT_TRUE(cache.shape() == (castle::Shape{.d = 3, .dv = 5, .heads = 1, .kv_heads = 1}));
    EXPECT_EQ(cache.options().scale, 0.25);
    EXPECT_EQ(cache.options().lookahead_window, 9);
    EXPECT_EQ(cache.lookahead_keys().rows(), 0);
    Index size = 0;
    for (const Index chunk : {1, 0, 31, 32, 64, 65, 7}) {
        castle::extend(cache, head.input().tokens(size, chunk));
        size += chunk;
        EXPECT_EQ(cache.size(), size);
        EXPECT_GE(cache.capacity(), size);
        EXPECT_EQ(cache.lookahead_keys().rows(), size);
        EXPECT_EQ(cache.lookahead_keys().cols(), 3);
    }
}

TYPED_TEST(Cache, ReservesWhatItIsAskedForAndNeverShrinks) {
    using T = TypeParam;
    castle::UqKvCache<T> cache({.d = 3, .dv = 5});
    EXPECT_EQ(cache.capacity(), 0);
    Index before = 0;
    for (const Index tokens : {0, 1, 64, 65, 1000, 10}) {
        cache.reserve(tokens);
        EXPECT_GE(cache.capacity(), std::max(tokens, before));
        before = cache.capacity();
        EXPECT_EQ(cache.size(), 0);
    }
}

TYPED_TEST(Cache, ReservingDoesNotChangeBits) {
    using T = TypeParam;
    Random random(2);
    const Head<T> head = random_head<T>(random, {.length = 300, .d = 5, .dv = 4});
    for (const Index window : {Index(3), Index(70), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const Outcome<T> expected = run_at_once(head.input(), options);
        for (const Index first : {1, 33, 150}) {
            castle::UqKvCache<T> cache(shape_of(head), options);
            Matrix<T> out(300, 4);
            castle::extend(cache, head.first_tokens(first), out.topRows(first));
            cache.reserve(first + 1);
            const Matrix<T> keys = cache.lookahead_keys();
            cache.reserve(5000);
            EXPECT_TRUE(same_bits(cache.lookahead_keys(), keys));
            castle::extend(cache, head.input().tokens(first, 300 - first), out.bottomRows(300 - first));
            EXPECT_TRUE(same_bits(out, expected.output)) << "window " << window << ", first " << first;
            EXPECT_TRUE(same_bits(cache.lookahead_keys(), expected.lookahead_keys));
        }
    }
}

TYPED_TEST(Cache, IsAsNewAfterClear) {
    using T = TypeParam;
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    Random random(3);
    const Head<T> head = random_head<T>(random, {.length = 150, .d = 5, .dv = 4});
    // What was there before must leave no trace, not even of a NaN.
    Head<T> poison({.length = 250, .d = 5, .dv = 4});
    for (Matrix<T>* m : poison.all()) m->setConstant(nan);
    for (const Index window : {Index(0), Index(3), Index(70), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const Outcome<T> expected = run_at_once(head.input(), options);
        castle::UqKvCache<T> cache(shape_of(head), options);
        for (const Index before : {1, 40, 250}) {
            for (const std::vector<Index>& chunks : {std::vector<Index>{150}, one_by_one(150)}) {
                SCOPED_TRACE(describe("window ", window, ", ", before, " tokens before, ", chunks.size(), " chunks"));
                castle::extend(cache, poison.first_tokens(before));
                const Index capacity = cache.capacity();
                cache.clear();
                EXPECT_EQ(cache.size(), 0);
                EXPECT_EQ(cache.capacity(), capacity);
                EXPECT_EQ(cache.lookahead_keys().rows(), 0);
                EXPECT_TRUE(same_bits(run_extend(cache, head.input(), chunks), expected.output));
                EXPECT_TRUE(same_bits(cache.lookahead_keys(), expected.lookahead_keys));
                cache.clear();
            }
        }
    }
}

TYPED_TEST(Cache, SaysItsBytes) {
    using T = TypeParam;
    castle::UqKvCache<T> castle({.d = 16, .dv = 16});
    castle::UqKvCache<T> windowed({.d = 16, .dv = 16}, {.lookahead_window = 64});
    castle::UqKvCache<T> causal({.d = 16, .dv = 16}, {.lookahead_window = 0});
    const Index tokens = 64 * 100;
    const Index empty = castle.bytes().owned;
    castle.reserve(tokens);
    windowed.reserve(tokens);
    causal.reserve(tokens);
    // K^C and V^C; U and Q^U beside them, with the gates of the open block, which are 32 elements a token, and U twice
    // more as it was before the last two blocks. With a window all but U, K^C and V^C is of the last tokens only.
    const Index element = Index(sizeof(T));
    EXPECT_GE(causal.bytes().owned, tokens * 2 * 16 * element);
    EXPECT_LT(causal.bytes().owned, tokens * 2 * 16 * element * 11 / 10);
    EXPECT_GE(castle.bytes().owned, tokens * 6 * 16 * element);
    EXPECT_LT(castle.bytes().owned - empty, tokens * (6 * 16 + 32) * element * 11 / 10);
    castle::UqKvCache<T> without_rollback({.d = 16, .dv = 16}, {}, 0);
    without_rollback.reserve(tokens);
    EXPECT_GE(without_rollback.bytes().owned, tokens * 4 * 16 * element);
    EXPECT_LT(without_rollback.bytes().owned - empty, tokens * (4 * 16 + 32) * element * 11 / 10);
    EXPECT_GE(windowed.bytes().owned, tokens * 3 * 16 * element);
    EXPECT_LT(windowed.bytes().owned, tokens * 3 * 16 * element * 11 / 10) << "something beyond the window";
    const Index full = castle.bytes().owned;
    castle.clear();
    EXPECT_EQ(castle.bytes().owned, full);
}

TYPED_TEST(Cache, SaysTheBytesThatItWouldHold) {
    using T = TypeParam;
    std::vector<castle::Shape> shapes = grouped_shapes(9, 5);
    shapes.push_back({.d = 9, .dv = 5});
    for (const castle::Shape& shape : shapes) {
        for (const Index window : {Index(0), Index(100), castle::unlimited}) {
            for (const Index rollback : {Index(0), castle::default_rollback}) {
                SCOPED_TRACE(describe(words_of(shape), ", window ", window, ", rollback ", rollback));
                castle::UqKvCache<T> cache(shape, {.lookahead_window = window}, rollback);
                for (const Index tokens : {0, 1, 64, 65, 700, 30, 1500}) {
                    const Index expected = cache.bytes_for(tokens);
                    EXPECT_EQ(cache.bytes_for(tokens), expected) << "asking changes nothing";
                    cache.reserve(tokens);
                    EXPECT_EQ(cache.bytes().total(), expected) << tokens << " tokens";
                }
            }
        }
    }
}

// Keys, values and all that belongs to them exist once a group.
TYPED_TEST(Cache, OfGroupedQueriesHoldsWhatItsKeyValueHeadsNeed) {
    using T = TypeParam;
    for (const Index window : {Index(0), Index(128), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const Index all = castle::UqKvCache<T>({.d = 64, .dv = 64, .heads = 8, .kv_heads = 8}, options).bytes_for(8192);
        const Index two = castle::UqKvCache<T>({.d = 64, .dv = 64, .heads = 8, .kv_heads = 2}, options).bytes_for(8192);
        const Index lone = castle::UqKvCache<T>({.d = 64, .dv = 64}, options).bytes_for(8192);
        EXPECT_LE(double(two), 0.27 * double(all)) << "window " << window;
        EXPECT_LE(double(two), 2.1 * double(lone)) << "window " << window;
    }
}

// 8 heads of CASTLE have as many parameters as 14 of standard attention.
TYPED_TEST(Cache, WithAWindowIsSmallerThanThatOfStandardAttentionAtEqualParameters) {
    using T = TypeParam;
    castle::UqKvCache<T> windowed({.d = 64, .dv = 64}, {.lookahead_window = 128});
    castle::UqKvCache<T> causal({.d = 64, .dv = 64}, {.lookahead_window = 0});
    windowed.reserve(16384);
    causal.reserve(16384);
    const double ratio = 8.0 * double(windowed.bytes().owned) / (14.0 * double(causal.bytes().owned));
    EXPECT_LE(ratio, 0.88);
    this->RecordProperty("ratio", std::to_string(ratio));
}

TYPED_TEST(Cache, MovesWithItsTokensAndDoesNotCopy) {
    using T = TypeParam;
    static_assert(!std::is_copy_constructible_v<castle::UqKvCache<T>>);
    static_assert(!std::is_copy_assignable_v<castle::UqKvCache<T>>);
    static_assert(std::is_move_assignable_v<castle::UqKvCache<T>>);
    Random random(4);
    const Head<T> head = random_head<T>(random, {.length = 100, .d = 5, .dv = 4});
    const Outcome<T> expected = run_at_once(head.input());
    Matrix<T> out(100, 4);

    castle::UqKvCache<T> first(shape_of(head));
    castle::extend(first, head.first_tokens(45), out.topRows(45));
    castle::UqKvCache<T> second = std::move(first);
    EXPECT_EQ(second.size(), 45);
    castle::extend(second, head.input().tokens(45, 30), out.middleRows(45, 30));
    castle::UqKvCache<T> third({.d = 1, .dv = 1});
    third = std::move(second);
    EXPECT_EQ(third.size(), 75);
    EXPECT_EQ(third.shape().d, 5);
    castle::extend(third, head.input().tokens(75, 25), out.bottomRows(25));
    EXPECT_TRUE(same_bits(out, expected.output));
    EXPECT_TRUE(same_bits(third.lookahead_keys(), expected.lookahead_keys));
}

TYPED_TEST(Cache, AskingForLookaheadKeysChangesNothing) {
    using T = TypeParam;
    Random random(5);
    const Head<T> head = random_head<T>(random, {.length = 140, .d = 5, .dv = 4});
    const Outcome<T> expected = run_at_once(head.input());
    castle::UqKvCache<T> cache(shape_of(head));
    const Matrix<T> out = written<T>(140, 4, [&](castle::MatrixView<T> rows) {
        for (Index t = 0; t < 140; ++t) {
            castle::extend(cache, head.input().tokens(t, 1), rows.middle_rows(t, 1));
            EXPECT_TRUE(same_bits(cache.lookahead_keys(), cache.lookahead_keys()));
        }
    });
    EXPECT_TRUE(same_bits(out, expected.output));
    EXPECT_TRUE(same_bits(cache.lookahead_keys(), expected.lookahead_keys));
}

TYPED_TEST(Cache, OfAWindowOfZeroHasLookaheadKeysOfZero) {
    using T = TypeParam;
    Random random(6);
    const Head<T> head = random_head<T>(random, {.length = 70, .d = 5, .dv = 4});
    const Matrix<T> u = run_at_once(head.input(), {.lookahead_window = 0}).lookahead_keys;
    EXPECT_EQ(u.rows(), 70);
    EXPECT_EQ(u.cols(), 5);
    EXPECT_TRUE((u.array() == T(0)).all());
}

TYPED_TEST(Cache, OfStandardAttentionSaysItsSizeAndForgets) {
    using T = TypeParam;
    Random random(7);
    const Head<T> head = random_head<T>(random, {.length = 90, .d = 5, .dv = 4});
    const Matrix<T> expected = castle::causal_attention(head.qc, head.kc, head.vc, {.scale = 0.4});
    castle::UqKvCache<T> cache(shape_of(head), {.scale = 0.4, .lookahead_window = 0});
    for (int again = 0; again < 2; ++again) {
        Matrix<T> out(90, 4);
        out.topRows(50) = castle::extend(cache, head.causal_input().tokens(0, 50));
        EXPECT_EQ(cache.size(), 50);
        for (Index t = 50; t < 90; ++t) out.row(t) = castle::extend(cache, head.causal_input().tokens(t, 1));
        EXPECT_EQ(cache.size(), 90);
        EXPECT_TRUE(same_bits(out, expected));
        cache.clear();
        EXPECT_EQ(cache.size(), 0);
    }
}

}  // namespace
