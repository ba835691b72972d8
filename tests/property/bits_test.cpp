// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The promise that the library is about: bits that depend on the input only.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

// Windows around the sizes of blocks and panels, and around the length itself.
Index random_window(Random& random, Index length) {
    const std::vector<Index> windows = {0, 1, 2, 31, 32, 33, 63, 64, 65, 200, length, castle::unlimited};
    return random.integer(0, 3) == 0 ? random.integer(0, length + 1) : random.pick(windows);
}

Sizes random_sizes(Random& random, Index longest, Index widest) {
    return {.length = random.integer(1, longest), .d = random.integer(1, widest), .dv = random.integer(1, widest)};
}

template <class T>
void expect_same(const Outcome<T>& a, const Outcome<T>& b) {
    EXPECT_TRUE(same_bits(a.output, b.output)) << "of the outputs";
    EXPECT_TRUE(same_bits(a.lookahead_keys, b.lookahead_keys)) << "of the lookahead keys";
}

template <class T>
class Bits : public ::testing::Test {};
TYPED_TEST_SUITE(Bits, support::Scalars);

TYPED_TEST(Bits, AreThoseOfParallelHoweverTokensAreSplitIntoExtendCalls) {
    using T = TypeParam;
    for (std::uint64_t seed = 1; seed <= 40; ++seed) {
        Random random(seed);
        const Sizes sizes = random_sizes(random, seed % 4 == 0 ? 700 : 200, seed % 4 == 0 ? 20 : 70);
        const castle::Options options{.lookahead_window = random_window(random, sizes.length)};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", options.lookahead_window));
        const Head<T> head = random_head<T>(random, sizes);
        const Outcome<T> whole = run_at_once(head.input(), options);
        EXPECT_TRUE(same_bits(whole.output, run_parallel(head.input(), options))) << "of parallel";
        for (int split = 0; split < 4; ++split) {
            SCOPED_TRACE(describe("split ", split));
            expect_same(whole, run_in_chunks(head.input(), random_split(random, sizes.length), options));
            if (this->HasFailure()) return;
        }
        expect_same(whole, run_in_chunks(head.input(), one_by_one(sizes.length), options));
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Bits, OfScoresWithoutTheirPartsDoNotDependOnTheSplitEither) {
    using T = TypeParam;
    Random random(8);
    const Sizes sizes{.length = 150, .d = 5, .dv = 3};
    const Head<T> head = random_head<T>(random, sizes);
    for (const Index window : {Index(40), castle::unlimited}) {
        for (const castle::Options& options : partial_scores(window)) {
            const Outcome<T> whole = run_at_once(head.input(), options);
            EXPECT_FALSE(same_bits(whole.output, run_parallel(head.input(), {.lookahead_window = window})));
            EXPECT_TRUE(same_bits(whole.output, run_parallel(head.input(), options)));
            expect_same(whole, run_in_chunks(head.input(), random_split(random, sizes.length), options));
            expect_same(whole, run_in_chunks(head.input(), one_by_one(sizes.length), options));
        }
    }
}

TYPED_TEST(Bits, AreThoseOfParallelForEverySplitIntoTwoCalls) {
    using T = TypeParam;
    constexpr std::uint64_t seed = 7;
    Random random(seed);
    const Sizes sizes{.length = 131, .d = 5, .dv = 3};
    const Head<T> head = random_head<T>(random, sizes);
    for (const Index window : {Index(1), Index(40), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const Outcome<T> whole = run_at_once(head.input(), options);
        for (Index first = 0; first <= sizes.length; ++first) {
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window, ", first call of ", first));
            expect_same(whole, run_in_chunks(head.input(), {first, sizes.length - first}, options));
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Bits, AreTheSameOnEveryNumberOfThreadsAndInEveryOrderOfPieces) {
    using T = TypeParam;
    ThreadPool one(1), two(2), three(3), four(4);
    for (std::uint64_t seed = 1; seed <= 6; ++seed) {
        Random random(seed);
        Sizes sizes = random_sizes(random, 400, 24);
        sizes.length += 1200;  // several spans, so that there are pieces to share out
        castle::Options options{.lookahead_window = random_window(random, sizes.length)};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", options.lookahead_window));
        const Head<T> head = random_head<T>(random, sizes);
        const Outcome<T> serial = run_at_once(head.input(), options);
        const std::vector<Index> chunks = random_split(random, sizes.length);

        const Index before = four.pieces();
        for (const castle::Executor& executor : {one.executor(), two.executor(), three.executor(), four.executor(),
                                                 reversed_executor(), shuffled_executor(seed)}) {
            options.executor = executor;
            expect_same(serial, run_at_once(head.input(), options));
            if (this->HasFailure()) return;
        }
        EXPECT_GT(four.pieces(), before) << "the executor was not asked";
        options.executor = four.executor();
        expect_same(serial, run_in_chunks(head.input(), chunks, options));
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Bits, OfAPrefixAreThoseOfTheShortRun) {
    using T = TypeParam;
    for (std::uint64_t seed = 1; seed <= 30; ++seed) {
        Random random(seed);
        const Sizes sizes = random_sizes(random, seed % 5 == 0 ? 600 : 160, 40);
        const castle::Options options{.lookahead_window = random_window(random, sizes.length)};
        const Head<T> head = random_head<T>(random, sizes);
        const Matrix<T> whole = run_parallel(head.input(), options);
        for (int i = 0; i < 5; ++i) {
            const Index length = random.integer(0, sizes.length);
            SCOPED_TRACE(
                describe("seed ", seed, ", ", sizes, ", window ", options.lookahead_window, ", prefix of ", length));
            EXPECT_TRUE(same_bits<T>(whole.topRows(length), run_parallel(head.first_tokens(length), options)));
        }
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Bits, OfAWindowAsLongAsTheSequenceAreThoseOfNone) {
    using T = TypeParam;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        Random random(seed);
        const Sizes sizes = random_sizes(random, seed % 5 == 0 ? 600 : 200, 40);
        const Head<T> head = random_head<T>(random, sizes);
        const Outcome<T> unlimited = run_at_once(head.input());
        // The oldest token absorbs at most the L - 1 after it.
        for (const Index window : {sizes.length - 1, sizes.length, sizes.length + 1, 2 * sizes.length + 1000}) {
            SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", window));
            expect_same(unlimited, run_at_once(head.input(), {.lookahead_window = window}));
        }
        if (this->HasFailure()) return;
    }
}

// Whether the lookahead inputs are there or not.
TYPED_TEST(Bits, OfAWindowOfZeroAreThoseOfCausalAttention) {
    using T = TypeParam;
    const castle::Options options{.lookahead_window = 0};
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        Random random(seed);
        const Sizes sizes = random_sizes(random, seed % 5 == 0 ? 600 : 200, 70);
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes));
        const Head<T> head = random_head<T>(random, sizes);
        const Matrix<T> causal = castle::causal_attention(head.qc, head.kc, head.vc);
        EXPECT_TRUE(same_bits(causal, run_parallel(head.input(), options)));
        EXPECT_TRUE(same_bits(causal, run_parallel(head.causal_input(), options)));
        EXPECT_TRUE(same_bits(causal, castle::causal_attention(head.qc, head.kc, head.vc, {.lookahead_window = 7})))
            << "the window of the options does not matter there";
        for (const castle::Input<T>& input : {head.input(), head.causal_input()}) {
            const Matrix<T> split = run_in_chunks(input, random_split(random, sizes.length), options).output;
            EXPECT_TRUE(same_bits(causal, split)) << "of a cache extended in chunks";
        }
        EXPECT_TRUE(same_bits(run_recurrent(head.input(), options), run_recurrent(head.causal_input(), options)));
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Bits, OfViewsInsideAPackedMatrixAreThoseOfCopies) {
    using T = TypeParam;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        Random random(seed);
        const Sizes sizes = random_sizes(random, 200, 70);
        const castle::Options options{.lookahead_window = random_window(random, sizes.length)};
        SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", options.lookahead_window));
        Head<T> head = random_head<T>(random, sizes);
        const PackedHead<T> packed(head);
        expect_same(run_at_once(head.input(), options), run_at_once(packed.input(), options));
        expect_same(run_at_once(head.input(), options),
                    run_in_chunks(packed.input(), random_split(random, sizes.length), options));
        EXPECT_TRUE(same_bits(run_recurrent(head.input(), options), run_recurrent(packed.input(), options)));
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Bits, OfAdversarialFillsDoNotDependOnTheSplitEither) {
    using T = TypeParam;
    for (const Fill fill : all_fills) {
        for (std::uint64_t seed = 1; seed <= 6; ++seed) {
            Random random(seed);
            const Sizes sizes = random_sizes(random, 200, 40);
            const castle::Options options{.lookahead_window = random_window(random, sizes.length)};
            SCOPED_TRACE(describe(fill, ", seed ", seed, ", ", sizes, ", window ", options.lookahead_window));
            const Head<T> head = filled_head<T>(fill, random, sizes);
            const Outcome<T> whole = run_at_once(head.input(), options);
            expect_same(whole, run_in_chunks(head.input(), random_split(random, sizes.length), options));
            expect_same(whole, run_in_chunks(head.input(), one_by_one(sizes.length), options));
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(Bits, OfTheSameCallAreTheSameAgain) {
    using T = TypeParam;
    Random random(3);
    const Head<T> head = random_head<T>(random, {.length = 300, .d = 33, .dv = 17});
    expect_same(run_at_once(head.input()), run_at_once(head.input()));
    // The returned matrix is the one that the view would have got.
    EXPECT_TRUE(same_bits(castle::parallel(head.input()), run_parallel(head.input())));
    EXPECT_TRUE(same_bits(castle::recurrent(head.input()), run_recurrent(head.input())));
}

}  // namespace
