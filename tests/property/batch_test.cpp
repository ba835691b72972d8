// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Many texts at once, a token each: every one as if it were alone.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Batch : public ::testing::Test {};
TYPED_TEST_SUITE(Batch, support::Scalars);

constexpr Index d = 7, dv = 5;

TYPED_TEST(Batch, GivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    Random random(3400);
    ThreadPool pool(3);
    const std::vector<Index> lengths = {0, 1, 31, 32, 1100, 63, 64, 130, 511, 512, 600, 20};
    const auto count = Index(lengths.size());
    for (const castle::Executor& executor : {castle::Executor{}, pool.executor(), reversed_executor()}) {
        std::vector<castle::UqKvCache<T>> together, alone;
        std::vector<castle::UqKvCache<T>*> caches;
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            const Index window = random.pick(std::array<Index, 4>{0, 20, 100, castle::unlimited});
            const Head<T> prompt = random_head<T>(random, {lengths[i], d, dv});
            for (auto* all : {&together, &alone}) {
                all->emplace_back(castle::HeadShape{.d = d, .dv = dv}, castle::Options{.lookahead_window = window});
                castle::extend(all->back(), prompt.input());
            }
        }
        for (auto& cache : together) caches.push_back(&cache);
        for (int step = 0; step < 70; ++step) {
            const Head<T> tokens = random_head<T>(random, {count, d, dv});
            const Matrix<T> out = written<T>(
                count, dv, [&](castle::MatrixView<T> view) { castle::extend(caches, tokens.input(), view, executor); });
            for (Index i = 0; i < count; ++i) {
                const Matrix<T> expected = castle::extend(alone[std::size_t(i)], tokens.input().tokens(i, 1));
                ASSERT_TRUE(same_bits(Matrix<T>(out.row(i)), expected)) << "text " << i << ", step " << step;
            }
        }
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            EXPECT_TRUE(same_bits(together[i].lookahead_keys(), alone[i].lookahead_keys()));
            EXPECT_EQ(together[i].max_rollback(), alone[i].max_rollback());
        }
    }
}

// What each call of the executor was asked for, in turn.
TYPED_TEST(Batch, IsCutIntoPiecesThatAllHaveWork) {
    using T = TypeParam;
    Random random(3405);
    const auto pieces = [&](const std::vector<Index>& lengths, const std::vector<Index>& windows) {
        std::vector<castle::UqKvCache<T>> texts;
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            texts.emplace_back(castle::HeadShape{.d = d, .dv = dv}, castle::Options{.lookahead_window = windows[i]});
            castle::extend(texts.back(), random_head<T>(random, {lengths[i], d, dv}).input());
        }
        std::vector<castle::UqKvCache<T>*> caches;
        for (auto& text : texts) caches.push_back(&text);
        std::vector<Index> asked;
        const castle::Executor counting = [&](Index n, castle::Task task) {
            asked.push_back(n);
            for (Index i = 0; i < n; ++i) task(i);
        };
        const auto count = Index(lengths.size());
        Matrix<T> out(count, dv);
        castle::extend(caches, random_head<T>(random, {count, d, dv}).input(), out, counting);
        return asked;
    };
    using Numbers = std::vector<Index>;
    constexpr Index none = castle::unlimited;
    // Spans of 512 keys after the token. A text of one span is one piece.
    EXPECT_EQ(pieces({0, 100, 511}, {none, none, 20}), (Numbers{3}));
    // Packing, gates, sweeps, merging.
    EXPECT_EQ(pieces({512, 512}, {none, none}), (Numbers{2, 4, 4, 2}));
    EXPECT_EQ(pieces({0, 1100, 5, 600, 7}, {none, none, none, 300, none}), (Numbers{5, 5, 5, 2}));
    EXPECT_EQ(pieces({0, 1100, 5, 600, 7}, {none, none, none, 0, none}), (Numbers{5, 3, 5, 2})) << "no gates";
    EXPECT_EQ(pieces({1100, 600}, {0, 0}), (Numbers{2, 5, 2}));
}

template <class T, class Layer>
void expect_layer_as_alone(const Layer& layer, std::uint64_t seed) {
    Random random(seed);
    const Index d_model = layer.config().d_model;
    std::vector<castle::MultiHeadCache<T>> together, alone;
    std::vector<castle::MultiHeadCache<T>*> caches;
    for (const Index length : {0, 5, 40, 64, 150, 33}) {
        Matrix<T> prompt(length, d_model);
        fill_normal(random, prompt);
        for (auto* all : {&together, &alone}) {
            all->push_back(layer.make_cache());
            layer.extend(all->back(), prompt);
        }
    }
    for (auto& cache : together) caches.push_back(&cache);
    for (int step = 0; step < 70; ++step) {
        // Texts come and go.
        std::swap(caches[std::size_t(random.integer(0, 5))], caches[std::size_t(random.integer(0, 5))]);
        const Index count = random.integer(0, 6);
        Matrix<T> x(count, d_model);
        fill_normal(random, x);
        const Matrix<T> y = written<T>(count, d_model, [&](castle::MatrixView<T> view) {
            layer.extend(std::span(caches.data(), std::size_t(count)), x, view);
        });
        for (Index i = 0; i < count; ++i) {
            const auto which = std::size_t(caches[std::size_t(i)] - together.data());
            ASSERT_TRUE(same_bits(Matrix<T>(y.row(i)), layer.extend(alone[which], x.row(i)))) << "step " << step;
        }
    }
}

TYPED_TEST(Batch, OfALayerGivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    const castle::MultiHeadConfig config{.d_model = 90, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    ThreadPool pool(3);
    expect_layer_as_alone<T>(castle::MultiHeadCastle<T>(config), 3410);
    expect_layer_as_alone<T>(castle::MultiHeadCastle<T>(config, {.lookahead_window = 50, .executor = pool.executor()}),
                             3411);
    expect_layer_as_alone<T>(castle::MultiHeadCausal<T>(config, {.executor = pool.executor()}), 3412);
}

TYPED_TEST(Batch, AllocatesNothingWithinTheCapacity) {
    using T = TypeParam;
    Random random(3420);
    std::vector<castle::UqKvCache<T>> heads;
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}});
    std::vector<castle::MultiHeadCache<T>> layers;
    std::vector<castle::UqKvCache<T>*> head_caches;
    std::vector<castle::MultiHeadCache<T>*> layer_caches;
    for (int i = 0; i < 4; ++i) {
        heads.emplace_back(castle::HeadShape{.d = d, .dv = dv});
        layers.push_back(layer.make_cache());
        heads.back().reserve(100);
        layers.back().reserve(100);
    }
    for (auto& cache : heads) head_caches.push_back(&cache);
    for (auto& cache : layers) layer_caches.push_back(&cache);
    const Head<T> tokens = random_head<T>(random, {4, d, dv});
    Matrix<T> out(4, dv), x(4, 20), y(4, 20);
    fill_normal(random, x);
    layer.extend(layer_caches, x, y);  // gives the first cache its scratch
    const Allocations::Count count;
    for (int step = 0; step < 99; ++step) {
        castle::extend(head_caches, tokens.input(), out);
        layer.extend(layer_caches, x, y);
    }
    EXPECT_EQ(count.allocations(), 0);
}

TYPED_TEST(Batch, RefusesWhatDoesNotFitAndChangesNothing) {
    using T = TypeParam;
    Random random(3430);
    castle::UqKvCache<T> a({.d = d, .dv = dv}), b({.d = d, .dv = dv}), other({.d = d + 1, .dv = dv});
    const Head<T> tokens = random_head<T>(random, {2, d, dv});
    Matrix<T> out(2, dv);
    using Caches = std::vector<castle::UqKvCache<T>*>;
    const auto refused = [&](const Caches& caches, castle::MatrixView<T> into) {
        EXPECT_THROW(castle::extend(caches, tokens.input(), into), std::invalid_argument);
        EXPECT_EQ(a.size(), 0);
        EXPECT_EQ(b.size(), 0);
    };
    refused({}, out);
    refused({}, castle::MatrixView<T>(out).middle_rows(0, 0));
    EXPECT_NO_THROW(
        castle::extend(Caches{}, tokens.input().tokens(0, 0), castle::MatrixView<T>(out).middle_rows(0, 0)));
    refused({&a}, out);
    refused({&a, &a}, out);
    refused({&a, nullptr}, out);
    refused({&a, &other}, out);
    refused({&a, &b}, castle::MatrixView<T>(out).middle_rows(0, 1));
    castle::extend(Caches{&a, &b}, tokens.input(), out);
    EXPECT_EQ(a.size(), 1);

    const castle::MultiHeadConfig config{.d_model = 20, .heads = 3, .d_head = 6};
    const castle::MultiHeadCastle<T> layer(config), windowed(config, {.lookahead_window = 3});
    castle::MultiHeadCache<T> c = layer.make_cache(), foreign = windowed.make_cache();
    Matrix<T> x(2, 20), y(2, 20);
    fill_normal(random, x);
    const auto refused_by_layer = [&](const std::vector<castle::MultiHeadCache<T>*>& caches) {
        EXPECT_THROW(layer.extend(caches, x, y), std::invalid_argument);
        EXPECT_EQ(c.size(), 0);
    };
    refused_by_layer({&c});
    refused_by_layer({&c, &c});
    refused_by_layer({&c, nullptr});
    refused_by_layer({&c, &foreign});
}

// Every pair of places, and each time all that an older batch may have left behind.
TYPED_TEST(Batch, FindsACacheThatIsThereTwice) {
    using T = TypeParam;
    Random random(3435);
    constexpr Index count = 6;
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    std::vector<castle::UqKvCache<T>> heads;
    std::vector<castle::MultiHeadCache<T>> layers;
    std::vector<castle::UqKvCache<T>*> head_caches;
    std::vector<castle::MultiHeadCache<T>*> layer_caches;
    for (Index i = 0; i < count; ++i) {
        heads.emplace_back(castle::HeadShape{.d = d, .dv = dv});
        layers.push_back(layer.make_cache());
    }
    for (auto& cache : heads) head_caches.push_back(&cache);
    for (auto& cache : layers) layer_caches.push_back(&cache);
    const Head<T> tokens = random_head<T>(random, {count, d, dv});
    Matrix<T> out(count, dv), x(count, 20), y(count, 20);
    fill_normal(random, x);
    Index steps = 0;
    for (Index j = 1; j < count; ++j) {
        for (Index i = 0; i < j; ++i) {
            auto head_batch = head_caches;
            auto layer_batch = layer_caches;
            head_batch[std::size_t(j)] = head_batch[std::size_t(i)];
            layer_batch[std::size_t(j)] = layer_batch[std::size_t(i)];
            const std::string sentence = describe("caches[", i, "] and caches[", j, "] are the same cache");
            EXPECT_EQ(message<std::invalid_argument>([&] { castle::extend(head_batch, tokens.input(), out); }),
                      "castle::extend: " + sentence);
            EXPECT_EQ(message<std::invalid_argument>([&] { layer.extend(layer_batch, x, y); }),
                      "castle::MultiHeadCastle: " + sentence);
            // Those that are different go on, in any order.
            std::swap(head_caches[std::size_t(random.integer(0, j))], head_caches[std::size_t(random.integer(0, j))]);
            std::swap(layer_caches[std::size_t(random.integer(0, j))], layer_caches[std::size_t(random.integer(0, j))]);
            EXPECT_NO_THROW(castle::extend(head_caches, tokens.input(), out));
            EXPECT_NO_THROW(layer.extend(layer_caches, x, y));
            ++steps;
        }
    }
    for (const auto& cache : heads) EXPECT_EQ(cache.size(), steps);
    for (const auto& cache : layers) EXPECT_EQ(cache.size(), steps);
}

// Looks at each cache a few times, not at each pair.
TEST(BatchCheck, TakesTimeInProportionToTheCaches) {
    struct Cache {
        Index batch_mark_ = 0;
    };
    struct Caches {
        std::vector<Cache*> caches;
        mutable Index looks = 0;

        std::size_t size() const { return caches.size(); }
        Cache* operator[](std::size_t i) const {
            ++looks;
            return caches[i];
        }
    };
    std::vector<Cache> all(1000);
    Caches caches;
    for (Cache& cache : all) caches.caches.push_back(&cache);
    for (int again = 0; again < 3; ++again) {
        caches.looks = 0;
        castle::detail::check_batch("extend", caches);
        EXPECT_LE(caches.looks, 10 * 1000);
        std::reverse(caches.caches.begin(), caches.caches.end());
    }
}

TYPED_TEST(Batch, WithoutMemoryChangesNoToken) {
    using T = TypeParam;
    Random random(3440);
    const castle::MultiHeadCastle<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    Matrix<T> prompt(64, 20), x(3, 20), y(3, 20);
    fill_normal(random, prompt);
    fill_normal(random, x);
    const Matrix<T> expected = [&] {
        castle::MultiHeadCache<T> cache = layer.make_cache();
        layer.extend(cache, prompt);
        return layer.extend(cache, x.topRows(1));
    }();
    bool failed = true;
    for (long successes = 0; failed; ++successes) {
        std::vector<castle::MultiHeadCache<T>> caches;
        std::vector<castle::MultiHeadCache<T>*> all;
        for (int i = 0; i < 3; ++i) {
            caches.push_back(layer.make_cache());
            layer.extend(caches.back(), prompt);
        }
        for (auto& cache : caches) all.push_back(&cache);
        failed = false;
        try {
            const Allocations::Failure failure(successes);
            layer.extend(all, x, y);
        } catch (const std::bad_alloc&) {
            failed = true;
            for (const auto& cache : caches) EXPECT_EQ(cache.size(), 64);
            layer.extend(all, x, y);
        }
        EXPECT_TRUE(same_bits(Matrix<T>(y.row(0)), expected));
        ASSERT_LT(successes, 1000);
    }
}

}  // namespace
