// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <sstream>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Caches whose calls have masks: what keys have absorbed under them survives rollbacks, forks and files.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;

template <class T>
class MaskedCache : public ::testing::Test {};
TYPED_TEST_SUITE(MaskedCache, support::Scalars);

constexpr castle::Shape shape{.d = 5, .dv = 3, .heads = 2, .kv_heads = 1};

/// Rows before `begins` are causal, and their calls have no mask; those after it see keys as random bits say.
struct Script {
    Index begins;
    Mask mask;

    Script(Random& random, Index length, Index first) : begins(first) {
        std::vector<bool> bits;
        for (Index i = 0; i < length * length; ++i) bits.push_back(random.integer(0, 3) > 0);
        mask = masks::packed(length, length, [=](Index t, Index s) {
            return s == t || (s < t && (t < first || (t - s < 150 && bits[std::size_t(t * length + s)])));
        });
    }

    /// Rows [first, first + count), of one of the two kinds.
    template <class T>
    void extend(castle::UqKvCache<T>& cache, const Head<T>& head, Index count, castle::MatrixView<T> out) const {
        const Index first = cache.size();
        const castle::Input<T> input = head.input().tokens(first, count);
        if (first + count <= begins) {
            castle::extend(cache, input, out);
        } else {
            castle::extend(cache, input, out, mask);
        }
    }
    Index most(Index size, Index length) const { return size < begins ? begins - size : length - size; }
};

TYPED_TEST(MaskedCache, GoesOnAsIfDetoursHadNeverBeen) {
    using T = TypeParam;
    std::uint64_t seed = 15800;
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        for (const Index begins : {0, 7, 40, 130}) {
            for (const Index rollback : {0, 64, 100}) {
                Random random(++seed);
                const Index length = 300;
                SCOPED_TRACE(
                    describe("seed ", seed, ", window ", window, ", begins ", begins, ", rollback ", rollback));
                const castle::Options options{.lookahead_window = window};
                const Head<T> head = random_heads<T>(random, length, shape);
                const Script script(random, length, begins);

                castle::UqKvCache<T> straight(shape, options, rollback);
                Matrix<T> expected(length, shape.heads * shape.dv);
                for (Index t = 0; t < length; ++t) {
                    script.extend(straight, head, 1, castle::MatrixView<T>(expected).middle_rows(t, 1));
                }

                castle::UqKvCache<T> cache(shape, options, rollback);
                while (cache.size() < length) {
                    const Index first = cache.size();
                    const Index count = std::min<Index>(script.most(first, length), random.integer(1, 70));
                    Matrix<T> out(count, shape.heads * shape.dv);
                    script.extend<T>(cache, head, count, out);
                    ASSERT_TRUE(same_bits(out, Matrix<T>(expected.middleRows(first, count))))
                        << count << " tokens onto " << first;
                    switch (random.integer(0, 4)) {
                        case 0:
                            cache.rollback(random.integer(0, std::min<Index>(cache.max_rollback(), 40)));
                            break;
                        case 1: {
                            // Other tokens, under another mask, and back; those that were here first stay undoable.
                            const Index room = std::min<Index>(rollback, length - cache.size());
                            const Index detour = random.integer(0, std::max<Index>(room, 0));
                            Matrix<T> lost(detour, shape.heads * shape.dv);
                            castle::extend(cache, head.input().tokens(0, detour), lost, masks::sliding_window(9, 2));
                            cache.rollback(detour);
                            break;
                        }
                        case 2: {
                            castle::UqKvCache<T> fork = cache.fork();
                            const Index more = std::min<Index>(50, length - cache.size());
                            Matrix<T> lost(more, shape.heads * shape.dv);
                            castle::extend(cache, head.input().tokens(0, more), lost, masks::sliding_window(30));
                            cache = std::move(fork);
                            break;
                        }
                        case 3: {
                            std::stringstream file;
                            cache.save(file);
                            cache = castle::UqKvCache<T>::load(file, {}, rollback);
                            break;
                        }
                        default:
                            break;
                    }
                    if (this->HasFailure()) return;
                }
                EXPECT_TRUE(same_bits(cache.lookahead_keys(), straight.lookahead_keys()));
                cache.clear();
                Matrix<T> again(length, shape.heads * shape.dv), plain(length, shape.heads * shape.dv);
                castle::extend(cache, head.input(), again);
                castle::parallel(shape, head.input(), plain, options);
                EXPECT_TRUE(same_bits(again, plain)) << "after clear()";
            }
        }
    }
}

// Keys of later tokens are there before the first of a call is attended, and take nobody's place.
TYPED_TEST(MaskedCache, SeesLaterKeysOfALongCallWithAWindow) {
    using T = TypeParam;
    Random random(15850);
    const Index first = 500, length = 900;
    const Mask mask = masks::predicate([](Index t, Index s) { return t < first ? s <= t : true; });
    for (const Index window : {Index(1), Index(16), Index(100), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const Head<T> head = random_heads<T>(random, length, shape);
        Matrix<T> expected(length, shape.heads * shape.dv), out(length, shape.heads * shape.dv);
        castle::Workspace<T> workspace(shape, options);  // which keeps all lookahead queries
        castle::forward(workspace, head.input(), castle::Output<T>{.out = expected}, mask);
        castle::UqKvCache<T> cache(shape, options);
        const castle::MatrixView<T> rows(out);
        castle::extend(cache, head.first_tokens(first), rows.middle_rows(0, first));
        castle::extend(cache, head.input().tokens(first, length - first), rows.middle_rows(first, length - first),
                       masks::full());
        EXPECT_TRUE(same_bits(out, expected)) << "window " << window;
    }
}

// Where nothing is seen there is nothing to sweep, wherever the keys end.
TYPED_TEST(MaskedCache, SeesNothingAtTheEndOfASpan) {
    using T = TypeParam;
    Random random(15860);
    const Index length = 512;
    const Mask mask =
        (masks::packed(length, 600, [](Index, Index s) { return s >= 550; }) & masks::causal()).allowing_empty_rows();
    const Head<T> head = random_heads<T>(random, length, shape);
    for (const Index window : {Index(0), castle::unlimited}) {
        castle::Workspace<T> workspace(shape, {.lookahead_window = window});
        Matrix<T> out(length, shape.heads * shape.dv);
        castle::forward(workspace, head.input(), castle::Output<T>{.out = out}, mask);
        EXPECT_TRUE((out.array() == T(0)).all());
        const Matrix<castle::Compute<T>> d_out = out.template cast<castle::Compute<T>>();
        const auto g = castle::backward(workspace, head.input(), d_out);
        EXPECT_TRUE((g.causal.v.array() == 0).all());
        castle::UqKvCache<T> cache(shape, {.lookahead_window = window});
        for (Index t = 0; t < length; ++t) {
            castle::extend(cache, head.input().tokens(t, 1), castle::MatrixView<T>(out).middle_rows(t, 1), mask);
        }
        EXPECT_TRUE((out.array() == T(0)).all());
    }
}

TYPED_TEST(MaskedCache, OfABatchGivesEachSequenceWhatItHasAlone) {
    using T = TypeParam;
    ThreadPool threads(3);
    std::uint64_t seed = 15900;
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        Random random(++seed);
        const castle::Options options{.lookahead_window = window};
        const std::vector<Index> before = {0, 40, 64, 600, 3}, counts = {150, 1, 0, 30, 64};
        const std::vector<Mask> each = {masks::prefix(100), masks::sliding_window(12), masks::causal(),
                                        masks::sliding_window(100, 4), masks::full()};
        std::vector<castle::UqKvCache<T>> alone, together;
        std::vector<castle::UqKvCache<T>*> caches;
        for (std::size_t i = 0; i < counts.size(); ++i) {
            const Head<T> head = random_heads<T>(random, before[i], shape);
            castle::UqKvCache<T> cache(shape, options);
            castle::extend(cache, head.input());
            together.push_back(cache.fork());
            alone.push_back(std::move(cache));
        }
        for (auto& cache : together) caches.push_back(&cache);
        const Index rows = 245;
        const Head<T> head = random_heads<T>(random, rows, shape);
        Matrix<T> expected(rows, shape.heads * shape.dv), out(rows, shape.heads * shape.dv);
        Matrix<castle::Compute<T>> expected_sums(rows, shape.heads), sums(rows, shape.heads);
        Index first = 0;
        for (std::size_t i = 0; i < counts.size(); ++i) {
            castle::extend(
                alone[i], head.input().tokens(first, counts[i]),
                castle::Output<T>{
                    .out = castle::MatrixView<T>(expected).middle_rows(first, counts[i]),
                    .log_sum_exp = castle::MatrixView<castle::Compute<T>>(expected_sums).middle_rows(first, counts[i])},
                each[i]);
            first += counts[i];
        }
        castle::extend<T>(caches, counts, head.input(), castle::Output<T>{.out = out, .log_sum_exp = sums}, each,
                          threads.executor());
        EXPECT_TRUE(same_bits(out, expected)) << "window " << window;
        EXPECT_TRUE(same_bits(sums, expected_sums)) << "window " << window;
    }
}

TYPED_TEST(MaskedCache, KeepsItsScoreTermsInAFile) {
    using T = TypeParam;
    Random random(15950);
    castle::Options options{.lookahead_window = 20};
    const std::array<double, 2> gammas{0.02, 0.3};
    options.terms = {.factor = castle::tables::decay(gammas, 200),
                     .bias = castle::tables::alibi(1, 150),
                     .soft_cap = 3.0,
                     .sinks = {0.5, -1}};
    const Head<T> head = random_heads<T>(random, 120, shape);
    castle::UqKvCache<T> cache(shape, options);
    castle::extend(cache, head.first_tokens(70));
    std::stringstream file;
    cache.save(file);
    castle::UqKvCache<T> loaded = castle::UqKvCache<T>::load(file);
    EXPECT_TRUE(loaded.options().terms == options.terms);
    const castle::Input<T> rest = head.input().tokens(70, 50);
    EXPECT_TRUE(same_bits(castle::extend(loaded, rest), castle::extend(cache, rest)));

    castle::UqKvCache<T> other(shape, {.lookahead_window = 20});
    EXPECT_FALSE(other.options().terms == options.terms);
}

// The first documents begin where spans do; a document within one span may begin at any panel.
TYPED_TEST(MaskedCache, GivesDocumentsThatBeginWithASpanTheBitsOfSequencesOfTheirOwn) {
    using T = TypeParam;
    Random random(15960);
    const std::vector<Index> lengths = {512, 256, 64, 192, 700};
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        Index rows = 0;
        for (const Index length : lengths) rows += length;
        const Head<T> head = random_heads<T>(random, rows, shape);
        castle::UqKvCache<T> cache(shape, options);
        Matrix<T> out(rows, shape.heads * shape.dv);
        castle::extend(cache, head.input(), out, masks::documents(lengths));
        Index first = 0;
        for (const Index length : lengths) {
            EXPECT_TRUE(same_bits(castle::parallel(shape, head.input().tokens(first, length), options),
                                  Matrix<T>(out.middleRows(first, length))))
                << "of the document at " << first;
            first += length;
        }
    }
}

// As packed sequences they may begin anywhere.
TYPED_TEST(MaskedCache, RunsDocumentsOfAWholeSequenceAsSequencesOfTheirOwn) {
    using T = TypeParam;
    Random random(15970);
    const std::vector<Index> lengths = {5, 0, 100, 17, 1, 300};
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        const Head<T> head = random_heads<T>(random, 423, shape);
        const Matrix<T> out =
            castle::parallel(shape, head.input(), options, masks::documents(lengths, masks::sliding_window(40)));
        Index first = 0;
        for (const Index length : lengths) {
            EXPECT_TRUE(same_bits(
                castle::parallel(shape, head.input().tokens(first, length), options, masks::sliding_window(40)),
                Matrix<T>(out.middleRows(first, length))))
                << "of the document at " << first;
            first += length;
        }
    }
}

}  // namespace
