// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <mpi.h>

#include <castle/castle.hpp>
#include <castle/mpi/sharded_cache.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/masks.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/saved.hpp"
#include "support/tolerances.hpp"

// A cache of several ranks has the bits of one.
namespace {

using castle::bfloat16;
using castle::Compute;
using castle::Index;
using castle::Matrix;
using castle::UqKvCache;
using castle::mpi::Communicator;
using castle::mpi::ShardedCache;
using namespace support;

const Communicator& all_ranks() {
    static const Communicator all(MPI_COMM_WORLD);
    return all;
}

template <class T>
class Sharded : public ::testing::Test {};
using Scalars = ::testing::Types<float, bfloat16>;
TYPED_TEST_SUITE(Sharded, Scalars);

// One cache and one on all ranks, which the same happens to.
template <class T>
class Pair {
  public:
    Pair(const castle::Shape& shape, const castle::Options& options, Index rollback = castle::default_rollback,
         Index sliding_window = castle::unlimited)
        : one(shape, options, rollback, sliding_window),
          sharded(shape, options, all_ranks(), rollback, sliding_window) {}
    Pair(UqKvCache<T> a, ShardedCache<T> b) : one(std::move(a)), sharded(std::move(b)) {}

    void extend(const castle::Input<T>& input, const castle::Masks& mask = {}, const castle::Executor& executor = {}) {
        const Index rows = input.causal.q.rows(), heads = one.shape().heads;
        using Sums = Matrix<Compute<T>>;
        struct Results {
            Matrix<T> out;
            Sums log_sum_exp, mass;
        };
        const auto run = [&](const auto& extend_cache) {
            Results results{.out = {},
                            .log_sum_exp = Sums::Constant(rows, heads, sentinel<Compute<T>>()),
                            .mass = Sums::Constant(rows, heads, sentinel<Compute<T>>())};
            results.out = written<T>(rows, heads * one.shape().dv, [&](castle::MatrixView<T> view) {
                castle::Output<T> output{.out = view};
                if (with_by_products) {
                    output.log_sum_exp = results.log_sum_exp;
                    output.mass = results.mass;
                    output.mass_over = mass_over;
                }
                extend_cache(output);
            });
            return results;
        };
        const Results expected = run([&](const auto& output) { castle::extend(one, input, output, mask); });
        const Results given =
            run([&](const auto& output) { castle::mpi::extend(sharded, input, output, mask, executor); });
        EXPECT_TRUE(same_bits(given.out, expected.out)) << rows << " tokens onto " << one.size() - rows;
        EXPECT_TRUE(same_bits(given.log_sum_exp, expected.log_sum_exp));
        EXPECT_TRUE(same_bits(given.mass, expected.mass));
    }
    void rollback(Index tokens) {
        one.rollback(tokens);
        sharded.rollback(tokens);
    }
    void expect_same() const {
        EXPECT_EQ(sharded.size(), one.size());
        EXPECT_EQ(sharded.max_rollback(), one.max_rollback());
        for (Index h = 0; h < one.shape().kv_heads; ++h) {
            EXPECT_TRUE(same_bits(sharded.lookahead_keys(h), one.lookahead_keys(h))) << "of head " << h;
        }
        const std::string bytes = saved(sharded);
        EXPECT_EQ(bytes.size(), sharded.communicator().rank() == 0 ? saved(one).size() : 0U);
        if (sharded.communicator().rank() == 0) {
            const std::string expected = saved(one);
            const auto place = std::mismatch(bytes.begin(), bytes.end(), expected.begin()).first - bytes.begin();
            EXPECT_TRUE(bytes == expected) << "of the saved caches, at byte " << place << " of " << bytes.size();
        }
    }

    UqKvCache<T> one;
    ShardedCache<T> sharded;
    bool with_by_products = false;
    castle::Mask mass_over = castle::masks::sliding_window(100);
};

std::vector<castle::Shape> shapes() {
    return {{.d = 7, .dv = 5, .heads = 1, .kv_heads = 1},
            {.d = 16, .dv = 3, .heads = 4, .kv_heads = 2},
            {.d = 9, .dv = 17, .heads = 3, .kv_heads = 1}};
}

TYPED_TEST(Sharded, ExtendsInPiecesOfAnySize) {
    using T = TypeParam;
    const std::array<Index, 7> windows{castle::unlimited, 0, 1, 40, 128, 600, 1500};
    for (std::uint64_t seed = 100; seed < 107; ++seed) {
        Random random(seed);
        const Index window = windows[seed - 100];
        const castle::Shape shape = random.pick(shapes());
        // Up to five spans: some ranks have more than others, some none at first.
        const Index length = random.integer(1, 2400);
        SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", length ", length, ", ", words_of(shape)));
        const Head<T> head = random_heads<T>(random, length, shape);
        Pair<T> pair(shape, {.lookahead_window = window});
        for (Index first = 0; first < length;) {
            const Index most = random.pick(std::array<Index, 5>{1, 33, 130, 700, 2400});
            const Index count = std::min(random.integer(0, most), length - first);
            pair.extend(head.input().tokens(first, count));
            first += count;
            if (random.integer(0, 3) == 0) pair.expect_same();
        }
        pair.expect_same();
    }
}

TYPED_TEST(Sharded, DecodesAcrossTheEdgesOfSpans) {
    using T = TypeParam;
    for (const castle::Shape& shape : shapes()) {
        for (const Index window : {Index(0), Index(50), castle::unlimited}) {
            Random random(200);
            const Head<T> head = random_heads<T>(random, 1100, shape);
            Pair<T> pair(shape, {.lookahead_window = window});
            pair.extend(head.input().tokens(0, 500));
            for (Index t = 500; t < 530; ++t) pair.extend(head.input().tokens(t, 1));
            pair.expect_same();
            pair.extend(head.input().tokens(530, 480));
            for (Index t = 1010; t < 1060; ++t) pair.extend(head.input().tokens(t, 1));
            pair.expect_same();
        }
    }
}

TYPED_TEST(Sharded, RollsBackAndForks) {
    using T = TypeParam;
    for (std::uint64_t seed = 300; seed < 306; ++seed) {
        Random random(seed);
        const castle::Shape shape = random.pick(shapes());
        const Index window = random.pick(std::array<Index, 4>{castle::unlimited, 0, 60, 700});
        SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", ", words_of(shape)));
        const Head<T> head = random_heads<T>(random, 3000, shape);
        Pair<T> pair(shape, {.lookahead_window = window}, 200);
        Index at = 0;
        const auto go_on = [&](Pair<T>& onto) {
            const Index count = random.integer(1, 600);
            onto.extend(head.input().tokens(at, count));
            at += count;
        };
        go_on(pair);
        go_on(pair);
        Pair<T> fork(pair.one.fork(), pair.sharded.fork());
        for (int i = 0; i < 3; ++i) {
            at = at % 1500;
            go_on(pair);
            pair.rollback(random.integer(0, pair.one.max_rollback()));
            pair.expect_same();
            if (i == 1) fork.rollback(random.integer(0, fork.one.max_rollback()));
            go_on(fork);
            fork.expect_same();
        }
        pair.one.clear();
        pair.sharded.clear();
        at = 0;
        go_on(pair);
        pair.expect_same();
        fork.expect_same();
    }
}

TYPED_TEST(Sharded, SlidingWindows) {
    using T = TypeParam;
    for (const Index sliding : {Index(1), Index(100), Index(700)}) {
        Random random(static_cast<std::uint64_t>(400 + sliding));
        const castle::Shape shape{.d = 16, .dv = 3, .heads = 4, .kv_heads = 2};
        const Head<T> head = random_heads<T>(random, 6000, shape);
        Pair<T> pair(shape, {.lookahead_window = 300}, 40, sliding);
        Index at = 0;
        while (at < 4500) {
            const Index count = random.integer(1, 900);
            pair.extend(head.input().tokens(at, count));
            at += count;
            pair.rollback(random.integer(0, std::min<Index>(40, pair.one.max_rollback())));
            for (Index t = 0; t < 3; ++t) pair.extend(head.input().tokens(at++, 1));
        }
        pair.expect_same();
    }
}

TYPED_TEST(Sharded, MasksTermsAndByProducts) {
    using T = TypeParam;
    const castle::Shape shape{.d = 8, .dv = 5, .heads = 4, .kv_heads = 2};
    Random random(500);
    const Index length = 1300;
    const Head<T> head = random_heads<T>(random, length + 10, shape);
    castle::Options options{.lookahead_window = 700};
    options.terms.bias = castle::tables::alibi(4, length + 10);
    options.terms.soft_cap = 20;
    options.terms.sinks = {0.5, -1, 2, 0};
    for (const NamedMask& named : all_masks(random, length)) {
        SCOPED_TRACE(named.name);
        Pair<T> pair(shape, options, 64);
        pair.with_by_products = true;
        // Some masks let rows see later keys, which have to come with them.
        pair.extend(head.input().tokens(0, length), castle::Mask(named.mask).allowing_empty_rows());
        pair.expect_same();
        for (Index t = length; t < length + 5; ++t) pair.extend(head.input().tokens(t, 1));
        pair.rollback(40);
        pair.expect_same();
    }
}

TYPED_TEST(Sharded, RaggedBatches) {
    using T = TypeParam;
    for (std::uint64_t seed = 600; seed < 604; ++seed) {
        Random random(seed);
        const castle::Shape shape = random.pick(shapes());
        std::vector<Pair<T>> pairs;
        for (const Index window : {castle::unlimited, Index(0), Index(70), castle::unlimited}) {
            pairs.emplace_back(shape, castle::Options{.lookahead_window = window});
        }
        ThreadPool pool(2);
        for (int round = 0; round < 4; ++round) {
            std::vector<Index> counts;
            for (std::size_t i = 0; i < pairs.size(); ++i) {
                counts.push_back(round == 3 ? 1 : random.pick(std::array<Index, 6>{0, 1, 2, 40, 300, 700}));
            }
            const Index rows = total(counts);
            const Head<T> head = random_heads<T>(random, rows, shape);
            const auto run = [&](const auto& extend_all) {
                return written<T>(rows, shape.heads * shape.dv, extend_all);
            };
            std::vector<UqKvCache<T>*> ones;
            std::vector<ShardedCache<T>*> shardeds;
            for (Pair<T>& pair : pairs) {
                ones.push_back(&pair.one);
                shardeds.push_back(&pair.sharded);
            }
            const Matrix<T> expected =
                run([&](castle::MatrixView<T> out) { castle::extend(ones, counts, head.input(), out); });
            const Matrix<T> given = run([&](castle::MatrixView<T> out) {
                castle::mpi::extend(shardeds, counts, head.input(), out,
                                    round % 2 == 0 ? pool.executor() : castle::Executor());
            });
            EXPECT_TRUE(same_bits(given, expected)) << "round " << round;
            for (const Pair<T>& pair : pairs) pair.expect_same();
        }
    }
}

TYPED_TEST(Sharded, AnyExecutor) {
    using T = TypeParam;
    const castle::Shape shape{.d = 16, .dv = 3, .heads = 4, .kv_heads = 2};
    Random random(700);
    const Head<T> head = random_heads<T>(random, 1500, shape);
    ThreadPool pool(3);
    for (const castle::Executor& executor : {pool.executor(), reversed_executor(), shuffled_executor(1)}) {
        Pair<T> pair(shape, {.lookahead_window = 200});
        for (const Index count : {700, 1, 33, 1, 400, 130}) {
            pair.extend(head.input().tokens(pair.one.size(), count), {}, executor);
        }
        pair.expect_same();
    }
}

TEST(ShardedCache, OfFloatOntoSixteenBits) {
    const castle::Shape shape{.d = 16, .dv = 8, .heads = 4, .kv_heads = 2};
    Random random(800);
    const Head<float> head = random_heads<float>(random, 1200, shape);
    UqKvCache<bfloat16> one(shape);
    ShardedCache<bfloat16> sharded(shape, {}, all_ranks());
    for (const Index count : {600, 1, 599}) {
        Matrix<float> expected(count, 32), given(count, 32);
        const castle::Input<float> input = head.input().tokens(one.size(), count);
        castle::extend(one, input, castle::Output<float>{.out = expected});
        castle::mpi::extend(sharded, input, given);
        EXPECT_TRUE(same_bits(given, expected));
    }
    ShardedCache<bfloat16> fork = sharded.fork();
    const std::vector<ShardedCache<bfloat16>*> both{&fork, &sharded};
    Matrix<float> given(20, 32), expected(10, 32);
    const castle::Input<float> input = head.input().tokens(0, 20);
    castle::extend(one, input.tokens(0, 10), castle::Output<float>{.out = expected});
    castle::mpi::extend<bfloat16>(both, std::array<Index, 2>{10, 10}, input, castle::Output<float>{.out = given});
    EXPECT_TRUE(same_bits(Matrix<float>(given.topRows(10)), expected));
}

// --- files -----------------------------------------------------------------------------------------------------------

// The first ranks of all, if this is one of them.
std::optional<Communicator> first_ranks(int count) {
    MPI_Comm some = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, all_ranks().rank() < count ? 0 : MPI_UNDEFINED, all_ranks().rank(), &some);
    if (some == MPI_COMM_NULL) return std::nullopt;
    std::optional<Communicator> ranks(some);
    MPI_Comm_free(&some);
    return ranks;
}

template <class T>
ShardedCache<T> loaded_onto(const Communicator& ranks, const std::string& bytes, Index rollback = 64) {
    // Only rank 0 reads.
    std::istringstream in(ranks.rank() == 0 ? bytes : "");
    return ShardedCache<T>::load(in, ranks, {}, rollback);
}

TYPED_TEST(Sharded, SavedByAnyNumberOfRanksLoadsOntoAnyOther) {
    using T = TypeParam;
    for (const Index window : {castle::unlimited, Index(0), Index(90)}) {
        Random random(900);
        const castle::Shape shape{.d = 9, .dv = 4, .heads = 4, .kv_heads = 2};
        const Head<T> head = random_heads<T>(random, 2700, shape);
        castle::Options options{.lookahead_window = window};
        options.terms.sinks = {1, 2, 3, 4};
        UqKvCache<T> one(shape, options);
        castle::extend(one, head.first_tokens(2101));
        const std::string bytes = saved(one);
        for (int n = 1; n <= all_ranks().size(); ++n) {
            const std::optional<Communicator> some = first_ranks(n);
            if (!some) continue;
            ShardedCache<T> sharded = loaded_onto<T>(*some, bytes);
            Pair<T> pair(one.fork(), std::move(sharded));
            pair.expect_same();
            pair.extend(head.input().tokens(2101, 530));
            pair.rollback(50);
            pair.expect_same();
            const std::string again = saved(pair.sharded);
            if (some->rank() == 0) {
                EXPECT_EQ(saved(loaded<T>(again)), again);
            }
        }
    }
}

TEST(ShardedCache, FilesThatAreWrongThrowOnAllRanks) {
    Random random(1000);
    const castle::Shape shape{.d = 4, .dv = 3, .heads = 2, .kv_heads = 2};
    UqKvCache<float> one(shape, {.lookahead_window = 100});
    castle::extend(one, random_heads<float>(random, 1700, shape).input());
    const std::string good = saved(one);
    for (const std::size_t cut : {std::size_t(0), std::size_t(5), std::size_t(100), good.size() / 2, good.size() - 1}) {
        EXPECT_THROW(loaded_onto<float>(all_ranks(), good.substr(0, cut)), std::runtime_error) << cut;
    }
    for (int i = 0; i < 20; ++i) {
        std::string bad = good;
        char& byte = bad[std::size_t(random.integer(0, Index(bad.size()) - 1))];
        byte = static_cast<char>(byte ^ (1 << random.integer(0, 7)));
        EXPECT_THROW(loaded_onto<float>(all_ranks(), bad), std::runtime_error);
    }
    EXPECT_THROW(loaded_onto<bfloat16>(all_ranks(), good), std::runtime_error);
    EXPECT_THROW(loaded_onto<float>(all_ranks(), good, -1), std::invalid_argument);
    // Nothing of those is still under way.
    EXPECT_EQ(loaded_onto<float>(all_ranks(), good).size(), 1700);
}

TEST(ShardedCache, AStreamThatCannotBeWrittenThrowsOnAllRanks) {
    class Full : public std::streambuf {
      protected:
        int_type overflow(int_type) override { return traits_type::eof(); }
        std::streamsize xsputn(const char*, std::streamsize count) override {
            left_ -= count;
            return left_ < 0 ? 0 : count;
        }

      private:
        std::streamsize left_ = 5000;
    };
    Random random(1100);
    const castle::Shape shape{.d = 4, .dv = 3, .heads = 2, .kv_heads = 2};
    Pair<float> pair(shape, {});
    pair.extend(random_heads<float>(random, 1700, shape).input());
    for (const bool throws : {false, true}) {
        Full full;
        std::ostream out(&full);
        if (throws) out.exceptions(std::ios::badbit);
        EXPECT_ANY_THROW(pair.sharded.save(out));
    }
    pair.expect_same();
}

// --- errors ----------------------------------------------------------------------------------------------------------

TEST(ShardedCache, OtherArgumentsOnOneRankThrowOnAll) {
    const int last = all_ranks().size() - 1;
    if (last == 0) return;
    const bool differs = all_ranks().rank() == last;
    const auto make = [&](const castle::Shape& shape, const castle::Options& options, Index rollback, Index sliding) {
        ShardedCache<float>(shape, options, all_ranks(), rollback, sliding);
    };
    const castle::Shape shape{.d = 4, .dv = 4};
    const std::string words = "castle::mpi::ShardedCache: the arguments are not the same on all ranks";
    EXPECT_EQ(message<std::invalid_argument>([&] { make({.d = differs ? 5 : 4, .dv = 4}, {}, 64, 9); }), words);
    EXPECT_EQ(message<std::invalid_argument>([&] { make(shape, {.silu = differs}, 64, 9); }), words);
    EXPECT_EQ(message<std::invalid_argument>([&] { make(shape, {.scale = differs ? 1.0 : 0.5}, 64, 9); }), words);
    EXPECT_EQ(message<std::invalid_argument>([&] { make(shape, {}, differs ? 32 : 64, 9); }), words);
    EXPECT_EQ(message<std::invalid_argument>([&] { make(shape, {}, 64, differs ? 8 : 9); }), words);
    castle::Options sinks;
    sinks.terms.sinks = {differs ? 1.0 : 2.0};
    EXPECT_EQ(message<std::invalid_argument>([&] { make(shape, sinks, 64, 9); }), words);
    // One rank's own mistake.
    EXPECT_EQ(message<std::invalid_argument>([&] { make({.d = differs ? 0 : 4, .dv = 4}, {}, 64, 9); }),
              "castle::mpi::ShardedCache: d is 0 but must be at least 1" +
                  (differs ? std::string() : describe(" (on rank ", last, ")")));
}

TEST(ShardedCache, CallsThatFailOnOneRankChangeNothing) {
    const int last = all_ranks().size() - 1;
    const bool differs = all_ranks().rank() == last;
    const castle::Shape shape{.d = 4, .dv = 4, .heads = 2, .kv_heads = 1};
    Random random(1200);
    const Head<float> head = random_heads<float>(random, 1500, shape);
    Pair<float> pair(shape, {});
    pair.extend(head.first_tokens(1000));
    const castle::Input<float> next = head.input().tokens(1000, 100);
    Matrix<float> out(100, 8), narrow(100, 7);
    EXPECT_THROW(castle::mpi::extend(pair.sharded, next, differs ? narrow : out), std::invalid_argument);
    pair.expect_same();
    if (last > 0) {
        const Index count = differs ? 99 : 100;
        EXPECT_EQ(message<std::invalid_argument>([&] {
                      castle::mpi::extend(pair.sharded, next.tokens(0, count),
                                          castle::MatrixView<float>(out).middle_rows(0, count));
                  }),
                  "castle::extend: the arguments are not the same on all ranks");
        EXPECT_THROW(pair.sharded.rollback(differs ? 1 : 2), std::invalid_argument);
        EXPECT_THROW(pair.sharded.reserve(differs ? 1100 : 1200), std::invalid_argument);
    }
    EXPECT_THROW(pair.sharded.rollback(5000), std::invalid_argument);
    EXPECT_THROW(pair.sharded.reserve(-1), std::invalid_argument);
    EXPECT_THROW(pair.sharded.lookahead_keys(1), std::invalid_argument);
    std::vector<ShardedCache<float>*> twice{&pair.sharded, &pair.sharded};
    EXPECT_THROW(castle::mpi::extend(twice, std::array<Index, 2>{50, 50}, next, out), std::invalid_argument);
    ShardedCache<float> stranger(shape, {}, Communicator(MPI_COMM_WORLD));
    std::vector<ShardedCache<float>*> two{&pair.sharded, &stranger};
    EXPECT_EQ(message<std::invalid_argument>([&] {
                  castle::mpi::extend(two, std::array<Index, 2>{50, 50}, next, out);
              }),
              "castle::extend: caches[1] has another communicator than caches[0]; give all caches copies of one");
    pair.expect_same();
    pair.extend(next);
    pair.expect_same();
}

TEST(ShardedCache, AnotherCacheOnOneRankIsFound) {
    const int last = all_ranks().size() - 1;
    if (last == 0) return;
    const bool differs = all_ranks().rank() == last;
    const castle::Shape shape{.d = 4, .dv = 4};
    Random random(1250);
    const Head<float> head = random_heads<float>(random, 200, shape);
    Pair<float> a(shape, {}), b(shape, {});
    for (Pair<float>* pair : {&a, &b}) pair->extend(head.first_tokens(100));
    const castle::Input<float> next = head.input().tokens(100, 100);
    Matrix<float> out(100, 4);
    const auto other = [&] { castle::mpi::extend(differs ? a.sharded : b.sharded, next, out); };
    EXPECT_THROW(other(), std::invalid_argument);
    std::vector<ShardedCache<float>*> caches{&a.sharded, &b.sharded};
    if (differs) std::swap(caches[0], caches[1]);
    const auto swapped = [&] { castle::mpi::extend(caches, std::array<Index, 2>{50, 50}, next, out); };
    EXPECT_THROW(swapped(), std::invalid_argument);
    // None on one rank; with a mask on one rank.
    caches = {differs ? nullptr : &a.sharded, &b.sharded};
    EXPECT_THROW(swapped(), std::invalid_argument);
    const castle::Mask mask = differs ? castle::masks::sliding_window(9) : castle::Mask();
    EXPECT_THROW(castle::mpi::extend(a.sharded, next, castle::Output<float>{.out = out}, mask), std::invalid_argument);
    // Views that point nowhere are not read.
    castle::Input<float> nowhere = next;
    if (differs) nowhere.causal.k = castle::ConstMatrixView<float>(nullptr, 100, 4);
    EXPECT_THROW(castle::mpi::extend(a.sharded, nowhere, out), std::invalid_argument);
    for (Pair<float>* pair : {&a, &b}) pair->expect_same();
}

TEST(ShardedCache, WhatIsWrongIsSaidWithoutMemory) {
    const int last = all_ranks().size() - 1;
    ShardedCache<float> cache({.d = 4, .dv = 4}, {}, all_ranks());
    for (const int fails : {0, last}) {
        for (long successes = 0; successes < 8; ++successes) {
            bool threw = false;
            try {
                std::optional<Allocations::Failure> failure;
                if (all_ranks().rank() == fails) failure.emplace(successes);
                cache.rollback(all_ranks().rank() == last ? 5 : 0);
            } catch (const std::invalid_argument&) {
                threw = true;
            } catch (const std::bad_alloc&) {
                threw = true;
            }
            EXPECT_TRUE(threw);
        }
    }
    for (long successes = 0; successes < 2; ++successes) {
        bool threw = false;
        try {
            std::optional<Allocations::Failure> failure;
            if (all_ranks().rank() == last) failure.emplace(successes);
            const Communicator another(MPI_COMM_WORLD);
        } catch (const std::bad_alloc&) {
            threw = true;
        }
        EXPECT_EQ(threw, successes == 0);
    }
}

TEST(ShardedCache, MemoryThatRunsOutOnOneRankChangesNothing) {
    const int last = all_ranks().size() - 1;
    const bool fails = all_ranks().rank() == last;
    const castle::Shape shape{.d = 4, .dv = 4, .heads = 2, .kv_heads = 2};
    Random random(1300);
    const Head<float> head = random_heads<float>(random, 3000, shape);
    const auto attempt = [&](long successes, const auto& call) {
        try {
            std::optional<Allocations::Failure> failure;
            if (fails) failure.emplace(successes);
            call();
        } catch (const std::bad_alloc&) {
            return false;
        }
        return true;
    };
    // Every allocation of a call, until there are enough.
    const auto until_it_works = [&](Pair<float>& pair, const auto& call) {
        long successes = 0;
        while (!attempt(successes, call)) {
            ++successes;
            EXPECT_EQ(pair.sharded.size(), pair.one.size());
            if (successes % 7 == 1) pair.expect_same();
        }
        EXPECT_GT(successes, 0);
    };
    Pair<float> pair(shape, {.lookahead_window = 700});
    pair.extend(head.first_tokens(1000));
    const castle::Input<float> next = head.input().tokens(1000, 700);
    Matrix<float> out(700, 8), expected(700, 8);
    const castle::Mask mask = castle::masks::sliding_window(30);
    until_it_works(pair, [&] { castle::mpi::extend(pair.sharded, next, castle::Output<float>{.out = out}, mask); });
    castle::extend(pair.one, next, castle::Output<float>{.out = expected}, mask);
    EXPECT_TRUE(same_bits(out, expected));
    pair.expect_same();

    Pair<float> fork(pair.one.fork(), pair.sharded.fork());
    until_it_works(fork, [&] { fork.sharded.rollback(40); });
    fork.one.rollback(40);
    fork.expect_same();
    until_it_works(pair, [&] { pair.sharded.reserve(2500); });
    std::optional<ShardedCache<float>> other;
    until_it_works(pair, [&] { other.emplace(pair.sharded.fork()); });
    const std::string bytes = saved(pair.one);
    std::istringstream in(all_ranks().rank() == 0 ? bytes : "");
    until_it_works(pair, [&] {
        in.clear();
        in.seekg(0);
        other.emplace(ShardedCache<float>::load(in, all_ranks()));
    });
    EXPECT_EQ(other->size(), pair.one.size());
    pair.expect_same();
}

// --- memory ----------------------------------------------------------------------------------------------------------

TEST(ShardedCache, ARankHoldsItsShare) {
    const castle::Shape shape{.d = 64, .dv = 64, .heads = 8, .kv_heads = 2};
    const int ranks = all_ranks().size();
    for (const Index window : {castle::unlimited, Index(128), Index(0)}) {
        const Index tokens = 65536;
        UqKvCache<float> one(shape, {.lookahead_window = window});
        ShardedCache<float> sharded(shape, {.lookahead_window = window}, all_ranks());
        const Index predicted = sharded.bytes_for(tokens);
        sharded.reserve(tokens);
        // Exchanges take a little.
        EXPECT_LE(sharded.bytes().total(), predicted + one.bytes_for(tokens) / 200);
        EXPECT_LE(double(predicted), (1.0 / ranks + 0.02) * double(one.bytes_for(tokens)));
        EXPECT_GE(sharded.capacity(), tokens);
    }
}

TEST(ShardedCache, DecodingAllocatesNothing) {
    const castle::Shape shape{.d = 16, .dv = 8, .heads = 4, .kv_heads = 2};
    Random random(1400);
    const Head<float> head = random_heads<float>(random, 1300, shape);
    ShardedCache<float> sharded(shape, {}, all_ranks());
    castle::mpi::extend(sharded, head.first_tokens(900));
    sharded.reserve(1300);
    Matrix<float> out(1, 32);
    for (Index t = 900; t < 1200; ++t) {
        const castle::Input<float> token = head.input().tokens(t, 1);
        const Allocations::Count count;
        castle::mpi::extend(sharded, token, out);
        EXPECT_EQ(count.allocations(), 0) << t;
    }
}

}  // namespace
