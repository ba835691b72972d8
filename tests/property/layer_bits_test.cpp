// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <array>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/attention.hpp>
#include <castle/layer.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/layers.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::LayerConfig;
using castle::Matrix;

template <class T>
class LayerBits : public testing::Test {};
TYPED_TEST_SUITE(LayerBits, support::Scalars);

// Without an executor the layer's own is used.
template <class T>
std::pair<Matrix<T>, std::vector<Matrix<T>>> run_in_chunks(const castle::Layer<T>& layer, const Matrix<T>& x,
                                                           const std::vector<Index>& chunks,
                                                           const castle::Executor& executor = {}) {
    auto cache = layer.make_cache();
    Matrix<T> y = support::written<T>(x.rows(), x.cols(), [&](castle::MatrixView<T> out) {
        Index first = 0;
        for (const Index chunk : chunks) {
            layer.extend(cache, x.middleRows(first, chunk), out.middle_rows(first, chunk), executor);
            first += chunk;
        }
    });
    std::vector<Matrix<T>> keys;
    for (Index h = 0; h < support::kv_heads_of(layer.config()); ++h) keys.push_back(cache.lookahead_keys(h));
    return {std::move(y), std::move(keys)};
}

TYPED_TEST(LayerBits, DoNotDependOnChunksOrThreads) {
    using T = TypeParam;
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
        support::Random random(seed);
        const Index length = random.integer(1, 400), kv_heads = random.integer(1, 3);
        const LayerConfig config{.d_model = random.integer(1, 90),
                                 .heads = random.integer(1, 3) * kv_heads,
                                 .kv_heads = kv_heads,
                                 .d_head = 2 * random.integer(1, 20),
                                 .rotary = seed % 2 == 0 ? std::optional(castle::Rotary{}) : std::nullopt,
                                 .seed = seed};
        const Index window = random.pick(std::array{castle::unlimited, Index(0), Index(20), Index(128)});
        const castle::Options options{.lookahead_window = window};
        SCOPED_TRACE(support::describe("seed ", seed, ", L ", length, ", ", support::words_of(config, options)));
        Matrix<T> x(length, config.d_model);
        support::fill_normal(random, x);

        const castle::Layer<T> layer(config, options);
        const auto [whole, keys] = run_in_chunks(layer, x, {length});
        EXPECT_TRUE(support::same_bits(layer.forward(x), whole));
        support::ThreadPool pool(static_cast<int>(random.integer(2, 4)));
        for (const castle::Executor& executor :
             {castle::Executor{}, pool.executor(), support::reversed_executor(), support::shuffled_executor(seed)}) {
            const castle::Layer<T> other(config, {.lookahead_window = window, .executor = executor});
            for (const auto& chunks : {support::one_by_one(length), support::random_split(random, length)}) {
                const auto [y, other_keys] = run_in_chunks(other, x, chunks);
                EXPECT_TRUE(support::same_bits(y, whole));
                for (std::size_t h = 0; h < keys.size(); ++h) {
                    EXPECT_TRUE(support::same_bits(other_keys[h], keys[h])) << "head " << h;
                }
            }
            // The same with an executor of the call.
            EXPECT_TRUE(support::same_bits(
                run_in_chunks(layer, x, support::random_split(random, length), executor).first, whole));
            Matrix<T> y(length, config.d_model);
            layer.forward(x, y, executor);
            EXPECT_TRUE(support::same_bits(y, whole));
        }
    }
}

// An executor that is given with a call runs in place of that of the options.
TYPED_TEST(LayerBits, TheExecutorOfACallRunsInPlaceOfTheLayers) {
    using T = TypeParam;
    const auto counting = [](Index& pieces) -> castle::Executor {
        return [&pieces](Index n, castle::Task task) {
            pieces += n;
            for (Index i = 0; i < n; ++i) task(i);
        };
    };
    Index of_options = 0, of_calls = 0;
    const castle::Layer<T> layer({.d_model = 70, .heads = 4, .kv_heads = 2, .d_head = 16},
                                 {.executor = counting(of_options)});
    const castle::Executor given = counting(of_calls);
    const Matrix<T> x = Matrix<T>::Ones(100, 70);
    Matrix<T> y(100, 70), d_x(100, 70);
    auto cache = layer.make_cache();
    auto workspace = layer.make_workspace();
    auto d_weights = layer.zero_gradient();
    const std::array<castle::LayerCache<T>*, 1> caches{&cache};
    const std::array<Index, 1> counts{100};
    const auto expect_given = [&](const char* what, const auto& call) {
        call();
        EXPECT_GT(of_calls, 0) << what;
        EXPECT_EQ(of_options, 0) << what;
        of_calls = 0;
    };
    expect_given("extend", [&] { layer.extend(cache, x, y, given); });
    expect_given("extend of a batch", [&] { layer.extend(caches, counts, x, y, given); });
    expect_given("forward", [&] { layer.forward(x, y, given); });
    expect_given("forward for training", [&] { layer.forward(workspace, x, y, given); });
    expect_given("backward", [&] { layer.backward(workspace, x, y, d_x, d_weights, given); });
    layer.forward(x, y);
    EXPECT_GT(of_options, 0);
    EXPECT_EQ(of_calls, 0);
}

// With unit matrices for weights a layer is its heads side by side.
TYPED_TEST(LayerBits, OfAWindowOfZeroAreThoseOfCausalAttention) {
    using T = TypeParam;
    const Matrix<T> unit = Matrix<T>::Identity(24, 24);
    const castle::LayerWeights<T> weights{.causal = {.q = unit, .k = unit, .v = unit}, .lookahead = {}, .w_out = unit};
    const castle::Layer<T> layer({.d_model = 24, .heads = 3, .d_head = 8}, weights, {.lookahead_window = 0});
    support::Random random(3);
    Matrix<T> x(200, 24);
    support::fill_normal(random, x);
    Matrix<T> expected(200, 24);
    for (Index h = 0; h < 3; ++h) {
        const Matrix<T> own = x.middleCols(8 * h, 8);
        expected.middleCols(8 * h, 8) = castle::causal_attention(own, own, own);
    }
    EXPECT_TRUE(support::same_bits(layer.forward(x), expected));
}

TYPED_TEST(LayerBits, NaNInATokenReachesNoEarlierRow) {
    using T = TypeParam;
    for (const Index kv_heads : {2, 1}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            const castle::Layer<T> layer({.d_model = 10, .heads = 2, .kv_heads = kv_heads, .d_head = 6},
                                         {.lookahead_window = window});
            support::Random random(4);
            Matrix<T> x(100, 10);
            support::fill_normal(random, x);
            const Matrix<T> clean = layer.forward(x);
            for (const Index t : {0, 31, 32, 70, 99}) {
                SCOPED_TRACE(support::describe("window ", window, ", poisoned token ", t));
                Matrix<T> poisoned = x;
                poisoned(t, 3) = std::numeric_limits<T>::quiet_NaN();
                const Matrix<T> y = layer.forward(poisoned);
                EXPECT_TRUE(support::same_bits(Matrix<T>(y.topRows(t)), Matrix<T>(clean.topRows(t))));
                EXPECT_TRUE(y.bottomRows(100 - t).array().isNaN().all());
            }
        }
    }
}

TYPED_TEST(LayerBits, DecodingAllocatesNothingAfterReserve) {
    using T = TypeParam;
    for (const Index kv_heads : {3, 1}) {
        const LayerConfig config{
            .d_model = 40, .heads = 3, .kv_heads = kv_heads, .d_head = 10, .rotary = castle::Rotary{}};
        for (const Index window : {Index(0), Index(100), castle::unlimited}) {
            const castle::Layer<T> layer(config, {.lookahead_window = window});
            Matrix<T> x = Matrix<T>::Ones(1, 40);
            Matrix<T> y(1, 40);
            auto cache = layer.make_cache();
            cache.reserve(1200);
            const support::Allocations::Count count;
            for (Index t = 0; t < 1200; ++t) layer.extend(cache, x, y);
            EXPECT_EQ(count.allocations(), 0) << support::words_of(config, layer.options());
        }
    }
}

TYPED_TEST(LayerBits, AnAllocationThatFailsLeavesTheCacheAsItWas) {
    using T = TypeParam;
    for (const Index kv_heads : {3, 1}) {
        const castle::Layer<T> layer(
            {.d_model = 12, .heads = 3, .kv_heads = kv_heads, .d_head = 6, .rotary = castle::Rotary{}});
        support::Random random(5);
        Matrix<T> x(300, 12);
        support::fill_normal(random, x);
        const Matrix<T> whole = layer.forward(x);
        auto cache = layer.make_cache();
        Matrix<T> y(300, 12);
        layer.extend(cache, x.topRows(45), y.topRows(45));
        long failures = 0;
        while (cache.size() == 45) {
            try {
                const support::Allocations::Failure failure(failures);
                layer.extend(cache, x.bottomRows(255), y.bottomRows(255));
            } catch (const std::bad_alloc&) {
                ++failures;
                ASSERT_EQ(cache.size(), 45);
            }
        }
        EXPECT_GE(failures, kv_heads) << "one a key-value head at least";
        EXPECT_TRUE(support::same_bits(y, whole));
    }
}

}  // namespace
