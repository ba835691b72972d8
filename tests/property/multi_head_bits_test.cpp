// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/multi_head.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;
using castle::MultiHeadConfig;

template <class T>
class MultiHeadBits : public testing::Test {};
TYPED_TEST_SUITE(MultiHeadBits, support::Scalars);

template <class T, class Layer>
std::pair<Matrix<T>, std::vector<Matrix<T>>> run_in_chunks(const Layer& layer, const Matrix<T>& x,
                                                           const std::vector<Index>& chunks) {
    auto cache = layer.make_cache();
    Matrix<T> y = support::written<T>(x.rows(), x.cols(), [&](castle::MatrixView<T> out) {
        Index first = 0;
        for (const Index chunk : chunks) {
            layer.extend(cache, x.middleRows(first, chunk), out.middle_rows(first, chunk));
            first += chunk;
        }
    });
    std::vector<Matrix<T>> keys;
    for (Index h = 0; h < cache.heads(); ++h) keys.push_back(cache.lookahead_keys(h));
    return {std::move(y), std::move(keys)};
}

TYPED_TEST(MultiHeadBits, DoNotDependOnChunksOrThreads) {
    using T = TypeParam;
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
        support::Random random(seed);
        const Index length = random.integer(1, 400);
        const MultiHeadConfig config{.d_model = random.integer(1, 90),
                                     .heads = random.integer(1, 4),
                                     .d_head = 2 * random.integer(1, 20),
                                     .rotary = seed % 2 == 0 ? std::optional(castle::Rotary{}) : std::nullopt,
                                     .seed = seed};
        const Index window = random.pick(std::array{castle::unlimited, Index(0), Index(20), Index(128)});
        SCOPED_TRACE(support::describe("seed ", seed, ", L ", length, ", d_model ", config.d_model, ", heads ",
                                       config.heads, ", d_head ", config.d_head, ", window ", window));
        Matrix<T> x(length, config.d_model);
        support::fill_normal(random, x);

        const castle::MultiHeadCastle<T> layer(config, {.lookahead_window = window});
        const auto [whole, keys] = run_in_chunks(layer, x, {length});
        EXPECT_TRUE(support::same_bits(layer.forward(x), whole));
        support::ThreadPool pool(static_cast<int>(random.integer(2, 4)));
        for (const castle::Executor& executor :
             {castle::Executor{}, pool.executor(), support::reversed_executor(), support::shuffled_executor(seed)}) {
            const castle::MultiHeadCastle<T> other(config, {.lookahead_window = window, .executor = executor});
            for (const auto& chunks : {support::one_by_one(length), support::random_split(random, length)}) {
                const auto [y, other_keys] = run_in_chunks(other, x, chunks);
                EXPECT_TRUE(support::same_bits(y, whole));
                for (std::size_t h = 0; h < keys.size(); ++h) {
                    EXPECT_TRUE(support::same_bits(other_keys[h], keys[h])) << "head " << h;
                }
            }
        }
    }
}

TYPED_TEST(MultiHeadBits, OfAWindowOfZeroAreThoseOfTheCausalLayer) {
    using T = TypeParam;
    const MultiHeadConfig config{.d_model = 24, .heads = 3, .d_head = 8, .rotary = castle::Rotary{}, .seed = 1};
    const castle::MultiHeadCastle<T> layer(config, {.lookahead_window = 0});
    castle::MultiHeadCausal<T> causal(config);
    auto weights = layer.weights();
    weights.lookahead = {};
    causal.set_weights(weights);
    support::Random random(3);
    Matrix<T> x(200, 24);
    support::fill_normal(random, x);
    EXPECT_TRUE(support::same_bits(layer.forward(x), causal.forward(x)));
}

TYPED_TEST(MultiHeadBits, NaNInATokenReachesNoEarlierRow) {
    using T = TypeParam;
    const castle::MultiHeadCastle<T> layer({.d_model = 10, .heads = 2, .d_head = 6});
    support::Random random(4);
    Matrix<T> x(100, 10);
    support::fill_normal(random, x);
    const Matrix<T> clean = layer.forward(x);
    for (const Index t : {0, 31, 32, 70, 99}) {
        SCOPED_TRACE(support::describe("poisoned token ", t));
        Matrix<T> poisoned = x;
        poisoned(t, 3) = std::numeric_limits<T>::quiet_NaN();
        const Matrix<T> y = layer.forward(poisoned);
        EXPECT_TRUE(support::same_bits(Matrix<T>(y.topRows(t)), Matrix<T>(clean.topRows(t))));
        EXPECT_TRUE(y.bottomRows(100 - t).array().isNaN().all());
    }
}

TYPED_TEST(MultiHeadBits, DecodingAllocatesNothingAfterReserve) {
    using T = TypeParam;
    const MultiHeadConfig config{.d_model = 40, .heads = 3, .d_head = 10, .rotary = castle::Rotary{}};
    const auto allocations = [](const auto& layer) {
        Matrix<T> x = Matrix<T>::Ones(1, 40);
        Matrix<T> y(1, 40);
        auto cache = layer.make_cache();
        cache.reserve(1200);
        const support::Allocations::Count count;
        for (Index t = 0; t < 1200; ++t) layer.extend(cache, x, y);
        return count.allocations();
    };
    EXPECT_EQ(allocations(castle::MultiHeadCastle<T>(config)), 0);
    EXPECT_EQ(allocations(castle::MultiHeadCastle<T>(config, {.lookahead_window = 100})), 0);
    EXPECT_EQ(allocations(castle::MultiHeadCausal<T>(config)), 0);
}

TYPED_TEST(MultiHeadBits, AnAllocationThatFailsLeavesTheCacheAsItWas) {
    using T = TypeParam;
    const castle::MultiHeadCastle<T> layer({.d_model = 12, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}});
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
    EXPECT_GE(failures, 3) << "one a head at least";
    EXPECT_TRUE(support::same_bits(y, whole));
}

}  // namespace
