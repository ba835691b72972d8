// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/gradients.hpp"
#include "support/many_heads.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Several sequences in one call, any number of tokens each: every one as if it were alone.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
using Caches = std::vector<castle::UqKvCache<T>*>;
using Counts = std::vector<Index>;

// Around blocks of 32, panels of 64, groups of 128 and beyond.
constexpr std::array<Index, 12> some_counts{0, 1, 7, 31, 32, 33, 64, 127, 128, 129, 300, 600};

template <class T>
Caches<T> pointers_to(std::vector<castle::UqKvCache<T>>& caches) {
    Caches<T> pointers;
    for (castle::UqKvCache<T>& cache : caches) pointers.push_back(&cache);
    return pointers;
}

// Sequences that go on together, and once more alone.
template <class T>
class Sequences {
  public:
    explicit Sequences(const castle::Shape& shape) : shape_(shape) {}

    void add(Random& random, Index length, const castle::Options& options) {
        prompts_.push_back(random_heads<T>(random, length, shape_));
        together_.emplace_back(shape_, options);
        castle::extend(together_.back(), prompts_.back().input());
        add_alone(options);
    }
    void add_fork_of(std::size_t i) {
        prompts_.push_back(prompts_[i]);
        together_.push_back(together_[i].fork());
        add_alone(together_.back().options());
    }
    Index count() const { return Index(together_.size()); }

    // In any order of sequences.
    void extend(Random& random, const Counts& counts, const castle::Executor& executor) {
        std::vector<std::size_t> order;
        for (std::size_t i = 0; i < together_.size(); ++i) order.push_back(i);
        for (Index i = count() - 1; i > 0; --i)
            std::swap(order[std::size_t(i)], order[std::size_t(random.integer(0, i))]);
        Caches<T> caches;
        for (const std::size_t i : order) caches.push_back(&together_[i]);

        Head<T> tokens = random_heads<T>(random, total(counts), shape_);
        const PackedHead<T> packed(tokens);
        const Matrix<T> out = written<T>(total(counts), shape_.heads * shape_.dv, [&](castle::MatrixView<T> view) {
            castle::extend(caches, counts, packed.input(), view, executor);
        });
        Index first = 0;
        for (std::size_t i = 0; i < order.size(); ++i) {
            castle::UqKvCache<T>&together = together_[order[i]], &alone = alone_[order[i]];
            const Matrix<T> expected = castle::extend(alone, tokens.input().tokens(first, counts[i]));
            EXPECT_TRUE(same_bits(Matrix<T>(out.middleRows(first, counts[i])), expected))
                << counts[i] << " tokens onto " << alone.size() - counts[i] << ", window "
                << alone.options().lookahead_window;
            EXPECT_EQ(together.size(), alone.size());
            EXPECT_EQ(together.max_rollback(), alone.max_rollback());
            first += counts[i];
        }
    }

    void expect_same_lookahead_keys() const {
        for (std::size_t i = 0; i < together_.size(); ++i) {
            EXPECT_TRUE(same_bits(all_lookahead_keys(together_[i]), all_lookahead_keys(alone_[i]))) << "sequence " << i;
        }
    }

    // As after a draft that was not accepted.
    void rollback(Random& random) {
        for (std::size_t i = 0; i < together_.size(); ++i) {
            const Index back = random.integer(0, std::min<Index>(alone_[i].max_rollback(), 40));
            together_[i].rollback(back);
            alone_[i].rollback(back);
        }
    }

  private:
    void add_alone(const castle::Options& options) {
        alone_.emplace_back(shape_, options);
        castle::extend(alone_.back(), prompts_.back().input());
    }

    castle::Shape shape_;
    std::vector<Head<T>> prompts_;
    std::vector<castle::UqKvCache<T>> together_;
    std::vector<castle::UqKvCache<T>> alone_;
};

template <class T>
class Ragged : public ::testing::Test {};
TYPED_TEST_SUITE(Ragged, support::Scalars);

TYPED_TEST(Ragged, GivesEveryCacheTheBitsThatItHasAlone) {
    using T = TypeParam;
    ThreadPool two(2), four(4);
    const std::vector<castle::Shape> shapes = {{.d = 7, .dv = 5},
                                               {.d = 3, .dv = 2, .heads = 4, .kv_heads = 2},
                                               {.d = 5, .dv = 6, .heads = 3, .kv_heads = 1},
                                               {.d = 2, .dv = 9, .heads = 2, .kv_heads = 2}};
    for (std::uint64_t seed = 6000; seed < 6010; ++seed) {
        Random random(seed);
        const castle::Shape& shape = shapes[seed % shapes.size()];
        const std::vector<castle::Executor> executors = {castle::Executor{}, two.executor(), four.executor(),
                                                         reversed_executor(), shuffled_executor(seed)};
        const castle::Executor& executor = executors[seed % executors.size()];
        SCOPED_TRACE(describe("seed ", seed, ", ", words_of(shape)));
        Sequences<T> sequences(shape);
        const Index count = random.integer(1, 7);
        for (Index i = 0; i < count; ++i) {
            if (i > 0 && random.integer(0, 2) == 0) {
                sequences.add_fork_of(std::size_t(random.integer(0, i - 1)));
                continue;
            }
            const Index window = random.pick(std::array<Index, 6>{0, 1, 20, 100, 300, castle::unlimited});
            const Index length = random.pick(std::array<Index, 10>{0, 1, 31, 32, 63, 64, 100, 130, 511, 600});
            sequences.add(random, length, {.lookahead_window = window});
        }
        for (int step = 0; step < 4; ++step) {
            Counts counts;
            for (Index i = 0; i < count; ++i) counts.push_back(random.pick(some_counts));
            SCOPED_TRACE(describe("counts ", ::testing::PrintToString(counts)));
            sequences.extend(random, counts, executor);
            sequences.expect_same_lookahead_keys();
            sequences.rollback(random);
            if (this->HasFailure()) return;
        }
        // Later decoding, with a prefill among it.
        for (int step = 0; step < 20; ++step) {
            Counts counts(std::size_t(count), 1);
            if (step == 10) counts.back() = 33;
            sequences.extend(random, counts, executor);
            if (this->HasFailure()) return;
        }
        sequences.expect_same_lookahead_keys();
        if (this->HasFailure()) return;
    }
}

TYPED_TEST(Ragged, GivesTheBitsOfEachAloneForEveryPairOfCounts) {
    using T = TypeParam;
    Random random(6050);
    Sequences<T> sequences({.d = 3, .dv = 2, .heads = 2, .kv_heads = 1});
    sequences.add(random, 20, {.lookahead_window = 40});
    sequences.add(random, 45, {});
    for (const Index one : {0, 1, 31, 33, 64, 129}) {
        for (const Index other : {0, 1, 2, 32, 128, 130}) {
            SCOPED_TRACE(describe("counts ", one, " and ", other));
            sequences.extend(random, {one, other}, (one + other) % 2 == 0 ? castle::Executor{} : reversed_executor());
            if (this->HasFailure()) return;
        }
    }
    sequences.expect_same_lookahead_keys();
}

TYPED_TEST(Ragged, TakesAThousandShortSequencesAndALongOne) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 2, .kv_heads = 1};
    constexpr Index sequences = 1001, long_one = 400;
    Random random(6100);
    const Head<T> prompt = random_heads<T>(random, 1100, shape);
    const auto make = [&](Index i) {
        castle::UqKvCache<T> cache(shape, {.lookahead_window = i % 5 == 0 ? 2 : castle::unlimited}, 0);
        castle::extend(cache, prompt.first_tokens(i == long_one ? 1100 : i % 3));
        return cache;
    };
    Counts counts;
    for (Index i = 0; i < sequences; ++i) counts.push_back(i == long_one ? 150 : i * 5 % 4);
    const Head<T> tokens = random_heads<T>(random, total(counts), shape);
    Matrix<T> expected(total(counts), shape.heads * shape.dv);
    Index first = 0;
    for (Index i = 0; i < sequences; ++i) {
        const Index count = counts[std::size_t(i)];
        castle::UqKvCache<T> alone = make(i);
        castle::extend(alone, tokens.input().tokens(first, count), expected.middleRows(first, count));
        first += count;
    }
    ThreadPool four(4);
    for (const castle::Executor& executor : {castle::Executor{}, four.executor()}) {
        std::vector<castle::UqKvCache<T>> together;
        for (Index i = 0; i < sequences; ++i) together.push_back(make(i));
        const Matrix<T> out = written<T>(total(counts), expected.cols(), [&](castle::MatrixView<T> view) {
            castle::extend(pointers_to(together), counts, tokens.input(), view, executor);
        });
        EXPECT_TRUE(same_bits(out, expected));
        EXPECT_EQ(together[0].size(), 0);
        EXPECT_EQ(together[std::size_t(long_one)].size(), 1250);
    }
}

TYPED_TEST(Ragged, AllocatesNothingForSingleTokensWithinTheCapacity) {
    using T = TypeParam;
    const castle::Shape shape{.d = 5, .dv = 3, .heads = 4, .kv_heads = 2};
    Random random(6200);
    std::vector<castle::UqKvCache<T>> together;
    for (const Index window : {Index(0), Index(40), castle::unlimited, castle::unlimited}) {
        together.emplace_back(shape, castle::Options{.lookahead_window = window});
        castle::extend(together.back(), random_heads<T>(random, 20 * Index(together.size()), shape).input());
        together.back().reserve(700);
    }
    const Caches<T> caches = pointers_to(together);
    const Head<T> tokens = random_heads<T>(random, 4, shape);
    const Counts ones{1, 1, 1, 1}, some{0, 1, 1, 0};
    Matrix<T> out(4, 12);
    for (const castle::Executor& executor : {castle::Executor{}, reversed_executor()}) {
        const Allocations::Count count;
        for (int step = 0; step < 280; ++step) castle::extend(caches, ones, tokens.input(), out, executor);
        for (int step = 0; step < 10; ++step) {
            castle::extend(caches, some, tokens.first_tokens(2), out.topRows(2), executor);
        }
        EXPECT_EQ(count.allocations(), 0);
    }
}

// Lets every allocation of a call fail in turn, each on caches that no failure has met before.
TYPED_TEST(Ragged, WithoutMemoryChangesNoToken) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 2, .kv_heads = 1};
    Random random(6250);
    const Head<T> prompt = random_heads<T>(random, 64, shape);
    const Counts counts{70, 0, 1, 33, 5};
    const Head<T> tokens = random_heads<T>(random, total(counts), shape);
    const auto make = [&] {
        std::vector<castle::UqKvCache<T>> all;
        for (const Index window : {castle::unlimited, castle::unlimited, Index(20), Index(0)}) {
            all.emplace_back(shape, castle::Options{.lookahead_window = window});
            castle::extend(all.back(), prompt.input());
        }
        all.push_back(all.front().fork());
        return all;
    };
    Matrix<T> expected(total(counts), 4);
    std::vector<castle::UqKvCache<T>> fine = make();
    std::vector<Matrix<T>> before;
    for (const auto& cache : fine) before.push_back(all_lookahead_keys(cache));
    castle::extend(pointers_to(fine), counts, tokens.input(), expected);

    long failures = 0;
    for (bool failed = true; failed;) {
        SCOPED_TRACE(describe(failures, " allocations go well"));
        std::vector<castle::UqKvCache<T>> together = make();
        const Caches<T> caches = pointers_to(together);
        Matrix<T> out(total(counts), 4);
        failed = false;
        try {
            const Allocations::Failure failure(failures);
            castle::extend(caches, counts, tokens.input(), out);
        } catch (const std::bad_alloc&) {
            failed = true;
            ++failures;
            for (std::size_t i = 0; i < together.size(); ++i) {
                ASSERT_EQ(together[i].size(), 64);
                ASSERT_TRUE(same_bits(all_lookahead_keys(together[i]), before[i]));
            }
            castle::extend(caches, counts, tokens.input(), out);
        }
        ASSERT_TRUE(same_bits(out, expected));
        for (std::size_t i = 0; i < together.size(); ++i) {
            ASSERT_TRUE(same_bits(all_lookahead_keys(together[i]), all_lookahead_keys(fine[i])));
        }
        ASSERT_LT(failures, 1000);
    }
    EXPECT_GE(failures, 3) << "those of the caches that grow at least";
}

TYPED_TEST(Ragged, RejectsWhatDoesNotFitAndChangesNothing) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
    constexpr Index most = std::numeric_limits<Index>::max();
    Random random(6300);
    const Head<T> prompt = random_heads<T>(random, 40, shape), tokens = random_heads<T>(random, 10, shape);
    std::vector<castle::UqKvCache<T>> all;
    for (int i = 0; i < 3; ++i) {
        all.emplace_back(shape);
        castle::extend(all.back(), prompt.input());
    }
    castle::UqKvCache<T>&a = all[0], &b = all[1], &c = all[2];
    const Matrix<T> keys = all_lookahead_keys(a);
    castle::UqKvCache<T> other_groups({.d = 3, .dv = 2, .heads = 4, .kv_heads = 4});
    castle::UqKvCache<T> other_heads({.d = 3, .dv = 2, .heads = 2, .kv_heads = 2});
    castle::UqKvCache<T> wider({.d = 4, .dv = 2, .heads = 4, .kv_heads = 2});
    castle::UqKvCache<T> standard(shape, {.lookahead_window = 0});

    const auto expect_rejected_input = [&](const Caches<T>& caches, const Counts& counts, const castle::Input<T>& input,
                                           Index out_rows, const std::vector<std::string>& parts) {
        const Matrix<T> untouched = Matrix<T>::Constant(out_rows, 8, sentinel<T>());
        Matrix<T> out = untouched;
        for (const castle::Executor& executor : {castle::Executor{}, reversed_executor()}) {
            const std::string sentence =
                message<std::invalid_argument>([&] { castle::extend(caches, counts, input, out, executor); });
            EXPECT_EQ(sentence.rfind("castle::extend: ", 0), 0U) << sentence;
            EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
            for (const std::string& part : parts) {
                EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
            }
        }
        EXPECT_TRUE(same_bits(out, untouched)) << "the output was written to before the throw";
        for (const castle::UqKvCache<T>& cache : all) {
            EXPECT_EQ(cache.size(), 40);
            EXPECT_TRUE(same_bits(all_lookahead_keys(cache), keys));
        }
        for (const castle::UqKvCache<T>* cache : {&other_groups, &other_heads, &wider, &standard}) {
            EXPECT_EQ(cache->size(), 0);
        }
    };
    const auto expect_rejected = [&](const Caches<T>& caches, const Counts& counts, Index rows,
                                     const std::vector<std::string>& parts) {
        SCOPED_TRACE(describe("counts ", ::testing::PrintToString(counts), ", ", rows, " rows"));
        expect_rejected_input(caches, counts, tokens.first_tokens(rows), rows, parts);
    };

    expect_rejected({&a, nullptr, &b}, {1, 1, 1}, 3, {"caches[1]", "null"});
    expect_rejected({&a, nullptr, &b}, {1, 0, 1}, 2, {"caches[1]", "null"});
    expect_rejected({&a, &b, &a}, {1, 0, 2}, 3, {"caches[0] and caches[2] are the same cache"});
    expect_rejected({&a, &a}, {0, 0}, 0, {"caches[0] and caches[1] are the same cache"});
    expect_rejected({&a, &b}, {3}, 3, {"caches has 2", "counts has 1"});
    expect_rejected({&a}, {1, 2}, 3, {"caches has 1", "counts has 2"});
    expect_rejected({}, {3}, 3, {"caches has 0", "counts has 1"});
    expect_rejected({&a, &b}, {4, -1}, 3, {"counts", "4"});
    expect_rejected({&a, &b}, {1, -1}, 3, {"counts[1] is -1"});
    expect_rejected({&a}, {-5}, 3, {"counts[0] is -5"});
    expect_rejected({&a, &b}, {1, 1}, 3, {"counts", " 2 ", "3 rows"});
    expect_rejected({&a, &b}, {0, 0}, 3, {"counts", " 0 ", "3 rows"});
    expect_rejected({&a, &b}, {2, 2}, 3, {"counts", "3 rows"});
    expect_rejected({&a, &b}, {1, 2}, 0, {"counts", "0 rows"});
    // Sums that would wrap around: to -2, and to the 3 rows that there are.
    expect_rejected({&a, &b}, {most, most}, 3, {"counts", "3 rows"});
    expect_rejected({&a, &b, &c}, {most, most, 5}, 3, {"counts", "3 rows"});
    expect_rejected({&a, &b, &c}, {1, most, 2}, 3, {"counts", "3 rows"});
    for (castle::UqKvCache<T>* other : {&other_groups, &other_heads, &wider}) {
        expect_rejected({&a, other}, {1, 2}, 3, {"caches[1]"});
        expect_rejected({&a, &b, other}, {1, 2, 0}, 3, {"caches[2]"});
        expect_rejected({other, &a}, {1, 2}, 3, {});
    }

    const Counts counts{2, 3};
    expect_rejected_input({&a, &b}, counts, tokens.first_tokens(5), 4, {"out is [4, 8] but must be [5, 8]"});
    expect_rejected_input({&a, &b}, counts, tokens.first_tokens(5), 6, {"out is [6, 8] but must be [5, 8]"});
    // One that needs lookahead inputs is enough.
    castle::Input<T> causal{.causal = tokens.first_tokens(5).causal};
    expect_rejected_input({&standard, &b}, counts, causal, 5, {"input.lookahead.q is [0, 0]"});
    castle::Input<T> narrow = tokens.first_tokens(5);
    narrow.causal.v = narrow.causal.v.middle_cols(0, 3);
    expect_rejected_input({&a, &b}, counts, narrow, 5, {"input.causal.v is [5, 3] but must be [5, 4]"});

    // None of it has changed anything, and what is left out of a call is not touched.
    const Caches<T> right{&b, &standard, &a};
    const Counts right_counts{4, 5, 1};
    Matrix<T> out(10, 8);
    castle::extend(right, right_counts, tokens.input(), out);
    EXPECT_TRUE(same_bits(Matrix<T>(out.topRows(4)), castle::extend(c, tokens.first_tokens(4))));
    EXPECT_EQ(a.size(), 41);
    EXPECT_EQ(b.size(), 44);
    EXPECT_EQ(standard.size(), 5);
}

// --- packed sequences
// -------------------------------------------------------------------------------------------------

template <class T>
struct Packed {
    castle::Shape shape;
    Counts counts;
    Head<T> heads;
    Matrix<T> d_out;

    Packed(std::uint64_t seed, const castle::Shape& s, const Counts& of)
        : shape(s), counts(of), heads(total(of), s), d_out(total(of), s.heads * s.dv) {
        Random random(seed);
        heads = random_heads<T>(random, total(of), s);
        fill_normal(random, d_out);
    }
    castle::Input<T> input() const { return heads.input(); }
    Index rows() const { return d_out.rows(); }
};

// What every sequence gives alone, row under row.
template <class T>
struct Trained {
    Matrix<T> out;
    castle::Gradient<T> gradient;
};

template <class T>
Trained<T> train_alone(const Packed<T>& packed, const castle::Options& options) {
    Trained<T> all{.out = Matrix<T>(packed.rows(), packed.d_out.cols()),
                   .gradient = castle::Gradient<T>(packed.rows(), packed.shape)};
    Index first = 0;
    for (const Index count : packed.counts) {
        const castle::Input<T> alone = packed.input().tokens(first, count);
        all.out.middleRows(first, count) = run_parallel(packed.shape, alone, options);
        const castle::Gradient<T> g =
            run_backward(packed.shape, alone, Matrix<T>(packed.d_out.middleRows(first, count)), options);
        for (std::size_t m = 0; m < 6; ++m) all_of(all.gradient)[m]->middleRows(first, count) = *all_of(g)[m];
        first += count;
    }
    return all;
}

template <class T>
void expect_same_gradients(const castle::Gradient<T>& a, const castle::Gradient<T>& b) {
    for (std::size_t m = 0; m < 6; ++m) EXPECT_TRUE(same_bits(*all_of(a)[m], *all_of(b)[m])) << input_names[m];
}

template <class T>
void expect_trained_as_alone(castle::Workspace<T>& workspace, const Packed<T>& packed, const castle::Options& options) {
    SCOPED_TRACE(describe("counts ", ::testing::PrintToString(packed.counts), ", ", words_of(packed.shape), ", window ",
                          options.lookahead_window));
    const Trained<T> alone = train_alone(packed, options);
    const Matrix<T> out = written<T>(packed.rows(), packed.d_out.cols(), [&](castle::MatrixView<T> view) {
        castle::forward(workspace, packed.counts, packed.input(), view);
    });
    EXPECT_TRUE(same_bits(out, alone.out));
    EXPECT_EQ(workspace.size(), packed.rows());
    // The workspace remembers where sequences begin.
    expect_same_gradients(run_backward(workspace, packed.input(), packed.d_out), alone.gradient);
    EXPECT_EQ(workspace.size(), 0);
}

template <class T>
class RaggedTraining : public ::testing::Test {};
TYPED_TEST_SUITE(RaggedTraining, support::Scalars);

TYPED_TEST(RaggedTraining, GivesEverySequenceTheBitsThatItHasAlone) {
    using T = TypeParam;
    Counts one_long_many_short;
    for (Index i = 0; i < 51; ++i) one_long_many_short.push_back(i == 20 ? 600 : i % 4);
    const std::vector<Counts> all_counts = {
        {5, 0, 130, 33}, {1}, {}, {0, 0}, one_long_many_short, {31, 32, 33}, {64, 127, 128, 129, 7}, {1, 1, 1}};
    std::uint64_t seed = 6400;
    for (const castle::Shape& shape :
         {castle::Shape{.d = 7, .dv = 5}, castle::Shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2},
          castle::Shape{.d = 2, .dv = 3, .heads = 3, .kv_heads = 1}}) {
        for (const Index window : {Index(0), Index(40), castle::unlimited}) {
            const castle::Options options{.lookahead_window = window};
            castle::Workspace<T> workspace(shape, options);  // of all of them, one after the other
            for (const Counts& counts : all_counts) {
                expect_trained_as_alone(workspace, Packed<T>(++seed, shape, counts), options);
                if (this->HasFailure()) return;
            }
            // And without counts.
            const Packed<T> whole(++seed, shape, {150});
            const Matrix<T> out = written<T>(150, whole.d_out.cols(), [&](castle::MatrixView<T> view) {
                castle::forward(workspace, whole.input(), view);
            });
            const Trained<T> alone = train_alone(whole, options);
            EXPECT_TRUE(same_bits(out, alone.out));
            expect_same_gradients(run_backward(workspace, whole.input(), whole.d_out), alone.gradient);
        }
    }
}

TYPED_TEST(RaggedTraining, GivesTheSameBitsForRandomCountsOnEveryExecutor) {
    using T = TypeParam;
    ThreadPool two(2), four(4);
    for (std::uint64_t seed = 6500; seed < 6506; ++seed) {
        Random random(seed);
        const castle::Shape shape = random.pick(grouped_shapes(3, 2));
        const castle::Options options{.lookahead_window =
                                          random.pick(std::array<Index, 4>{0, 5, 100, castle::unlimited})};
        Counts counts;
        for (Index i = random.integer(1, 8); i > 0; --i) counts.push_back(random.pick(some_counts));
        SCOPED_TRACE(describe("seed ", seed, ", counts ", ::testing::PrintToString(counts), ", ", words_of(shape),
                              ", window ", options.lookahead_window));
        const Packed<T> packed(seed, shape, counts);
        const Trained<T> alone = train_alone(packed, options);
        castle::Workspace<T> workspace(shape, options);
        for (const castle::Executor& executor :
             {castle::Executor{}, two.executor(), four.executor(), reversed_executor(), shuffled_executor(seed)}) {
            Matrix<T> out(packed.rows(), packed.d_out.cols());
            castle::forward(workspace, counts, packed.input(), out, executor);
            EXPECT_TRUE(same_bits(out, alone.out));
            expect_same_gradients(run_backward(workspace, packed.input(), packed.d_out, executor), alone.gradient);
            if (this->HasFailure()) return;
        }
    }
}

// Nor in one of sequences that are no longer and no more, in any order.
TYPED_TEST(RaggedTraining, AllocatesNothingInTheSecondStep) {
    using T = TypeParam;
    const castle::Shape shape{.d = 5, .dv = 3, .heads = 4, .kv_heads = 2};
    for (const castle::Executor& executor : {castle::Executor{}, reversed_executor()}) {
        for (const Index window : {Index(0), Index(40), castle::unlimited}) {
            SCOPED_TRACE(describe("window ", window));
            castle::Workspace<T> workspace(shape, {.lookahead_window = window});
            const auto allocations = [&](const Counts& counts) {
                const Packed<T> packed(6550, shape, counts);
                Matrix<T> out(packed.rows(), packed.d_out.cols());
                castle::Gradient<T> gradient(packed.rows(), shape);
                const Allocations::Count count;
                castle::forward(workspace, packed.counts, packed.input(), out, executor);
                castle::backward(workspace, packed.input(), packed.d_out, gradient.view(), executor);
                return count.allocations();
            };
            EXPECT_GT(allocations({33, 0, 200, 1, 64}), 0);
            const Index bytes = workspace.bytes();
            for (const Counts& counts : {Counts{33, 0, 200, 1, 64}, Counts{0, 1, 33, 64, 200}, Counts{190, 64},
                                         Counts{1, 1, 1, 0, 1}, Counts{}, Counts{200}}) {
                EXPECT_EQ(allocations(counts), 0) << ::testing::PrintToString(counts);
            }
            EXPECT_EQ(workspace.bytes(), bytes);
        }
    }
}

TYPED_TEST(RaggedTraining, WithoutMemoryHoldsNoForwardPass) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 2, .kv_heads = 1};
    const Packed<T> packed(6560, shape, {150, 3, 0, 40}), small(6561, shape, {20, 30});
    const Trained<T> alone = train_alone(packed, {});
    const Matrix<T> untouched = Matrix<T>::Constant(packed.rows(), 4, sentinel<T>());
    long failures = 0;
    for (bool failed = true; failed;) {
        SCOPED_TRACE(describe(failures, " allocations go well"));
        castle::Workspace<T> workspace(shape);
        Matrix<T> out(small.rows(), 4);
        castle::forward(workspace, small.counts, small.input(), out);
        out = untouched;
        failed = false;
        try {
            const Allocations::Failure failure(failures);
            castle::forward(workspace, packed.counts, packed.input(), out);
        } catch (const std::bad_alloc&) {
            failed = true;
            ++failures;
        }
        if (failed) {
            ASSERT_TRUE(same_bits(out, untouched));
            ASSERT_EQ(workspace.size(), 0);
            castle::forward(workspace, packed.counts, packed.input(), out);
        }
        ASSERT_TRUE(same_bits(out, alone.out));
        expect_same_gradients(run_backward(workspace, packed.input(), packed.d_out), alone.gradient);
        ASSERT_FALSE(this->HasFailure());
        ASSERT_LT(failures, 1000);
    }
    EXPECT_GE(failures, 3) << "those of sequences that grow at least";
}

// An executor of the backward pass alone may need more memory than the forward pass has made room for.
TYPED_TEST(RaggedTraining, WithoutMemoryForItsExecutorTheBackwardPassStillWaits) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
    const Packed<T> packed(6565, shape, {150, 3, 0, 40});
    const Trained<T> alone = train_alone(packed, {});
    const castle::Executor executor = reversed_executor();
    long failures = 0;
    for (bool failed = true; failed;) {
        SCOPED_TRACE(describe(failures, " allocations go well"));
        castle::Workspace<T> workspace(shape);
        Matrix<T> out(packed.rows(), 8);
        castle::forward(workspace, packed.counts, packed.input(), out);
        castle::Gradient<T> gradient(packed.rows(), shape);
        for (Matrix<T>* m : all_of(gradient)) m->setConstant(sentinel<T>());
        const castle::Gradient<T> untouched = gradient;
        const castle::GradientView<T> view = gradient.view();
        failed = false;
        try {
            const Allocations::Failure failure(failures);
            castle::backward(workspace, packed.input(), packed.d_out, view, executor);
        } catch (const std::bad_alloc&) {
            failed = true;
            ++failures;
            ASSERT_EQ(workspace.size(), packed.rows());
            expect_same_gradients(gradient, untouched);
            castle::backward(workspace, packed.input(), packed.d_out, view, executor);
        }
        expect_same_gradients(gradient, alone.gradient);
        ASSERT_FALSE(this->HasFailure());
        ASSERT_LT(failures, 1000);
    }
}

TYPED_TEST(RaggedTraining, RejectsCountsThatDoNotFitAndChangesNothing) {
    using T = TypeParam;
    constexpr Index most = std::numeric_limits<Index>::max();
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
    const Packed<T> packed(6570, shape, {10, 0, 25});
    const Trained<T> alone = train_alone(packed, {});
    castle::Workspace<T> workspace(shape);
    Matrix<T> out(35, 8);
    castle::forward(workspace, packed.counts, packed.input(), out);
    const auto expect_rejected = [&](const Counts& counts, const std::vector<std::string>& parts) {
        const std::string sentence =
            message<std::invalid_argument>([&] { castle::forward(workspace, counts, packed.input(), out); });
        EXPECT_EQ(sentence.rfind("castle::forward: ", 0), 0U) << sentence;
        for (const std::string& part : parts) {
            EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
        }
    };
    expect_rejected({10, 24}, {"counts", "34", "35 rows"});
    expect_rejected({}, {"counts", "35 rows"});
    expect_rejected({10, 26}, {"counts", "35 rows"});
    expect_rejected({10, -1, 26}, {"counts[1] is -1"});
    expect_rejected({most, most, 37}, {"counts", "35 rows"});
    EXPECT_EQ(message<std::invalid_argument>([&] {
                  castle::forward(workspace, packed.counts, packed.input(), out.topRows(34));
              }).find("castle::forward: out is [34, 8] but must be [35, 8]"),
              0U);
    // The forward pass from before still waits.
    EXPECT_EQ(workspace.size(), 35);
    EXPECT_TRUE(same_bits(out, alone.out));
    EXPECT_THROW(
        static_cast<void>(castle::backward(workspace, packed.heads.first_tokens(10), packed.d_out.topRows(10))),
        std::invalid_argument);
    expect_same_gradients(run_backward(workspace, packed.input(), packed.d_out), alone.gradient);
    EXPECT_THROW(static_cast<void>(castle::backward(workspace, packed.input(), packed.d_out)), std::invalid_argument);
}

// What is masked is left out: a sequence sees nothing of another, whatever stands there.
TYPED_TEST(RaggedTraining, PoisonInOneSequenceReachesNoOther) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
    const Counts counts{20, 45, 1, 33};
    for (const Index window : {Index(0), Index(5), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        Packed<T> packed(6580, shape, counts);
        const Trained<T> clean = train_alone(packed, options);
        for (Matrix<T>* m : packed.heads.all()) {
            m->middleRows(20, 45).setConstant(std::numeric_limits<T>::quiet_NaN());
        }
        castle::Workspace<T> workspace(shape, options);
        Matrix<T> out(packed.rows(), packed.d_out.cols());
        castle::forward(workspace, counts, packed.input(), out);
        const castle::Gradient<T> g = castle::backward(workspace, packed.input(), packed.d_out);
        EXPECT_TRUE(out.middleRows(20, 45).array().isNaN().all());
        for (const auto& [first, count] : {std::pair<Index, Index>{0, 20}, std::pair<Index, Index>{65, 34}}) {
            EXPECT_TRUE(
                same_bits(Matrix<T>(out.middleRows(first, count)), Matrix<T>(clean.out.middleRows(first, count))));
            for (std::size_t m = 0; m < 6; ++m) {
                EXPECT_TRUE(same_bits(Matrix<T>(all_of(g)[m]->middleRows(first, count)),
                                      Matrix<T>(all_of(clean.gradient)[m]->middleRows(first, count))))
                    << input_names[m];
            }
        }
    }
}

}  // namespace
