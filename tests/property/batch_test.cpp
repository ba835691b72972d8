// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <limits>
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

// Many sequences at once, some tokens each: every one as if it were alone.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Batch : public ::testing::Test {};
TYPED_TEST_SUITE(Batch, support::Scalars);

using Counts = std::vector<Index>;

constexpr Index d = 7, dv = 5;

template <class Cache>
std::vector<Cache*> pointers(std::vector<Cache>& caches) {
    std::vector<Cache*> all;
    for (Cache& cache : caches) all.push_back(&cache);
    return all;
}

// `steps` calls that put next_counts() tokens onto caches of these lengths.
template <class T, class NextCounts>
void expect_as_alone(Random& random, const castle::Shape& shape, const std::vector<Index>& lengths, int steps,
                     const NextCounts& next_counts, const castle::Executor& executor) {
    std::vector<castle::UqKvCache<T>> together, alone;
    for (const Index length : lengths) {
        const Index window = random.pick(std::array<Index, 4>{0, 20, 100, castle::unlimited});
        const Head<T> prompt = random_heads<T>(random, length, shape);
        for (auto* all : {&together, &alone}) {
            all->emplace_back(shape, castle::Options{.lookahead_window = window});
            castle::extend(all->back(), prompt.input());
        }
    }
    const std::vector<castle::UqKvCache<T>*> caches = pointers(together);
    for (int step = 0; step < steps; ++step) {
        const Counts counts = next_counts();
        const Head<T> tokens = random_heads<T>(random, total(counts), shape);
        const Matrix<T> out = written<T>(total(counts), shape.heads * shape.dv, [&](castle::MatrixView<T> view) {
            castle::extend(caches, counts, tokens.input(), view, executor);
        });
        Index first = 0;
        for (std::size_t i = 0; i < counts.size(); ++i) {
            const Matrix<T> expected = castle::extend(alone[i], tokens.input().tokens(first, counts[i]));
            ASSERT_TRUE(same_bits(Matrix<T>(out.middleRows(first, counts[i])), expected))
                << "sequence " << i << ", step " << step << ", counts " << ::testing::PrintToString(counts);
            first += counts[i];
        }
    }
    for (std::size_t i = 0; i < lengths.size(); ++i) {
        EXPECT_EQ(together[i].size(), alone[i].size());
        EXPECT_TRUE(same_bits(all_lookahead_keys(together[i]), all_lookahead_keys(alone[i])));
        EXPECT_EQ(together[i].max_rollback(), alone[i].max_rollback());
    }
}

TYPED_TEST(Batch, GivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    Random random(3400);
    ThreadPool pool(3);
    const std::vector<Index> lengths = {0, 1, 31, 32, 1100, 63, 64, 130, 511, 512, 600, 20};
    for (const castle::Executor& executor : {castle::Executor{}, pool.executor(), reversed_executor()}) {
        expect_as_alone<T>(
            random, {.d = d, .dv = dv}, lengths, 70, [&] { return one_by_one(Index(lengths.size())); }, executor);
        if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(Batch, OfUnevenCountsGivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    ThreadPool pool(3);
    const std::vector<Index> lengths = {0, 1, 600, 33, 64, 505};
    std::uint64_t seed = 3401;
    for (const castle::Executor& executor :
         {castle::Executor{}, pool.executor(), reversed_executor(), shuffled_executor(5)}) {
        SCOPED_TRACE(describe("seed ", seed));
        Random random(seed++);
        expect_as_alone<T>(
            random, {.d = d, .dv = dv}, lengths, 15, [&] { return random_counts(random, 6); }, executor);
        if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(Batch, OfHeadsSideBySideGivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    ThreadPool pool(3);
    const std::vector<Index> lengths = {0, 40, 520, 64};
    std::uint64_t seed = 3402;
    for (const castle::Shape& shape : grouped_shapes(d, dv)) {
        for (const castle::Executor& executor : {castle::Executor{}, pool.executor(), reversed_executor()}) {
            SCOPED_TRACE(describe("seed ", seed, ", ", words_of(shape)));
            Random random(seed++);
            expect_as_alone<T>(
                random, shape, lengths, 8, [&] { return random_counts(random, 4); }, executor);
            expect_as_alone<T>(
                random, shape, lengths, 8,
                [] {
                    return Counts{1, 1, 1, 1};
                },
                executor);
            if (this->HasFatalFailure()) return;
        }
    }
}

// A group has 128 rows.
TYPED_TEST(Batch, OfCountsAroundTheSizesOfBlocksAndGroupsGivesTheBitsOfEachAlone) {
    using T = TypeParam;
    Random random(3403);
    ThreadPool pool(3);
    const Counts counts = {127, 0, 128, 1, 129, 256, 32, 257, 0, 31};
    for (const castle::Executor& executor : {castle::Executor{}, pool.executor()}) {
        for (const Index length : {0, 17, 500}) {
            const std::vector<Index> lengths(counts.size(), length);
            expect_as_alone<T>(
                random, {.d = d, .dv = dv}, lengths, 2, [&] { return counts; }, executor);
            if (this->HasFatalFailure()) return;
        }
    }
}

TYPED_TEST(Batch, OfOneCacheIsExtend) {
    using T = TypeParam;
    Random random(3404);
    const Head<T> head = random_head<T>(random, {300, d, dv});
    const Outcome<T> expected = run_at_once(head.input(), {.lookahead_window = 50});
    castle::UqKvCache<T> cache({.d = d, .dv = dv}, {.lookahead_window = 50});
    const std::vector<castle::UqKvCache<T>*> one = {&cache};
    const Matrix<T> out = written<T>(300, dv, [&](castle::MatrixView<T> view) {
        castle::extend(one, Counts{140}, head.first_tokens(140), view.middle_rows(0, 140));
        castle::extend(one, Counts{0}, head.first_tokens(0), view.middle_rows(0, 0));
        castle::extend(one, Counts{160}, head.input().tokens(140, 160), view.middle_rows(140, 160));
    });
    EXPECT_TRUE(same_bits(out, expected.output));
    EXPECT_TRUE(same_bits(cache.lookahead_keys(), expected.lookahead_keys));
}

// With lookahead inputs that are not there, where no cache reads them.
TYPED_TEST(Batch, OfStandardAttentionTakesNoLookaheadInput) {
    using T = TypeParam;
    Random random(3406);
    const Head<T> head = random_head<T>(random, {170, d, dv});
    const castle::Options options{.lookahead_window = 0};
    castle::UqKvCache<T> a({.d = d, .dv = dv}, options), b({.d = d, .dv = dv}, options), c({.d = d, .dv = dv});
    const std::vector<castle::UqKvCache<T>*> both = {&a, &b};
    Matrix<T> out(170, dv);
    castle::extend(both, Counts{30, 140}, head.causal_input(), out);
    EXPECT_TRUE(same_bits(Matrix<T>(out.topRows(30)), run_parallel(head.first_tokens(30), options)));
    EXPECT_TRUE(same_bits(Matrix<T>(out.bottomRows(140)), run_parallel(head.input().tokens(30, 140), options)));

    const std::vector<castle::UqKvCache<T>*> mixed = {&a, &c};
    EXPECT_NE(message<std::invalid_argument>([&] {
                  castle::extend(mixed, Counts{30, 140}, head.causal_input(), out);
              }).find("input.lookahead.q is [0, 0] but must be [170, 7]"),
              std::string::npos);
    EXPECT_EQ(a.size(), 30);
    EXPECT_EQ(c.size(), 0);
}

// Without an executor of the call's own, that of the first cache.
TYPED_TEST(Batch, RunsWhereTheFirstCacheDoes) {
    using T = TypeParam;
    Random random(3407);
    const Head<T> head = random_head<T>(random, {1300, d, dv});
    Index asked = 0, asked_by_call = 0;
    const auto counting = [](Index& calls) {
        return castle::Executor([&calls](Index n, castle::Task task) {
            ++calls;
            for (Index i = 0; i < n; ++i) task(i);
        });
    };
    castle::UqKvCache<T> a({.d = d, .dv = dv}, {.executor = counting(asked)}), b({.d = d, .dv = dv});
    const std::vector<castle::UqKvCache<T>*> caches = {&a, &b};
    Matrix<T> out(1300, dv);
    castle::extend(caches, Counts{650, 650}, head.input(), out);
    EXPECT_GT(asked, 0);
    asked = 0;
    castle::extend(caches, Counts{650, 650}, head.input(), out, counting(asked_by_call));
    EXPECT_EQ(asked, 0);
    EXPECT_GT(asked_by_call, 0);
}

// What each call of the executor was asked for, in turn.
TYPED_TEST(Batch, IsCutIntoPiecesThatAllHaveWork) {
    using T = TypeParam;
    Random random(3405);
    const auto pieces = [&](const std::vector<Index>& lengths, const std::vector<Index>& windows) {
        std::vector<castle::UqKvCache<T>> caches;
        for (std::size_t i = 0; i < lengths.size(); ++i) {
            caches.emplace_back(castle::Shape{.d = d, .dv = dv}, castle::Options{.lookahead_window = windows[i]});
            castle::extend(caches.back(), random_head<T>(random, {lengths[i], d, dv}).input());
        }
        std::vector<Index> asked;
        const castle::Executor counting = [&](Index n, castle::Task task) {
            asked.push_back(n);
            for (Index i = 0; i < n; ++i) task(i);
        };
        const auto count = Index(lengths.size());
        Matrix<T> out(count, dv);
        castle::extend(pointers(caches), one_by_one(count), random_head<T>(random, {count, d, dv}).input(), out,
                       counting);
        return asked;
    };
    using Numbers = std::vector<Index>;
    constexpr Index none = castle::unlimited;
    // Spans of 512 keys after the token. A sequence of one span is one piece.
    EXPECT_EQ(pieces({0, 100, 511}, {none, none, 20}), (Numbers{3}));
    // Packing, gates, sweeps, merging.
    EXPECT_EQ(pieces({512, 512}, {none, none}), (Numbers{2, 4, 4, 2}));
    EXPECT_EQ(pieces({0, 1100, 5, 600, 7}, {none, none, none, 300, none}), (Numbers{5, 5, 5, 2}));
    EXPECT_EQ(pieces({0, 1100, 5, 600, 7}, {none, none, none, 0, none}), (Numbers{5, 3, 5, 2})) << "no gates";
    EXPECT_EQ(pieces({1100, 600}, {0, 0}), (Numbers{2, 5, 2}));
}

template <class T>
void expect_layer_as_alone(const castle::Layer<T>& layer, std::uint64_t seed) {
    SCOPED_TRACE(describe("seed ", seed));
    Random random(seed);
    const Index d_model = layer.config().d_model;
    std::vector<castle::LayerCache<T>> together, alone;
    for (const Index length : {0, 5, 40, 64, 150, 33}) {
        Matrix<T> prompt(length, d_model);
        fill_normal(random, prompt);
        for (auto* all : {&together, &alone}) {
            all->push_back(layer.make_cache());
            layer.extend(all->back(), prompt);
        }
    }
    std::vector<castle::LayerCache<T>*> caches = pointers(together);
    for (int step = 0; step < 70; ++step) {
        // Sequences come and go. Most steps are of decoding.
        std::swap(caches[std::size_t(random.integer(0, 5))], caches[std::size_t(random.integer(0, 5))]);
        const Index size = random.integer(0, 6);
        const Counts counts = step % 7 == 6 ? random_counts(random, size) : one_by_one(size);
        Matrix<T> x(total(counts), d_model);
        fill_normal(random, x);
        const Matrix<T> y = written<T>(x.rows(), d_model, [&](castle::MatrixView<T> view) {
            layer.extend(std::span(caches.data(), std::size_t(size)), counts, x, view);
        });
        Index first = 0;
        for (std::size_t i = 0; i < counts.size(); ++i) {
            const auto which = std::size_t(caches[i] - together.data());
            const Matrix<T> expected = layer.extend(alone[which], x.middleRows(first, counts[i]));
            ASSERT_TRUE(same_bits(Matrix<T>(y.middleRows(first, counts[i])), expected))
                << "step " << step << ", counts " << ::testing::PrintToString(counts);
            first += counts[i];
        }
    }
}

TYPED_TEST(Batch, OfALayerGivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 90, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    const castle::LayerConfig grouped{
        .d_model = 40, .heads = 4, .kv_heads = 2, .d_head = 6, .rotary = castle::Rotary{}};
    ThreadPool pool(3);
    const castle::Executor executor = pool.executor();
    expect_layer_as_alone<T>(castle::Layer<T>(config), 3410);
    expect_layer_as_alone<T>(castle::Layer<T>(config, {.lookahead_window = 50, .executor = executor}), 3411);
    expect_layer_as_alone<T>(castle::Layer<T>(config, {.lookahead_window = 0, .executor = executor}), 3412);
    expect_layer_as_alone<T>(castle::Layer<T>(grouped), 3413);
    expect_layer_as_alone<T>(castle::Layer<T>(grouped, {.lookahead_window = 50, .executor = executor}), 3414);
    expect_layer_as_alone<T>(castle::Layer<T>(grouped, {.lookahead_window = 0, .executor = executor}), 3415);
}

// One token each, or none for some: decoding.
TYPED_TEST(Batch, AllocatesNothingWithinTheCapacity) {
    using T = TypeParam;
    for (const Index window : {Index(0), Index(30), castle::unlimited}) {
        for (const Index kv_heads : {1, 3}) {
            SCOPED_TRACE(describe("window ", window, ", ", kv_heads, " key-value heads"));
            Random random(3420);
            const castle::Options options{.lookahead_window = window};
            const castle::Shape shape{.d = d, .dv = dv, .heads = 3, .kv_heads = kv_heads};
            const castle::Layer<T> layer(
                {.d_model = 20, .heads = 3, .kv_heads = kv_heads, .d_head = 6, .rotary = castle::Rotary{}}, options);
            std::vector<castle::UqKvCache<T>> heads;
            std::vector<castle::LayerCache<T>> layers;
            for (int i = 0; i < 4; ++i) {
                heads.emplace_back(shape, options);
                layers.push_back(layer.make_cache());
                heads.back().reserve(100);
                layers.back().reserve(100);
            }
            const std::vector<castle::UqKvCache<T>*> head_caches = pointers(heads);
            const std::vector<castle::LayerCache<T>*> layer_caches = pointers(layers);
            const Head<T> tokens = random_heads<T>(random, 4, shape);
            Matrix<T> out(4, 3 * dv), x(4, 20), y(4, 20);
            fill_normal(random, x);
            const Counts all = {1, 1, 1, 1}, some = {1, 0, 1, 0}, none = {0, 0, 0, 0};
            castle::extend(head_caches, all, tokens.input(), out);
            layer.extend(layer_caches, all, x, y);  // gives the first cache its scratch
            const Allocations::Count count;
            for (int step = 0; step < 49; ++step) {
                castle::extend(head_caches, all, tokens.input(), out);
                layer.extend(layer_caches, all, x, y);
                castle::extend(head_caches, some, tokens.first_tokens(2), out.topRows(2));
                layer.extend(layer_caches, some, x.topRows(2), y.topRows(2));
                castle::extend(head_caches, none, tokens.first_tokens(0), out.topRows(0));
                layer.extend(layer_caches, none, x.topRows(0), y.topRows(0));
            }
            EXPECT_EQ(count.allocations(), 0);
            EXPECT_EQ(heads[0].size(), 99);
            EXPECT_EQ(heads[1].size(), 50);
        }
    }
}

TYPED_TEST(Batch, RejectsWhatDoesNotFitAndChangesNothing) {
    using T = TypeParam;
    Random random(3430);
    castle::UqKvCache<T> a({.d = d, .dv = dv}), b({.d = d, .dv = dv}), other({.d = d + 1, .dv = dv});
    castle::UqKvCache<T> grouped({.d = d, .dv = dv, .heads = 2}), wide({.d = d, .dv = dv, .heads = 2, .kv_heads = 2});
    const Head<T> tokens = random_head<T>(random, {2, d, dv});
    Matrix<T> out(2, dv);
    using Caches = std::vector<castle::UqKvCache<T>*>;
    const auto rejected = [&](const Caches& caches, const Counts& counts, castle::MatrixView<T> into) {
        EXPECT_THROW(castle::extend(caches, counts, tokens.input(), into), std::invalid_argument);
        EXPECT_EQ(a.size(), 0);
        EXPECT_EQ(b.size(), 0);
    };
    rejected({}, {}, out);
    rejected({}, {}, castle::MatrixView<T>(out).middle_rows(0, 0));
    EXPECT_NO_THROW(castle::extend(Caches{}, Counts{}, tokens.first_tokens(0), out.topRows(0)));
    rejected({&a}, {1}, out);
    rejected({&a, &a}, {1, 1}, out);
    rejected({&a, nullptr}, {1, 1}, out);
    rejected({&a, &other}, {1, 1}, out);
    rejected({&a, &grouped}, {1, 1}, out);
    rejected({&a, &wide}, {1, 1}, out);
    rejected({&a, &b}, {1, 1}, castle::MatrixView<T>(out).middle_rows(0, 1));
    castle::extend(Caches{&a, &b}, Counts{1, 1}, tokens.input(), out);
    EXPECT_EQ(a.size(), 1);

    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6};
    const castle::Layer<T> layer(config), windowed(config, {.lookahead_window = 3});
    const castle::Layer<T> one_kv_head({.d_model = 20, .heads = 3, .kv_heads = 1, .d_head = 6});
    castle::LayerCache<T> c = layer.make_cache(), foreign = windowed.make_cache(), narrow = one_kv_head.make_cache();
    Matrix<T> x(2, 20), y(2, 20);
    fill_normal(random, x);
    const auto rejected_by_layer = [&](const std::vector<castle::LayerCache<T>*>& caches, const Counts& counts) {
        EXPECT_THROW(layer.extend(caches, counts, x, y), std::invalid_argument);
        EXPECT_EQ(c.size(), 0);
    };
    rejected_by_layer({&c}, {1});
    rejected_by_layer({&c, &c}, {1, 1});
    rejected_by_layer({&c, nullptr}, {1, 1});
    rejected_by_layer({&c, &foreign}, {1, 1});
    rejected_by_layer({&c, &narrow}, {1, 1});
}

TYPED_TEST(Batch, SaysWhatIsWrongWithTheCounts) {
    using T = TypeParam;
    Random random(3431);
    constexpr Index huge = (std::numeric_limits<Index>::max)();
    std::vector<castle::UqKvCache<T>> heads;
    const castle::Layer<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    std::vector<castle::LayerCache<T>> layers;
    for (int i = 0; i < 3; ++i) {
        heads.emplace_back(castle::Shape{.d = d, .dv = dv});
        layers.push_back(layer.make_cache());
    }
    const std::vector<castle::UqKvCache<T>*> head_caches = pointers(heads);
    const std::vector<castle::LayerCache<T>*> layer_caches = pointers(layers);
    const Head<T> tokens = random_head<T>(random, {5, d, dv});
    Matrix<T> x(5, 20), y = Matrix<T>::Constant(5, 20, sentinel<T>());
    Matrix<T> out = Matrix<T>::Constant(5, dv, sentinel<T>());
    fill_normal(random, x);
    const Matrix<T> y_before = y, out_before = out;
    const auto expect_sentences = [&](const Counts& counts, const std::string& words, const std::string& rows_of_input,
                                      const std::string& rows_of_x) {
        SCOPED_TRACE(::testing::PrintToString(counts));
        const std::string sentence =
            message<std::invalid_argument>([&] { castle::extend(head_caches, counts, tokens.input(), out); });
        EXPECT_EQ(sentence, "castle::extend: " + words + rows_of_input);
        const std::string of_layer = message<std::invalid_argument>([&] { layer.extend(layer_caches, counts, x, y); });
        EXPECT_EQ(of_layer, "castle::Layer: " + words + rows_of_x);
        EXPECT_TRUE(same_bits(out, out_before));
        EXPECT_TRUE(same_bits(y, y_before));
        for (const auto& cache : heads) EXPECT_EQ(cache.size(), 0);
        for (const auto& cache : layers) EXPECT_EQ(cache.size(), 0);
    };
    expect_sentences({2, 3}, "caches has 3 elements but counts has 2", "", "");
    expect_sentences({}, "caches has 3 elements but counts has 0", "", "");
    expect_sentences({1, 1, 2, 1}, "caches has 3 elements but counts has 4", "", "");
    expect_sentences({3, -1, 3}, "counts[1] is -1 but must be at least 0", "", "");
    expect_sentences({5, 0, -huge}, describe("counts[2] is ", -huge, " but must be at least 0"), "", "");
    expect_sentences({0, 5, 1}, "the counts up to counts[2] = 1 come to more than the 5 rows of ", "input.causal.q",
                     "x");
    // Of sums that overflow as well.
    expect_sentences({huge, huge, 7},
                     describe("the counts up to counts[0] = ", huge, " come to more than the 5 rows of "),
                     "input.causal.q", "x");
    expect_sentences({1, huge, 5}, describe("the counts up to counts[1] = ", huge, " come to more than the 5 rows of "),
                     "input.causal.q", "x");
    expect_sentences({1, 1, 1}, "the counts come to 3 but ", "input.causal.q has 5 rows", "x has 5 rows");
}

// Every pair of places, and each time all that an older batch may have left behind.
TYPED_TEST(Batch, FindsACacheThatIsThereTwice) {
    using T = TypeParam;
    Random random(3435);
    constexpr Index count = 6;
    const castle::Layer<T> layer({.d_model = 20, .heads = 3, .d_head = 6});
    std::vector<castle::UqKvCache<T>> heads;
    std::vector<castle::LayerCache<T>> layers;
    for (Index i = 0; i < count; ++i) {
        heads.emplace_back(castle::Shape{.d = d, .dv = dv});
        layers.push_back(layer.make_cache());
    }
    auto head_caches = pointers(heads);
    auto layer_caches = pointers(layers);
    const Counts counts = one_by_one(count);
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
            EXPECT_EQ(message<std::invalid_argument>([&] { castle::extend(head_batch, counts, tokens.input(), out); }),
                      "castle::extend: " + sentence);
            EXPECT_EQ(message<std::invalid_argument>([&] { layer.extend(layer_batch, counts, x, y); }),
                      "castle::Layer: " + sentence);
            // Those that are different go on, in any order.
            std::swap(head_caches[std::size_t(random.integer(0, j))], head_caches[std::size_t(random.integer(0, j))]);
            std::swap(layer_caches[std::size_t(random.integer(0, j))], layer_caches[std::size_t(random.integer(0, j))]);
            EXPECT_NO_THROW(castle::extend(head_caches, counts, tokens.input(), out));
            EXPECT_NO_THROW(layer.extend(layer_caches, counts, x, y));
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
    const Counts counts = one_by_one(1000);
    Caches caches;
    for (Cache& cache : all) caches.caches.push_back(&cache);
    for (int again = 0; again < 3; ++again) {
        caches.looks = 0;
        castle::detail::check_batch("extend", caches, counts);
        EXPECT_LE(caches.looks, 10 * 1000);
        std::reverse(caches.caches.begin(), caches.caches.end());
    }
}

TYPED_TEST(Batch, WithoutMemoryChangesNoToken) {
    using T = TypeParam;
    Random random(3440);
    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6};
    const castle::Shape shape{.d = d, .dv = dv, .heads = 4, .kv_heads = 2};
    const castle::Layer<T> layer(config);
    const Index longest = 200;
    Matrix<T> prompt(64, 20), x(longest, 20);
    fill_normal(random, prompt);
    fill_normal(random, x);
    const Head<T> head_prompt = random_heads<T>(random, 64, shape), tokens = random_heads<T>(random, longest, shape);

    // Calls extend_batch(caches, counts), with fewer and fewer allocations that fail, on caches from make_cache(), each
    // of 64 tokens; out(), which it writes to, then is `expected`.
    const auto expect_unchanged = [&](const Counts& counts, const auto& make_cache, const auto& extend_batch,
                                      const auto& out, const Matrix<T>& expected) {
        bool failed = true;
        for (long successes = 0; failed; ++successes) {
            SCOPED_TRACE(describe(successes, " allocations go well, counts ", ::testing::PrintToString(counts)));
            std::vector<decltype(make_cache())> caches;
            for (std::size_t i = 0; i < counts.size(); ++i) caches.push_back(make_cache());
            const auto all = pointers(caches);
            failed = false;
            try {
                const Allocations::Failure failure(successes);
                extend_batch(all);
            } catch (const std::bad_alloc&) {
                failed = true;
                for (const auto& cache : caches) EXPECT_EQ(cache.size(), 64);
                extend_batch(all);
            }
            EXPECT_TRUE(same_bits(out(), expected));
            for (std::size_t i = 0; i < caches.size(); ++i) EXPECT_EQ(caches[i].size(), 64 + counts[i]);
            ASSERT_LT(successes, 1000);
        }
    };
    for (const Counts& counts : {Counts{1, 1, 1}, Counts{0, 5, 140}, Counts{33, 1, 0}}) {
        const Index rows = total(counts);
        Matrix<T> y(rows, 20), expected_y(rows, 20), out(rows, 4 * dv), expected_out(rows, 4 * dv);
        const auto make_layer_cache = [&] {
            castle::LayerCache<T> cache = layer.make_cache();
            layer.extend(cache, prompt);
            return cache;
        };
        const auto make_head_cache = [&] {
            castle::UqKvCache<T> cache(shape);
            castle::extend(cache, head_prompt.input());
            return cache;
        };
        Index first = 0;
        for (const Index count : counts) {
            castle::LayerCache<T> of_layer = make_layer_cache();
            castle::UqKvCache<T> of_heads = make_head_cache();
            layer.extend(of_layer, x.middleRows(first, count), expected_y.middleRows(first, count));
            castle::extend(of_heads, tokens.input().tokens(first, count), expected_out.middleRows(first, count));
            first += count;
        }
        expect_unchanged(
            counts, make_layer_cache, [&](const auto& caches) { layer.extend(caches, counts, x.topRows(rows), y); },
            [&] { return y; }, expected_y);
        expect_unchanged(
            counts, make_head_cache,
            [&](const auto& caches) { castle::extend(caches, counts, tokens.first_tokens(rows), out); },
            [&] { return out; }, expected_out);
    }
}

}  // namespace
