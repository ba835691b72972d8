// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <new>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Decoding allocates nothing within the reserved capacity, and running out of memory changes nothing.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Allocation : public ::testing::Test {};
TYPED_TEST_SUITE(Allocation, support::Scalars);

constexpr Sizes sizes{.length = 700, .d = 9, .dv = 5};

TYPED_TEST(Allocation, IsCounted) {
    const Allocations::Count count;
    const std::vector<TypeParam> numbers(3);
    const long standard = count.allocations();
    EXPECT_EQ(standard, 1);
    const castle::detail::AlignedBuffer<TypeParam> buffer(100);
    const long aligned = count.allocations();
    EXPECT_EQ(aligned, 2);
    const Matrix<TypeParam> matrix(3, 3);
    const long eigen = count.allocations();
    EXPECT_EQ(eigen, 3);
}

TYPED_TEST(Allocation, IsNoneInDecodingAfterReserve) {
    using T = TypeParam;
    Random random(1);
    const Head<T> head = random_head<T>(random, sizes);
    for (const castle::Executor& executor : {castle::Executor(), reversed_executor()}) {
        for (const Index window : {Index(0), Index(1), Index(100), castle::unlimited}) {
            SCOPED_TRACE(describe("window ", window));
            castle::UqKvCache<T> cache(shape_of(head), {.lookahead_window = window, .executor = executor});
            cache.reserve(sizes.length);
            Matrix<T> out(sizes.length, sizes.dv);
            const Allocations::Count count;
            for (Index t = 0; t < sizes.length; ++t) {
                castle::extend(cache, head.input().tokens(t, 1), out.middleRows(t, 1));
            }
            EXPECT_EQ(count.allocations(), 0);

            cache.clear();
            for (Index t = 0; t < sizes.length; ++t) {
                castle::extend(cache, head.input().tokens(t, 1), out.middleRows(t, 1));
            }
            EXPECT_EQ(count.allocations(), 0) << "after clear";
        }
    }
}

TYPED_TEST(Allocation, IsNoneInDecodingAfterPrefillAndReserve) {
    using T = TypeParam;
    Random random(2);
    const Head<T> head = random_head<T>(random, sizes);
    castle::UqKvCache<T> cache(shape_of(head));
    castle::extend(cache, head.first_tokens(333));
    cache.reserve(sizes.length);
    Matrix<T> out(1, sizes.dv);
    const Allocations::Count count;
    for (Index t = 333; t < sizes.length; ++t) castle::extend(cache, head.input().tokens(t, 1), out);
    EXPECT_EQ(count.allocations(), 0);
}

TYPED_TEST(Allocation, IsNoneInDecodingOfStandardAttentionAfterReserve) {
    using T = TypeParam;
    Random random(3);
    const Head<T> head = random_head<T>(random, sizes);
    castle::KvCache<T> cache(shape_of(head));
    cache.reserve(sizes.length);
    Matrix<T> out(1, sizes.dv);
    const Allocations::Count count;
    for (Index t = 0; t < sizes.length; ++t) castle::extend(cache, head.input().tokens(t, 1).causal, out);
    EXPECT_EQ(count.allocations(), 0);
}

// Lets every allocation of the call fail in turn, each on a cache that no failure has met before, and then does the
// call again.
TYPED_TEST(Allocation, ThatFailsLeavesTheCacheAsItWas) {
    using T = TypeParam;
    Random random(4);
    const Head<T> head = random_head<T>(random, {.length = 300, .d = 6, .dv = 5});
    const auto extend = [&](castle::UqKvCache<T>& cache, Index chunk, Matrix<T>& out) {
        const Index first = cache.size();
        castle::extend(cache, head.input().tokens(first, chunk), out.middleRows(first, chunk));
    };
    const Outcome<T> expected = run_at_once(head.input());
    for (const std::vector<Index>& chunks : {std::vector<Index>{300}, {40, 260}, {64, 1, 235}, {70, 229, 1}}) {
        const Index last = chunks.back();
        const Index before = 300 - last;
        long failures = 0;
        for (bool failed = true; failed;) {
            SCOPED_TRACE(describe("chunks ", ::testing::PrintToString(chunks), ", after ", failures, " allocations"));
            castle::UqKvCache<T> cache(shape_of(head));
            Matrix<T> out(300, 5);
            for (std::size_t i = 0; i + 1 < chunks.size(); ++i) extend(cache, chunks[i], out);
            const Matrix<T> keys = cache.lookahead_keys();
            try {
                const Allocations::Failure failure(failures);
                extend(cache, last, out);
                failed = false;
            } catch (const std::bad_alloc&) {
                ++failures;
                ASSERT_EQ(cache.size(), before);
                ASSERT_TRUE(same_bits(cache.lookahead_keys(), keys));
                extend(cache, last, out);
            }
            ASSERT_TRUE(same_bits(out, expected.output));
            ASSERT_TRUE(same_bits(cache.lookahead_keys(), expected.lookahead_keys));
        }
        // The scratch of the call at least, but for a single token that there is room for.
        EXPECT_GE(failures, last > 1 ? 1 : 0) << "nothing was made to fail";
    }
}

TYPED_TEST(Allocation, ThatFailsInReserveChangesNothing) {
    using T = TypeParam;
    long failures = 0;
    for (bool failed = true; failed;) {
        castle::UqKvCache<T> cache({.d = 3, .dv = 2});
        cache.reserve(100);
        const Index capacity = cache.capacity();
        const Index bytes = cache.bytes();
        try {
            const Allocations::Failure failure(failures);
            cache.reserve(1000);
            failed = false;
            EXPECT_GE(cache.capacity(), 1000);
        } catch (const std::bad_alloc&) {
            ASSERT_EQ(cache.capacity(), capacity) << "after " << failures << " allocations";
            ASSERT_EQ(cache.bytes(), bytes) << "after " << failures << " allocations";
            ++failures;
        }
    }
    EXPECT_GE(failures, 4) << "keys and values, queries, gates and scratch at least";
}

}  // namespace
