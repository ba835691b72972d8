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
    const std::vector<TypeParam> elements(3);
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
    castle::UqKvCache<T> cache(shape_of(head), {.lookahead_window = 0});
    cache.reserve(sizes.length);
    Matrix<T> out(1, sizes.dv);
    const Allocations::Count count;
    for (Index t = 0; t < sizes.length; ++t) castle::extend(cache, head.causal_input().tokens(t, 1), out);
    EXPECT_EQ(count.allocations(), 0);
}

// One token each.
TYPED_TEST(Allocation, IsNoneInDecodingOfABatchAfterReserve) {
    using T = TypeParam;
    Random random(6);
    const Head<T> head = random_head<T>(random, {.length = 3 * sizes.length, .d = sizes.d, .dv = sizes.dv});
    const std::vector<Index> counts = {1, 1, 1};
    Matrix<T> out(3, sizes.dv);
    for (const castle::Executor& executor : {castle::Executor(), reversed_executor()}) {
        std::vector<castle::UqKvCache<T>> caches;
        for (const Index window : {Index(0), Index(100), castle::unlimited}) {
            caches.emplace_back(shape_of(head), castle::Options{.lookahead_window = window});
            caches.back().reserve(sizes.length);
        }
        const std::vector<castle::UqKvCache<T>*> batch = {&caches[0], &caches[1], &caches[2]};
        const Allocations::Count count;
        for (Index t = 0; t < sizes.length; ++t) {
            castle::extend(batch, counts, head.input().tokens(3 * t, 3), out, executor);
        }
        EXPECT_EQ(count.allocations(), 0);
    }
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

// Lets every allocation of a reserve fail, each in a cache of its own from make(), which has to keep its capacity; then
// calls check(cache, failed). How many there are.
template <class Make, class Check>
long failures_in_reserve(const Make& make, const Check& check) {
    long failures = 0;
    for (bool failed = true; failed;) {
        SCOPED_TRACE(describe("after ", failures, " allocations"));
        auto cache = make();
        const Index capacity = cache.capacity();
        try {
            const Allocations::Failure failure(failures);
            cache.reserve(1000);
            failed = false;
            EXPECT_GE(cache.capacity(), 1000);
        } catch (const std::bad_alloc&) {
            EXPECT_EQ(cache.capacity(), capacity);
            ++failures;
        }
        check(cache, failed);
        if (::testing::Test::HasFailure()) break;
    }
    return failures;
}

TYPED_TEST(Allocation, ThatFailsInReserveChangesNothing) {
    using T = TypeParam;
    const auto make = [] {
        castle::UqKvCache<T> cache({.d = 3, .dv = 2});
        cache.reserve(100);
        return cache;
    };
    const auto bytes = make().bytes();
    const auto check = [&](const castle::UqKvCache<T>& cache, bool failed) {
        if (failed) {
            EXPECT_EQ(cache.bytes(), bytes);
        }
    };
    EXPECT_GE(failures_in_reserve(make, check), 4) << "keys and values, queries, gates and scratch at least";
}

// Some heads may have their room then, but the cache has what all of them have.
TYPED_TEST(Allocation, ThatFailsInReserveOfALayersCacheLeavesItsCapacity) {
    using T = TypeParam;
    const castle::Layer<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    Random random(19);
    Matrix<T> x(150, 20);
    fill_normal(random, x);
    const Matrix<T> expected = layer.forward(x);
    const auto make = [&] {
        castle::LayerCache<T> cache = layer.make_cache();
        cache.reserve(100);
        EXPECT_GE(cache.capacity(), 100);
        layer.extend(cache, x.topRows(90));
        return cache;
    };
    const auto check = [&](castle::LayerCache<T>& cache, bool) {
        EXPECT_TRUE(same_bits(layer.extend(cache, x.bottomRows(60)), Matrix<T>(expected.bottomRows(60))));
    };
    EXPECT_GE(failures_in_reserve(make, check), 12) << "four for each head at least";
}

// The memory of a training step is the workspace's, and that of a sequence twice as long is twice as much.
TYPED_TEST(Allocation, IsNoneInTrainingWithAUsedWorkspaceThatIsLinearInTheLength) {
    using T = TypeParam;
    constexpr Index d = 32, longest = 2048;
    Random random(20);
    const Head<T> head = random_head<T>(random, {longest, d, d});
    Matrix<T> out(longest, d), d_out(longest, d);
    fill_normal(random, d_out);
    castle::Gradient<T> gradient(longest, {.d = d, .dv = d});
    for (const Index window : {Index(0), Index(100), castle::unlimited}) {
        const auto train = [&](castle::Workspace<T>& workspace, Index length) {
            const castle::GradientView<T> all = gradient.view();
            const auto part = [&](castle::MatrixView<T> x) { return x.middle_rows(0, length); };
            castle::forward(workspace, head.first_tokens(length), out.topRows(length));
            castle::backward(
                workspace, head.first_tokens(length), d_out.topRows(length),
                {.causal = {.q = part(all.causal.q), .k = part(all.causal.k), .v = part(all.causal.v)},
                 .lookahead = {.q = part(all.lookahead.q), .k = part(all.lookahead.k), .v = part(all.lookahead.v)}});
        };
        std::vector<Index> bytes;
        for (const Index length : {512, 1024, 2048}) {
            SCOPED_TRACE(describe("window ", window, ", ", length, " tokens"));
            castle::Workspace<T> workspace({.d = d, .dv = d}, {.lookahead_window = window});
            train(workspace, length);
            bytes.push_back(workspace.bytes());
            const Allocations::Count count;
            train(workspace, length);
            EXPECT_EQ(count.allocations(), 0);
            EXPECT_EQ(workspace.bytes(), bytes.back());
        }
        // Scratch is as large as the larger of two passes needs it, which may be the one and then the other.
        EXPECT_LE(bytes[2] - bytes[1], (bytes[1] - bytes[0]) * 21 / 10);
        // 11.5 elements per token and dimension for large d; for d = 32 the softmax's sums and the gates count.
        EXPECT_LE(bytes[2] - bytes[1], 13 * 1024 * d * Index(sizeof(T)));
    }
}

TYPED_TEST(Allocation, IsNoneInTrainingOfALayerWithAUsedWorkspace) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    const castle::Layer<T> layer(config, {.lookahead_window = 70});
    Random random(21);
    Matrix<T> x(300, 20), y(300, 20), d_y(300, 20), d_x(300, 20);
    fill_normal(random, x);
    fill_normal(random, d_y);
    castle::LayerWeights<T> d_weights = layer.zero_gradient();
    const long long before = Allocations::live_bytes();
    castle::LayerWorkspace<T> workspace = layer.make_workspace();
    layer.forward(workspace, x, y);
    layer.backward(workspace, x, d_y, d_x, d_weights);
    // Handles of panels are not counted.
    const long long held = Allocations::live_bytes() - before;
    EXPECT_LE(workspace.bytes(), held);
    EXPECT_GE(workspace.bytes(), held * 99 / 100);
    for (const Index length : {300, 299, 33, 1}) {
        SCOPED_TRACE(length);
        const Allocations::Count count;
        layer.forward(workspace, x.topRows(length), y.topRows(length));
        layer.backward(workspace, x.topRows(length), d_y.topRows(length), d_x.topRows(length), d_weights);
        EXPECT_EQ(count.allocations(), 0);
    }
}

TYPED_TEST(Allocation, IsNoneInTrainingOnPackedSequencesWithAUsedWorkspace) {
    using T = TypeParam;
    const castle::Layer<T> layer({.d_model = 20, .heads = 4, .kv_heads = 2, .d_head = 6, .rotary = castle::Rotary{}});
    const castle::Shape shape{.d = 6, .dv = 5, .heads = 4, .kv_heads = 2};
    Random random(23);
    Matrix<T> x(300, 20), y(300, 20), d_y(300, 20), d_x(300, 20);
    fill_normal(random, x);
    fill_normal(random, d_y);
    castle::LayerWeights<T> d_weights = layer.zero_gradient();
    castle::LayerWorkspace<T> layer_workspace = layer.make_workspace();

    const Head<T> heads = random_heads<T>(random, 300, shape);
    Matrix<T> out(300, 20), d_out(300, 20);
    fill_normal(random, d_out);
    castle::Gradient<T> gradient(300, shape);
    const castle::GradientView<T> gradient_view = gradient.view();
    castle::Workspace<T> workspace(shape, {.lookahead_window = 70});

    const std::vector<Index> counts = {100, 0, 167, 1, 32};
    const auto train = [&] {
        layer.forward(layer_workspace, counts, x, y);
        layer.backward(layer_workspace, counts, x, d_y, d_x, d_weights);
        castle::forward(workspace, counts, heads.input(), out);
        castle::backward(workspace, heads.input(), d_out, gradient_view);
    };
    train();
    const Allocations::Count count;
    train();
    EXPECT_EQ(count.allocations(), 0);
}

// With a larger sequence than the one whose forward pass waits.
TYPED_TEST(Allocation, ThatFailsInTrainingLeavesAWorkspaceWithoutAForwardPass) {
    using T = TypeParam;
    const castle::Layer<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    Random random(22);
    Matrix<T> x(300, 20), y(300, 20);
    fill_normal(random, x);
    const Matrix<T> expected = layer.forward(x);
    const auto untouched = Matrix<T>::Constant(300, 20, sentinel<T>());
    bool failed = true;
    for (long failures = 0; failed; ++failures) {
        SCOPED_TRACE(describe(failures, " allocations go well"));
        castle::LayerWorkspace<T> workspace = layer.make_workspace();
        layer.forward(workspace, x.topRows(50), y.topRows(50));
        EXPECT_EQ(workspace.size(), 50);
        y = untouched;
        failed = false;
        try {
            const Allocations::Failure failure(failures);
            layer.forward(workspace, x, y);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
        if (failed) {
            EXPECT_TRUE(same_bits(y, Matrix<T>(untouched)));
            EXPECT_EQ(workspace.size(), 0);
            layer.forward(workspace, x, y);
        }
        EXPECT_TRUE(same_bits(y, expected));
        ASSERT_LT(failures, 1000);
    }
}

}  // namespace
