// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <array>
#include <new>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Caches that share memory, each like one of its own.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Fork : public ::testing::Test {};
TYPED_TEST_SUITE(Fork, support::Scalars);

constexpr Index d = 7, dv = 5;

// A cache, and which tokens of `pool` are in it.
template <class T>
class Sequence {
  public:
    Sequence(Head<T>& pool, const castle::Options& options, Index rollback)
        : pool_(&pool), cache_({.d = d, .dv = dv}, options, rollback) {}

    Sequence fork() const { return Sequence(*pool_, cache_.fork(), tokens_); }

    Index size() const { return Index(tokens_.size()); }
    castle::UqKvCache<T>& cache() { return cache_; }

    void extend(Random& random, Index count) {
        const Index before = size();
        for (Index i = 0; i < count; ++i) tokens_.push_back(random.integer(0, pool_->qc.rows() - 1));
        Head<T> head = all();
        const Matrix<T> out = castle::extend(cache_, head.input().tokens(before, count));
        const Outcome<T> alone = run_at_once(head.input(), cache_.options());
        EXPECT_TRUE(same_bits(out, Matrix<T>(alone.output.bottomRows(count)))) << count << " tokens onto " << before;
        EXPECT_TRUE(same_bits(cache_.lookahead_keys(), alone.lookahead_keys)) << size() << " tokens";
    }
    void rollback(Index count) {
        cache_.rollback(count);
        tokens_.resize(tokens_.size() - std::size_t(count));
    }
    void clear() {
        cache_.clear();
        tokens_.clear();
    }

  private:
    Sequence(Head<T>& pool, castle::UqKvCache<T> cache, std::vector<Index> tokens)
        : pool_(&pool), cache_(std::move(cache)), tokens_(std::move(tokens)) {}

    Head<T> all() const {
        Head<T> head({size(), d, dv});
        for (std::size_t m = 0; m < 6; ++m) {
            for (Index t = 0; t < size(); ++t) head.all()[m]->row(t) = pool_->all()[m]->row(tokens_[std::size_t(t)]);
        }
        return head;
    }

    Head<T>* pool_;
    castle::UqKvCache<T> cache_;
    std::vector<Index> tokens_;
};

TYPED_TEST(Fork, GoesOnLikeACacheOfItsOwnInAnyOrderOfCalls) {
    using T = TypeParam;
    for (std::uint64_t seed = 3200; seed < 3230; ++seed) {
        Random random(seed);
        const Index window = random.pick(std::array<Index, 6>{0, 1, 33, 64, 130, castle::unlimited});
        const Index rollback = random.pick(std::array<Index, 3>{0, 64, 100});
        SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", rollback ", rollback));
        Head<T> pool = random_head<T>(random, {50, d, dv});
        std::vector<Sequence<T>> sequences;
        sequences.emplace_back(pool, castle::Options{.lookahead_window = window}, rollback);
        for (int step = 0; step < 60; ++step) {
            const std::size_t i = std::size_t(random.integer(0, Index(sequences.size()) - 1));
            Sequence<T>& sequence = sequences[i];
            switch (random.integer(0, 8)) {
                case 0:
                    if (sequences.size() < 6) sequences.push_back(sequence.fork());
                    break;
                case 1:
                    if (sequences.size() > 1) sequences.erase(sequences.begin() + std::ptrdiff_t(i));
                    break;
                case 2:
                    sequence.rollback(random.integer(0, sequence.cache().max_rollback()));
                    break;
                case 3:
                    if (random.integer(0, 2) == 0) sequence.clear();
                    break;
                case 4:
                    sequence.cache().reserve(random.integer(0, 500));
                    break;
                default:
                    if (sequence.size() < 400) {
                        sequence.extend(random, random.integer(0, random.pick(std::array<Index, 3>{1, 20, 150})));
                    }
            }
        }
        for (Sequence<T>& sequence : sequences) sequence.extend(random, 1);
    }
}

// The first fork has a U of its own, which it shares with a fork of its own in turn.
TYPED_TEST(Fork, OfAForkBeginsAnewAlone) {
    using T = TypeParam;
    Random random(3290);
    Head<T> pool = random_head<T>(random, {50, d, dv});
    for (const Index window : {Index(31), castle::unlimited}) {
        for (const bool clears : {true, false}) {
            SCOPED_TRACE(describe("window ", window, clears ? ", cleared" : ", rolled back"));
            Sequence<T> sequence(pool, {.lookahead_window = window}, 128);
            sequence.extend(random, 90);
            Sequence<T> fork = sequence.fork();
            fork.extend(random, 10);
            Sequence<T> second = fork.fork();
            if (clears) {
                second.clear();
            } else {
                second.rollback(100);
            }
            second.extend(random, 1);
            for (Sequence<T>* one : {&sequence, &fork, &second}) one->extend(random, 1);
        }
    }
}

TYPED_TEST(Fork, SharesWhatNeitherWritesTo) {
    using T = TypeParam;
    constexpr Index length = 64 * 40;
    Random random(3300);
    const Head<T> head = random_head<T>(random, {length + 64, 16, 16});
    for (const Index window : {Index(64), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        castle::UqKvCache<T> cache({.d = 16, .dv = 16}, {.lookahead_window = window}, 0);
        castle::extend(cache, head.first_tokens(length));
        const castle::CacheBytes alone = cache.bytes();
        EXPECT_EQ(alone.shared, 0);
        std::optional<castle::UqKvCache<T>> fork = cache.fork();
        EXPECT_EQ(cache.bytes(), fork->bytes());
        EXPECT_EQ(cache.bytes().total(), alone.total());
        EXPECT_GT(cache.bytes().shared, alone.total() * 9 / 10);

        // A block later K^C, V^C and Q^U are shared still, and with a window U as well.
        castle::extend(*fork, head.input().tokens(length, 32));
        const Index stored = 16 * Index(sizeof(T)), computed = 16 * Index(sizeof(castle::Compute<T>));
        // The place of a copied U stays shared where U is stored beside K^C.
        const Index numbers = window == 64 || stored < computed ? 3 : 4;
        EXPECT_GE(fork->bytes().shared, length * numbers * stored * 9 / 10);
        EXPECT_LE(fork->bytes().owned, window == 64 ? 64 * 16 * computed : length * (1 + 2) * computed * 11 / 10);

        castle::extend(cache, head.input().tokens(length, 32));
        fork.reset();
        EXPECT_EQ(cache.bytes().shared, 0);
    }
}

// Forks before every answer, as of a chat, each of which is kept or dropped.
TYPED_TEST(Fork, KeepsNoMoreMemoryThanItTellsOf) {
    using T = TypeParam;
    constexpr Index width = 32;
    Random random(3305);
    const Head<T> head = random_head<T>(random, {64, width, width});
    for (const Index window : {Index(1024), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        const long long before = Allocations::live_bytes();
        castle::UqKvCache<T> cache({.d = width, .dv = width}, {.lookahead_window = window});
        for (int turn = 0; turn < 60; ++turn) {
            castle::UqKvCache<T> fork = cache.fork();
            castle::extend(fork, head.input());
            if (turn % 3 != 0) cache = std::move(fork);
        }
        EXPECT_EQ(cache.bytes().shared, 0);
        EXPECT_LE(double(Allocations::live_bytes() - before), 1.05 * double(cache.bytes().owned));
    }
}

// Panels that were reserved together are given back together, so a fork of a few keeps all of them. Turn by turn that
// must not add up.
TYPED_TEST(Fork, UsesWhatWasReservedBeforeIt) {
    using T = TypeParam;
    constexpr Index width = 32, turns = 20, question = 70, room = 1000;
    Random random(3306);
    const Head<T> head = random_head<T>(random, {turns * question, width, width});
    for (const Index window : {Index(300), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        const long long before = Allocations::live_bytes();
        castle::UqKvCache<T> chat({.d = width, .dv = width}, {.lookahead_window = window});
        for (Index turn = 0; turn < turns; ++turn) {
            chat.reserve(chat.size() + room);
            castle::extend(chat, head.input().tokens(turn * question, question));
            castle::UqKvCache<T> before_answer = chat.fork();
            castle::extend(chat, head.input().tokens(0, 200));
            chat = std::move(before_answer);
        }
        castle::UqKvCache<T> reserved({.d = width, .dv = width}, {.lookahead_window = window});
        const long long held = Allocations::live_bytes() - before - reserved.bytes().total();
        reserved.reserve(turns * question + room);
        EXPECT_LE(double(held), 1.1 * double(reserved.bytes().owned));
        EXPECT_TRUE(same_bits(chat.lookahead_keys(), run_at_once(head.input(), chat.options()).lookahead_keys));
    }
}

TYPED_TEST(Fork, AllocatesNothingOnceItHasReserved) {
    using T = TypeParam;
    Random random(3307);
    const Head<T> head = random_head<T>(random, {400, d, dv});
    Matrix<T> out(1, dv);
    for (const Index window : {Index(0), Index(100), castle::unlimited}) {
        SCOPED_TRACE(describe("window ", window));
        castle::UqKvCache<T> cache({.d = d, .dv = dv}, {.lookahead_window = window});
        cache.reserve(400);
        castle::extend(cache, head.first_tokens(180));
        castle::UqKvCache<T> fork = cache.fork();
        EXPECT_EQ(cache.capacity(), 448);
        EXPECT_LT(fork.capacity(), 180 + 64);
        for (castle::UqKvCache<T>* one : {&fork, &cache}) {
            one->reserve(400);
            const Allocations::Count count;
            for (Index t = 180; t < 400; ++t) castle::extend(*one, head.input().tokens(t, 1), out);
            EXPECT_EQ(count.allocations(), 0);
        }
        const Matrix<castle::Compute<T>> keys = run_at_once(head.input(), cache.options()).lookahead_keys;
        EXPECT_TRUE(same_bits(cache.lookahead_keys(), keys));
        EXPECT_TRUE(same_bits(fork.lookahead_keys(), keys));
    }
}

TYPED_TEST(Fork, OfACacheOfStandardAttentionSharesItsPanels) {
    using T = TypeParam;
    Random random(3310);
    const Head<T> head = random_head<T>(random, {300, d, dv});
    castle::UqKvCache<T> cache({.d = d, .dv = dv}, {.lookahead_window = 0});
    castle::extend(cache, head.causal_input().tokens(0, 200));
    castle::UqKvCache<T> fork = cache.fork();
    const Matrix<T> whole = castle::causal_attention(head.qc, head.kc, head.vc);
    for (castle::UqKvCache<T>* one : {&cache, &fork}) {
        EXPECT_TRUE(
            same_bits(castle::extend(*one, head.causal_input().tokens(200, 100)), Matrix<T>(whole.bottomRows(100))));
        EXPECT_GT(one->bytes().shared, 0);
    }
}

// A prompt and its forks in one batch, with counts of all kinds.
TYPED_TEST(Fork, GoesOnInABatchWithItsOrigin) {
    using T = TypeParam;
    ThreadPool pool(3);
    std::uint64_t seed = 3312;
    for (const castle::Executor& executor : {castle::Executor{}, pool.executor(), reversed_executor()}) {
        for (const Index window : {Index(0), Index(60), castle::unlimited}) {
            SCOPED_TRACE(describe("seed ", seed, ", window ", window));
            Random random(seed++);
            const castle::Options options{.lookahead_window = window};
            std::vector<castle::UqKvCache<T>> caches, alone;
            const Head<T> prompt = random_head<T>(random, {150, d, dv});
            for (auto* all : {&caches, &alone}) {
                all->emplace_back(castle::Shape{.d = d, .dv = dv}, options);
                castle::extend(all->back(), prompt.input());
            }
            for (int i = 1; i < 4; ++i) {
                caches.push_back(caches.front().fork());
                alone.emplace_back(castle::Shape{.d = d, .dv = dv}, options);
                castle::extend(alone.back(), prompt.input());
            }
            std::vector<castle::UqKvCache<T>*> batch;
            for (auto& cache : caches) batch.push_back(&cache);
            for (const std::vector<Index>& counts :
                 {std::vector<Index>{1, 1, 1, 1}, {0, 5, 1, 0}, {140, 0, 1, 33}, {1, 1, 1, 1}, {3, 70, 200, 1}}) {
                const Head<T> tokens = random_head<T>(random, {total(counts), d, dv});
                const Matrix<T> out = written<T>(total(counts), dv, [&](castle::MatrixView<T> view) {
                    castle::extend(batch, counts, tokens.input(), view, executor);
                });
                Index first = 0;
                for (std::size_t i = 0; i < 4; ++i) {
                    const Matrix<T> expected = castle::extend(alone[i], tokens.input().tokens(first, counts[i]));
                    EXPECT_TRUE(same_bits(Matrix<T>(out.middleRows(first, counts[i])), expected)) << "sequence " << i;
                    EXPECT_TRUE(same_bits(caches[i].lookahead_keys(), alone[i].lookahead_keys())) << "sequence " << i;
                    first += counts[i];
                }
            }
            for (std::size_t i = 0; i < 4; ++i) {
                const Index most = caches[i].max_rollback();
                EXPECT_EQ(most, alone[i].max_rollback());
                caches[i].rollback(most);
                alone[i].rollback(most);
                EXPECT_TRUE(same_bits(caches[i].lookahead_keys(), alone[i].lookahead_keys())) << "sequence " << i;
            }
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Fork, OfALayerIsThatOfItsHeads) {
    using T = TypeParam;
    for (const Index kv_heads : {1, 2, 4}) {
        for (const Index window : {Index(0), Index(50)}) {
            SCOPED_TRACE(describe(kv_heads, " key-value heads, window ", window));
            const castle::LayerConfig config{
                .d_model = 20, .heads = 4, .kv_heads = kv_heads, .d_head = 6, .rotary = castle::Rotary{}};
            const castle::Layer<T> layer(config, {.lookahead_window = window});
            Random random(3320);
            Matrix<T> x(300, 20), other(300, 20);
            fill_normal(random, x);
            fill_normal(random, other);
            other.topRows(150) = x.topRows(150);
            castle::LayerCache<T> cache = layer.make_cache();
            layer.extend(cache, x.topRows(150));
            castle::LayerCache<T> fork = cache.fork();
            EXPECT_GT(fork.bytes().shared, kv_heads == 4 && window == 50 ? fork.bytes().owned : 0);
            for (Index t = 150; t < 300; t += 50) {
                EXPECT_TRUE(
                    same_bits(layer.extend(cache, x.middleRows(t, 50)), Matrix<T>(layer.forward(x).middleRows(t, 50))));
                EXPECT_TRUE(same_bits(layer.extend(fork, other.middleRows(t, 50)),
                                      Matrix<T>(layer.forward(other).middleRows(t, 50))));
            }
        }
    }
}

// One cache a thread; what the thread sanitizer is for.
TYPED_TEST(Fork, GoesOnOnAThreadOfItsOwn) {
    using T = TypeParam;
    Random random(3330);
    Head<T> pool = random_head<T>(random, {50, d, dv});
    for (const Index window : {Index(40), castle::unlimited}) {
        Sequence<T> prompt(pool, {.lookahead_window = window}, 64);
        prompt.extend(random, 150);
        const Sequence<T> still = prompt.fork();  // which all threads fork again
        std::vector<std::thread> threads;
        for (std::uint64_t i = 0; i < 4; ++i) {
            threads.emplace_back([i, &still, own = prompt.fork()]() mutable {
                Random numbers(3340 + i);
                for (int step = 0; step < 4; ++step) {
                    own.extend(numbers, 1 + Index(i) * 13);
                    Sequence<T> child = own.fork();
                    own.rollback(std::min<Index>(3, own.cache().max_rollback()));
                    child.extend(numbers, 20);
                    if (step == 1) child.clear();
                    child.extend(numbers, 1);
                    if (step == 2) own = std::move(child);
                    if (step == 3) own = still.fork();
                }
                own.extend(numbers, 1);
            });
        }
        prompt.extend(random, 40);
        for (std::thread& thread : threads) thread.join();
        prompt.extend(random, 40);
    }
}

// Each panel that a cache had reserved and left behind goes to one of its forks.
TYPED_TEST(Fork, UsesWhatWasReservedBeforeItOnAThreadOfItsOwn) {
    using T = TypeParam;
    Random random(3345);
    Head<T> pool = random_head<T>(random, {50, d, dv});
    for (const Index window : {Index(200), castle::unlimited}) {
        std::optional<Sequence<T>> prompt(std::in_place, pool, castle::Options{.lookahead_window = window}, 64);
        prompt->cache().reserve(700);
        prompt->extend(random, 100);
        std::vector<std::thread> threads;
        for (std::uint64_t i = 0; i < 4; ++i) {
            threads.emplace_back([i, own = prompt->fork()]() mutable {
                Random numbers(3346 + i);
                for (int step = 0; step < 6; ++step) {
                    own.fork().extend(numbers, 70);  // takes some and gives them back
                    own.extend(numbers, 50);
                }
            });
        }
        prompt.reset();
        for (std::thread& thread : threads) thread.join();
    }
}

TYPED_TEST(Fork, WithoutMemoryLeavesBothAsTheyWere) {
    using T = TypeParam;
    Random random(3350);
    const Head<T> head = random_head<T>(random, {300, d, dv});
    const Outcome<T> whole = run_at_once(head.input());
    const auto expect_whole = [&](castle::UqKvCache<T>& cache) {
        const Index before = cache.size();
        EXPECT_TRUE(same_bits(castle::extend(cache, head.input().tokens(before, 300 - before)),
                              Matrix<T>(whole.output.bottomRows(300 - before))));
        EXPECT_TRUE(same_bits(cache.lookahead_keys(), whole.lookahead_keys));
    };
    // call(cache) on a cache of 190 tokens, with fewer and fewer allocations that fail.
    const auto expect_unchanged = [&](const auto& call) {
        bool failed = true;
        for (long successes = 0; failed; ++successes) {
            SCOPED_TRACE(describe(successes, " allocations go well"));
            castle::UqKvCache<T> cache({.d = d, .dv = dv});
            castle::extend(cache, head.first_tokens(190));
            std::optional<castle::UqKvCache<T>> fork = cache.fork();
            failed = false;
            try {
                const Allocations::Failure failure(successes);
                call(cache);
            } catch (const std::bad_alloc&) {
                failed = true;
                EXPECT_EQ(cache.size(), 190);
            }
            expect_whole(cache);
            expect_whole(*fork);
            ASSERT_LT(successes, 1000);
        }
    };
    Matrix<T> out(150, dv);
    expect_unchanged([](castle::UqKvCache<T>& cache) { static_cast<void>(cache.fork()); });
    expect_unchanged([](castle::UqKvCache<T>& cache) { cache.rollback(70); });
    for (const Index tokens : {1, 2, 5, 100}) {
        expect_unchanged([&](castle::UqKvCache<T>& cache) {
            castle::extend(cache, head.input().tokens(190, tokens), out.topRows(tokens));
        });
    }
    // In one batch with another fork.
    for (const std::vector<Index>& counts : {std::vector<Index>{1, 1}, {40, 0}, {0, 100}, {70, 33}}) {
        expect_unchanged([&](castle::UqKvCache<T>& cache) {
            std::optional<castle::UqKvCache<T>> other = cache.fork();
            const std::vector<castle::UqKvCache<T>*> both = {&cache, &*other};
            // Both see the same tokens.
            Head<T> tokens({total(counts), d, dv});
            const castle::Input<T> next = head.input();
            const std::array<castle::ConstMatrixView<T>, 6> from{next.causal.q,    next.causal.k,    next.causal.v,
                                                                 next.lookahead.q, next.lookahead.k, next.lookahead.v};
            for (std::size_t m = 0; m < 6; ++m) {
                tokens.all()[m]->topRows(counts[0]) = from[m].map().middleRows(190, counts[0]);
                tokens.all()[m]->bottomRows(counts[1]) = from[m].map().middleRows(190, counts[1]);
            }
            castle::extend(both, counts, tokens.input(), out.topRows(total(counts)));
        });
    }
}

}  // namespace
