// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/many_heads.hpp"
#include "support/message.hpp"
#include "support/poison.hpp"
#include "support/runs.hpp"
#include "support/saved.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Heads side by side, grouped queries among them: every query head as if it were alone.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class ManyHeads : public ::testing::Test {};
TYPED_TEST_SUITE(ManyHeads, support::Scalars);

constexpr std::array<Index, 5> all_windows{0, 1, 5, 40, castle::unlimited};

TEST(InputHead, IsWhatAHeadReads) {
    Random random(4000);
    for (const castle::Shape& shape : many_shapes()) {
        Head<float> heads = random_heads<float>(random, 3, shape);
        const PackedHead<float> packed(heads);
        for (Index h = 0; h < shape.heads; ++h) {
            SCOPED_TRACE(describe(words_of(shape), ", head ", h));
            const castle::Input<float> input = packed.input().head(shape, h);
            const Head<float> lone = lone_head(heads, shape, h);
            const castle::Input<float> expected = lone.input();
            EXPECT_TRUE(same_bits(Matrix<float>(input.causal.q.map()), Matrix<float>(expected.causal.q.map())));
            EXPECT_TRUE(same_bits(Matrix<float>(input.causal.k.map()), Matrix<float>(expected.causal.k.map())));
            EXPECT_TRUE(same_bits(Matrix<float>(input.causal.v.map()), Matrix<float>(expected.causal.v.map())));
            EXPECT_TRUE(same_bits(Matrix<float>(input.lookahead.q.map()), Matrix<float>(expected.lookahead.q.map())));
            EXPECT_TRUE(same_bits(Matrix<float>(input.lookahead.k.map()), Matrix<float>(expected.lookahead.k.map())));
            EXPECT_TRUE(same_bits(Matrix<float>(input.lookahead.v.map()), Matrix<float>(expected.lookahead.v.map())));
            EXPECT_FALSE(heads.causal_input().head(shape, h).has_lookahead());
        }
        for (const Index h : {Index(-1), shape.heads}) {
            EXPECT_THROW(static_cast<void>(heads.input().head(shape, h)), std::invalid_argument);
        }
        castle::Shape wider = shape;
        ++wider.d;
        EXPECT_THROW(static_cast<void>(heads.input().head(wider, shape.heads - 1)), std::invalid_argument);
    }
}

TYPED_TEST(ManyHeads, HaveTheBitsOfEveryHeadAlone) {
    using T = TypeParam;
    std::uint64_t seed = 4010;
    for (const castle::Shape& shape : many_shapes()) {
        for (const Index window : all_windows) {
            Random random(++seed);
            std::vector<Index> lengths = {random.pick(std::array<Index, 5>{1, 2, 31, 32, 33}),
                                          random.pick(std::array<Index, 6>{63, 64, 65, 127, 128, 129})};
            if (window >= 40) lengths.push_back(random.pick(std::array<Index, 4>{511, 512, 513, 600}));
            for (const Index length : lengths) {
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", ", words_of(shape), ", window ", window));
                const castle::Options options{.lookahead_window = window};
                Head<T> heads = random_heads<T>(random, length, shape);
                const PackedHead<T> packed(heads);
                const Outcome<T> expected = run_head_by_head(shape, heads.input(), options);
                expect_same_outcome(run_at_once(shape, packed.input(), options), expected);
                EXPECT_TRUE(same_bits(run_parallel(shape, packed.input(), options), expected.output));
                if (this->HasFailure()) return;
            }
        }
    }
}

TYPED_TEST(ManyHeads, HaveTheBitsOfEveryHeadAloneForEveryLengthAroundBlocksPanelsGroupsAndSpans) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
    Random random(4050);
    const Head<T> heads = random_heads<T>(random, 1025, shape);
    for (const Index window : {Index(0), Index(5), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        // A prefix of a lone head is the short run.
        const Outcome<T> whole = run_head_by_head(shape, heads.input(), options);
        for (const Index length :
             {0, 1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 127, 128, 129, 160, 255, 256, 257, 511, 512, 513, 1024, 1025}) {
            SCOPED_TRACE(describe("L ", length, ", window ", window));
            EXPECT_TRUE(same_bits(run_parallel(shape, heads.first_tokens(length), options),
                                  Matrix<T>(whole.output.topRows(length))));
            if (this->HasFailure()) return;
        }
        EXPECT_TRUE(same_bits(run_at_once(shape, heads.input(), options).lookahead_keys, whole.lookahead_keys));
        EXPECT_TRUE(same_bits(castle::parallel(shape, heads.input(), options), whole.output))
            << "of the returned matrix";
    }
}

TYPED_TEST(ManyHeads, HaveTheSameBitsInEverySplitAndOnEveryExecutor) {
    using T = TypeParam;
    ThreadPool two(2), four(4);
    std::uint64_t seed = 4100;
    for (const castle::Shape& shape : many_shapes()) {
        Random random(++seed);
        const Index length = shape.heads > 10 ? random.integer(100, 200) : random.integer(520, 650);
        const castle::Options options{.lookahead_window = random.pick(all_windows)};
        SCOPED_TRACE(
            describe("seed ", seed, ", L ", length, ", ", words_of(shape), ", window ", options.lookahead_window));
        Head<T> heads = random_heads<T>(random, length, shape);
        const PackedHead<T> packed(heads);
        const Outcome<T> expected = run_head_by_head(shape, heads.input(), options);
        expect_same_outcome(run_in_chunks(shape, packed.input(), one_by_one(length), options), expected);
        for (const castle::Executor& executor :
             {castle::Executor{}, two.executor(), four.executor(), reversed_executor(), shuffled_executor(seed)}) {
            castle::Options with_executor = options;
            with_executor.executor = executor;
            EXPECT_TRUE(same_bits(run_parallel(shape, packed.input(), with_executor), expected.output));
            castle::UqKvCache<T> cache(shape, options);
            const Matrix<T> out = run_extend(cache, packed.input(), random_split(random, length), executor);
            expect_same_outcome({.output = out, .lookahead_keys = all_lookahead_keys(cache)}, expected);
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(ManyHeads, MatchTheOracleHeadByHeadInEveryForm) {
    using T = TypeParam;
    std::uint64_t seed = 4150;
    for (const castle::Shape& shape : {castle::Shape{.d = 5, .dv = 4, .heads = 2, .kv_heads = 2},
                                       castle::Shape{.d = 3, .dv = 6, .heads = 4, .kv_heads = 2},
                                       castle::Shape{.d = 4, .dv = 1, .heads = 3, .kv_heads = 1}}) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", words_of(shape), ", window ", window));
            const Index length = 70;
            const castle::Options options{.lookahead_window = window};
            const Head<T> heads = random_heads<T>(random, length, shape, 0.5);
            const Matrix<T> blocked = run_parallel(shape, heads.input(), options);
            const Matrix<T> recurrent = run_recurrent(shape, heads.input(), options);
            const Matrix<T> dense = castle::dense::output(shape, heads.input(), options);
            ASSERT_EQ(dense.cols(), shape.heads * shape.dv);
            const oracle::Settings settings = oracle_settings(shape.d, options);
            for (Index h = 0; h < shape.heads; ++h) {
                const oracle::Head<double> lone = oracle_head(lone_head(heads, shape, h));
                const oracle::Result<double> exact = oracle::evaluate(lone, settings);
                const oracle::Result<double> bounds = error_bounds<T>(lone, settings, exact);
                for (const Matrix<T>* form : {&blocked, &recurrent, &dense}) {
                    EXPECT_TRUE(within(output_of_head(*form, shape, h), exact.output, bounds.output)) << "head " << h;
                }
            }
        }
    }
}

TYPED_TEST(ManyHeads, OfTheTextbookFormsAreTheLoneHeads) {
    using T = TypeParam;
    std::uint64_t seed = 4200;
    for (const castle::Shape& shape : grouped_shapes(5, 3)) {
        for (const Index window : {Index(0), Index(7), castle::unlimited}) {
            for (castle::Options options : partial_scores(window)) {
                Random random(++seed);
                options.silu = seed % 2 == 0;
                SCOPED_TRACE(describe("seed ", seed, ", ", words_of(shape), ", window ", window));
                const Index length = random.integer(1, 50), t = random.integer(0, length);
                Head<T> heads = random_heads<T>(random, length, shape);
                const PackedHead<T> packed(heads);
                const castle::Input<T> input = packed.input();
                const Matrix<T> recurrent = run_recurrent(shape, input, options);
                const Matrix<T> output = castle::dense::output(shape, input, options);
                using Matrices = std::vector<Matrix<T>>;
                const Matrices gates = castle::dense::gates(shape, input, options);
                const Matrices keys = castle::dense::lookahead_keys(shape, input, t, options);
                const Matrices causal = castle::dense::causal_scores(shape, input, options);
                const Matrices lookahead = castle::dense::lookahead_scores(shape, input, options);
                const Matrices scores = castle::dense::scores(shape, input, options);
                const Matrices weights = castle::dense::weights(shape, input, options);
                for (const Matrices* each_kv_head : {&gates, &keys}) {
                    ASSERT_EQ(Index(each_kv_head->size()), shape.kv_heads);
                }
                for (const Matrices* each_head : {&causal, &lookahead, &scores, &weights}) {
                    ASSERT_EQ(Index(each_head->size()), shape.heads);
                }
                for (Index h = 0; h < shape.heads; ++h) {
                    SCOPED_TRACE(describe("head ", h));
                    const auto i = std::size_t(h), kv = std::size_t(h / group_of(shape));
                    const castle::Input<T> lone = input.head(shape, h);
                    EXPECT_TRUE(same_bits(output_of_head(recurrent, shape, h), run_recurrent(lone, options)));
                    EXPECT_TRUE(same_bits(output_of_head(output, shape, h), castle::dense::output(lone, options)));
                    EXPECT_TRUE(same_bits(gates[kv], castle::dense::gates(lone, options)));
                    EXPECT_TRUE(same_bits(keys[kv], castle::dense::lookahead_keys(lone, t, options)));
                    EXPECT_TRUE(same_bits(causal[i], castle::dense::causal_scores(lone, options)));
                    EXPECT_TRUE(same_bits(lookahead[i], castle::dense::lookahead_scores(lone, options)));
                    EXPECT_TRUE(same_bits(scores[i], castle::dense::scores(lone, options)));
                    EXPECT_TRUE(same_bits(weights[i], castle::dense::weights(lone, options)));
                }
                EXPECT_TRUE(same_bits(castle::recurrent(shape, input, options), recurrent));
                if (this->HasFailure()) return;
            }
        }
    }
}

// Tokens that poison everything they are allowed to reach.
template <class T>
Head<T> poison(Index length, const castle::Shape& shape) {
    Head<T> heads(length, shape);
    for (Matrix<T>* m : heads.all()) m->setConstant(std::numeric_limits<T>::quiet_NaN());
    return heads;
}

TYPED_TEST(ManyHeads, RollBackForkClearAndReserveLikeOneHead) {
    using T = TypeParam;
    constexpr Index length = 300;
    std::uint64_t seed = 4300;
    for (const castle::Shape& shape : grouped_shapes(7, 5)) {
        for (const Index window : all_windows) {
            Random random(++seed);
            SCOPED_TRACE(describe("seed ", seed, ", ", words_of(shape), ", window ", window));
            const castle::Options options{.lookahead_window = window};
            const Head<T> heads = random_heads<T>(random, length, shape);
            const Head<T> bad = poison<T>(64, shape);
            const Outcome<T> whole = run_head_by_head(shape, heads.input(), options);
            castle::UqKvCache<T> cache(shape, options, 64), lone({.d = shape.d, .dv = shape.dv}, options, 64);
            const auto advance = [&](castle::UqKvCache<T>& one, Index count) {
                const Index first = one.size();
                const Matrix<T> out = run_extend(one, heads.input().tokens(first, count), random_split(random, count));
                EXPECT_TRUE(same_bits(out, Matrix<T>(whole.output.middleRows(first, count))))
                    << count << " tokens onto " << first;
            };

            EXPECT_TRUE(cache.shape() == shape);
            cache.reserve(90);
            EXPECT_GE(cache.capacity(), 90);
            EXPECT_EQ(cache.size(), 0);
            advance(cache, 100);
            castle::extend(lone, heads.input().head(shape, 0).tokens(0, 100));
            EXPECT_EQ(cache.max_rollback(), lone.max_rollback());
            const Index detour = random.integer(1, 64);
            castle::extend(cache, bad.first_tokens(detour));
            cache.rollback(detour);
            EXPECT_THROW(cache.rollback(cache.max_rollback() + 1), std::invalid_argument);
            EXPECT_EQ(cache.size(), 100);
            advance(cache, 50);
            const Index back = random.integer(0, cache.max_rollback());
            cache.rollback(back);
            advance(cache, 200 - cache.size());

            castle::UqKvCache<T> fork = cache.fork();
            EXPECT_EQ(fork.size(), 200);
            EXPECT_GT(fork.bytes().shared, 0);
            castle::extend(fork, bad.first_tokens(40));
            fork.rollback(40);
            cache.clear();
            EXPECT_EQ(cache.size(), 0);
            cache.reserve(length);
            for (castle::UqKvCache<T>* one : {&cache, &fork}) {
                advance(*one, length - one->size());
                EXPECT_TRUE(same_bits(all_lookahead_keys(*one), whole.lookahead_keys));
            }
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(ManyHeads, TellsTheLookaheadKeysOfEachKeyValueHead) {
    using T = TypeParam;
    Random random(4400);
    const castle::Shape shape{.d = 5, .dv = 3, .heads = 6, .kv_heads = 3};
    const Head<T> heads = random_heads<T>(random, 70, shape);
    castle::UqKvCache<T> cache(shape);
    castle::extend(cache, heads.input());
    for (Index kv = 0; kv < shape.kv_heads; ++kv) {
        for (Index h = 2 * kv; h < 2 * kv + 2; ++h) {
            EXPECT_TRUE(same_bits(cache.lookahead_keys(kv), run_at_once(heads.input().head(shape, h)).lookahead_keys));
        }
    }
    EXPECT_TRUE(same_bits(cache.lookahead_keys(), cache.lookahead_keys(0)));
    EXPECT_THROW(static_cast<void>(cache.lookahead_keys(-1)), std::invalid_argument);
    EXPECT_THROW(static_cast<void>(cache.lookahead_keys(3)), std::invalid_argument) << "a query head is none of these";
}

TYPED_TEST(ManyHeads, AllocateNothingInDecodingAfterReserve) {
    using T = TypeParam;
    Random random(4410);
    for (const castle::Shape& shape : grouped_shapes(5, 3)) {
        for (const Index window : {Index(0), Index(40), castle::unlimited}) {
            SCOPED_TRACE(describe(words_of(shape), ", window ", window));
            const Head<T> heads = random_heads<T>(random, 600, shape);
            Matrix<T> out(600, shape.heads * shape.dv);
            castle::UqKvCache<T> cache(shape, {.lookahead_window = window});
            cache.reserve(600);
            const Allocations::Count count;
            for (Index t = 0; t < 600; ++t) castle::extend(cache, heads.input().tokens(t, 1), out.middleRows(t, 1));
            EXPECT_EQ(count.allocations(), 0);
            cache.rollback(20);
            EXPECT_EQ(count.allocations(), 0);
        }
    }
}

TYPED_TEST(ManyHeads, GoOnAfterSaveAndLoad) {
    using T = TypeParam;
    std::uint64_t seed = 4500;
    for (const castle::Shape& shape : many_shapes()) {
        for (const Index window : {Index(0), Index(40), castle::unlimited}) {
            Random random(++seed);
            const Index before = random.integer(0, 150);
            SCOPED_TRACE(describe("seed ", seed, ", ", words_of(shape), ", window ", window, ", ", before, " tokens"));
            const Head<T> heads = random_heads<T>(random, before + 100, shape);
            castle::UqKvCache<T> cache(shape, {.lookahead_window = window});
            run_extend(cache, heads.first_tokens(before), random_split(random, before));
            // What was rolled back must not be in the file either.
            castle::extend(cache, heads.input().tokens(before, 20));
            cache.rollback(20);

            const std::string bytes = saved(cache);
            castle::UqKvCache<T> other = loaded<T>(bytes);
            EXPECT_EQ(other.size(), before);
            EXPECT_TRUE(other.shape() == shape);
            EXPECT_EQ(other.options().lookahead_window, window);
            EXPECT_EQ(other.max_rollback(), cache.max_rollback());
            EXPECT_TRUE(same_bits(all_lookahead_keys(other), all_lookahead_keys(cache)));
            EXPECT_EQ(saved(other), bytes);

            const Index back = random.integer(0, cache.max_rollback());
            for (castle::UqKvCache<T>* one : {&cache, &other}) one->rollback(back);
            const castle::Input<T> rest = heads.input().tokens(before - back, 50 + back);
            EXPECT_TRUE(same_bits(castle::extend(cache, rest), castle::extend(other, rest)));
            EXPECT_TRUE(same_bits(all_lookahead_keys(other), all_lookahead_keys(cache)));
            if (this->HasFailure()) return;
        }
    }
}

TYPED_TEST(ManyHeads, ADamagedFileIsRejected) {
    using T = TypeParam;
    Random random(4550);
    const castle::Shape shape{.d = 2, .dv = 1, .heads = 4, .kv_heads = 2};
    castle::UqKvCache<T> cache(shape, {.lookahead_window = 40}, 32);
    castle::extend(cache, random_heads<T>(random, 70, shape).input());
    const std::string bytes = saved(cache);
    for (std::size_t i = 0; i < bytes.size(); i += i < 400 ? 1 : 37) {
        SCOPED_TRACE(i);
        std::string changed = bytes;
        changed[i] = static_cast<char>(~bytes[i]);
        EXPECT_THROW(loaded<T>(changed), std::runtime_error);
        EXPECT_THROW(loaded<T>(bytes.substr(0, i)), std::runtime_error);
    }
    EXPECT_EQ(loaded<T>(bytes).size(), 70);
}

TYPED_TEST(ManyHeads, ALayerRejectsTheSavedCacheOfOtherHeads) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 12, .heads = 4, .kv_heads = 2, .d_head = 4};
    const castle::Layer<T> layer(config);
    Random random(4560);
    Matrix<T> x(70, 12);
    fill_normal(random, x);
    castle::LayerCache<T> cache = layer.make_cache();
    layer.extend(cache, x.topRows(50));
    const std::string bytes = saved(cache);
    const auto load = [&](const castle::LayerConfig& other, const std::string& from) {
        std::istringstream in(from);
        return castle::Layer<T>(other).load_cache(in);
    };
    castle::LayerCache<T> same = load(config, bytes);
    EXPECT_TRUE(same_bits(layer.extend(same, x.bottomRows(20)), Matrix<T>(layer.forward(x).bottomRows(20))));
    for (const auto& [heads, kv_heads] :
         std::vector<std::array<Index, 2>>{{4, 1}, {4, 4}, {4, 0}, {2, 2}, {8, 2}, {2, 1}}) {
        castle::LayerConfig other = config;
        other.heads = heads;
        other.kv_heads = kv_heads;
        const std::string sentence = message<std::runtime_error>([&] { load(other, bytes); });
        EXPECT_NE(sentence.find("heads"), std::string::npos) << heads << " on " << kv_heads << ": " << sentence;
    }
    // A cache that is not a layer's has other projections behind it.
    castle::UqKvCache<T> heads({.d = 4, .dv = 4, .heads = 4, .kv_heads = 2});
    EXPECT_THROW(load(config, saved(heads)), std::runtime_error);
    EXPECT_THROW(loaded<T>(bytes), std::runtime_error);
}

// A bad number in one element of an input, and what it reaches by the definition alone.
struct Poison {
    castle::Shape shape;
    Index window;
    std::size_t input;
    Index t;
    Index column;

    bool reaches_output(Index row, Index output_column) const {
        const HeadColumns read = columns_of(shape, input, output_column / shape.dv);
        if (!read.contain(column)) return false;
        switch (input) {
            case 0:
                return row == t;
            case 1:
                return row >= t;
            case 2:
                return row >= t && output_column % shape.dv == column - read.first;
            // Token t's own gates, which the token after it opens.
            case 3:
                return window > 0 && row > t;
            // The lookahead keys of the tokens that absorb token t, if there are any.
            default:
                return window > 0 && t > 0 && row >= t;
        }
    }
    bool reaches_lookahead_key(Index s, Index key_column, Index length) const {
        if (input < 3 || column / shape.d != key_column / shape.d) return false;
        const bool absorbs = s < t && t - s <= window;
        if (input == 3) return window > 0 && s == t && s + 1 < length;
        return absorbs && (input == 4 || column == key_column);
    }
};

TYPED_TEST(ManyHeads, PoisonReachesTheHeadsThatReadItAndNothingElse) {
    using T = TypeParam;
    using Form = std::function<Matrix<T>(const castle::Shape&, const castle::Input<T>&, const castle::Options&)>;
    const std::vector<Form> forms = {
        [](const auto& shape, const auto& in, const auto& options) { return run_parallel(shape, in, options); },
        [](const auto& shape, const auto& in, const auto& options) { return run_recurrent(shape, in, options); },
        [](const auto& shape, const auto& in, const auto& options) {
            return castle::dense::output(shape, in, options);
        },
        [](const auto& shape, const auto& in, const auto& options) {
            return run_in_chunks(shape, in, {23, 23, 1, 23, 23, 7}, options).output;
        }};
    constexpr Index length = 100;
    constexpr T infinity = std::numeric_limits<T>::infinity();
    Random random(4600);
    for (const castle::Shape& shape : {castle::Shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2},
                                       castle::Shape{.d = 2, .dv = 3, .heads = 3, .kv_heads = 1}}) {
        for (const Index window : {Index(0), Index(5), castle::unlimited}) {
            const castle::Options options{.lookahead_window = window};
            Head<T> heads = random_heads<T>(random, length, shape);
            std::vector<Matrix<T>> clean;
            for (const Form& form : forms) clean.push_back(form(shape, heads.input(), options));
            const Matrix<T> clean_keys = run_at_once(shape, heads.input(), options).lookahead_keys;
            for (const Index t : {0, 31, 32, 65, 99}) {
                for (std::size_t input = 0; input < 6; ++input) {
                    Matrix<T>& m = *heads.all()[input];
                    const Index column = random.integer(0, m.cols() - 1);
                    const Poison reach{.shape = shape, .window = window, .input = input, .t = t, .column = column};
                    const T original = m(t, column);
                    for (const T value : {std::numeric_limits<T>::quiet_NaN(), t % 2 == 0 ? infinity : -infinity}) {
                        m(t, column) = value;
                        SCOPED_TRACE(describe(value, " in ", input_names[input], "(", t, ", ", column, "), ",
                                              words_of(shape), ", window ", window));
                        for (std::size_t i = 0; i < forms.size(); ++i) {
                            SCOPED_TRACE(describe("form ", i));
                            expect_poison(clean[i], forms[i](shape, heads.input(), options), std::isnan(value),
                                          [&](Index row, Index c) { return reach.reaches_output(row, c); });
                        }
                        expect_poison(clean_keys, run_at_once(shape, heads.input(), options).lookahead_keys,
                                      std::isnan(value),
                                      [&](Index s, Index c) { return reach.reaches_lookahead_key(s, c, length); });
                        if (this->HasFailure()) return;
                    }
                    m(t, column) = original;
                }
            }
        }
    }
}

// Standard attention reads no lookahead inputs: they may be there or not, and be anything.
TYPED_TEST(ManyHeads, OfAWindowOfZeroAreStandardAttentionWithOrWithoutLookaheadInputs) {
    using T = TypeParam;
    Random random(4700);
    const castle::Options options{.lookahead_window = 0};
    for (const castle::Shape& shape : many_shapes()) {
        SCOPED_TRACE(words_of(shape));
        const Index length = 150;
        Head<T> heads = random_heads<T>(random, length, shape);
        Matrix<T> expected(length, shape.heads * shape.dv);
        for (Index h = 0; h < shape.heads; ++h) {
            const Head<T> lone = lone_head(heads, shape, h);
            expected.middleCols(h * shape.dv, shape.dv) = castle::causal_attention(lone.qc, lone.kc, lone.vc);
        }
        for (Matrix<T>* m : {&heads.qu, &heads.ku, &heads.vu}) m->setConstant(std::numeric_limits<T>::quiet_NaN());
        EXPECT_TRUE(same_bits(run_parallel(shape, heads.causal_input(), options), expected));
        EXPECT_TRUE(same_bits(run_parallel(shape, heads.input(), options), expected));
        EXPECT_TRUE(same_bits(run_recurrent(shape, heads.causal_input(), options),
                              run_recurrent(shape, heads.input(), options)));
        EXPECT_TRUE(same_bits(castle::dense::output(shape, heads.causal_input(), options),
                              castle::dense::output(shape, heads.input(), options)));

        castle::UqKvCache<T> cache(shape, options);
        const Matrix<T> out = written<T>(length, shape.heads * shape.dv, [&](castle::MatrixView<T> view) {
            castle::extend(cache, heads.causal_input().tokens(0, 40), view.middle_rows(0, 40));
            castle::extend(cache, heads.input().tokens(40, 60), view.middle_rows(40, 60));
            castle::extend(cache, heads.causal_input().tokens(100, 50), view.middle_rows(100, 50));
        });
        EXPECT_TRUE(same_bits(out, expected));
        EXPECT_EQ(all_lookahead_keys(cache).cwiseAbs().maxCoeff(), 0);
        EXPECT_EQ(cache.max_rollback(), length) << "down to the first token";
    }
}

// --- errors
// -----------------------------------------------------------------------------------------------------------

using View = castle::ConstMatrixView<float>;
using Input = castle::Input<float>;
constexpr castle::Shape shape{.d = 3, .dv = 5, .heads = 4, .kv_heads = 2};
constexpr Index rows = 6;

std::array<View*, 6> views(Input& in) {
    return {&in.causal.q, &in.causal.k, &in.causal.v, &in.lookahead.q, &in.lookahead.k, &in.lookahead.v};
}

void expect_parts(const std::string& sentence, const std::vector<std::string>& parts) {
    EXPECT_EQ(sentence.rfind("castle::", 0), 0U) << sentence;
    EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
    for (const std::string& part : parts) {
        EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
    }
}

struct Extents {
    Index rows;
    Index cols;
};
const std::array<Extents, 4> off_by_one{Extents{1, 0}, Extents{-1, 0}, Extents{0, 1}, Extents{0, -1}};

// Expects that `run(input, out)` is rejected, and leaves the output alone, for every argument that is off by one row or
// one column.
template <class Run>
void expect_wrong_shapes_rejected(const Run& run) {
    // A row and a column more than are right.
    Head<float> spare(rows + 1,
                      {.d = shape.d, .dv = shape.dv, .heads = shape.heads + 1, .kv_heads = shape.kv_heads + 1});
    for (Matrix<float>* m : spare.all()) m->setOnes();
    const Matrix<float> untouched = Matrix<float>::Constant(rows + 1, shape.heads * shape.dv + 1, sentinel<float>());
    Matrix<float> out = untouched;
    const Index out_cols = shape.heads * shape.dv;
    const castle::MatrixView<float> memory = out;
    const auto right = [&] {
        Input in = spare.input();
        for (std::size_t m = 0; m < 6; ++m) {
            const HeadColumns last = columns_of(shape, m, shape.heads - 1);
            *views(in)[m] = views(in)[m]->middle_rows(0, rows).middle_cols(0, last.first + last.count);
        }
        return in;
    };
    for (std::size_t m = 0; m < 6; ++m) {
        for (const auto& [more_rows, more_cols] : off_by_one) {
            Input in = right();
            View& wrong = *views(in)[m];
            wrong = View(wrong.data(), wrong.rows() + more_rows, wrong.cols() + more_cols, wrong.outer_stride());
            SCOPED_TRACE(describe(input_names[m], " is [", wrong.rows(), ", ", wrong.cols(), "]"));
            // The rows of causal.q are the number of tokens, so that the next input does not fit it.
            const std::string name = m == 0 && more_rows != 0 ? input_names[1] : input_names[m];
            expect_parts(
                message<std::invalid_argument>([&] { run(in, memory.middle_rows(0, rows).middle_cols(0, out_cols)); }),
                {"input." + name + " is ", "but must be"});
        }
    }
    for (const auto& [more_rows, more_cols] : off_by_one) {
        const castle::MatrixView<float> wrong(out.data(), rows + more_rows, out_cols + more_cols, out.outerStride());
        expect_parts(message<std::invalid_argument>([&] { run(right(), wrong); }),
                     {describe("out is [", wrong.rows(), ", ", wrong.cols(), "] but must be [", rows, ", ", out_cols)});
    }
    EXPECT_TRUE(same_bits(out, untouched)) << "the output was written to before the throw";
}

TEST(ManyHeadsErrors, NameTheArgumentThatIsOffByOne) {
    expect_wrong_shapes_rejected([](const Input& in, auto out) { castle::parallel(shape, in, out); });
    expect_wrong_shapes_rejected([](const Input& in, auto out) { castle::recurrent(shape, in, out); });
    castle::Workspace<float> workspace(shape);
    expect_wrong_shapes_rejected([&](const Input& in, auto out) { castle::forward(workspace, in, out); });
    EXPECT_EQ(workspace.size(), 0);

    Random random(4800);
    const Head<float> heads = random_heads<float>(random, 90, shape);
    const Outcome<float> expected = run_at_once(shape, heads.input());
    castle::UqKvCache<float> cache(shape);
    castle::extend(cache, heads.first_tokens(40));
    const auto bytes = cache.bytes();
    expect_wrong_shapes_rejected([&](const Input& in, auto out) { castle::extend(cache, in, out); });
    EXPECT_EQ(cache.size(), 40);
    EXPECT_EQ(cache.bytes(), bytes);
    EXPECT_TRUE(
        same_bits(castle::extend(cache, heads.input().tokens(40, 50)), Matrix<float>(expected.output.bottomRows(50))));
    EXPECT_TRUE(same_bits(all_lookahead_keys(cache), expected.lookahead_keys));
}

TEST(ManyHeadsErrors, NameTheLookaheadInputThatIsMissing) {
    const Head<float> heads(rows, shape);
    Matrix<float> out(rows, shape.heads * shape.dv);
    // With a window all three are needed; without one, all or none.
    expect_parts(message<std::invalid_argument>([&] { castle::parallel(shape, heads.causal_input(), out); }),
                 {"castle::parallel: input.lookahead.q is [0, 0] but must be [6, 6]"});
    for (std::size_t missing = 3; missing < 6; ++missing) {
        Input in = heads.input();
        *views(in)[missing] = {};
        expect_parts(message<std::invalid_argument>([&] { castle::parallel(shape, in, out, {.lookahead_window = 0}); }),
                     {std::string("castle::parallel: input.") + input_names[missing] + " is [0, 0]"});
    }
}

TEST(ManyHeadsErrors, NameTheSizeThatIsImpossible) {
    constexpr Index huge = Index(1) << 40;
    struct Case {
        castle::Shape wrong;
        std::string part;
    };
    const std::vector<Case> cases = {
        {{.d = 3, .dv = 5, .heads = 3, .kv_heads = 2}, "heads is 3 but must be a multiple of kv_heads, which is 2"},
        {{.d = 3, .dv = 5, .heads = 2, .kv_heads = 4}, "heads is 2 but must be a multiple of kv_heads, which is 4"},
        {{.d = 3, .dv = 5, .heads = 0, .kv_heads = 1}, "heads is 0"},
        {{.d = 3, .dv = 5, .heads = -4, .kv_heads = 2}, "heads is -4"},
        {{.d = 3, .dv = 5, .heads = 4, .kv_heads = 0}, "kv_heads is 0"},
        {{.d = 3, .dv = 5, .heads = 4, .kv_heads = -2}, "kv_heads is -2"},
        {{.d = 0, .dv = 5, .heads = 4, .kv_heads = 2}, "d is 0"},
        {{.d = 3, .dv = -5, .heads = 4, .kv_heads = 2}, "dv is -5"},
        {{.d = huge, .dv = 5, .heads = 4, .kv_heads = 2}, "d is 1099511627776"},
        {{.d = 3, .dv = huge, .heads = 4, .kv_heads = 2}, "dv is 1099511627776"},
        {{.d = 1, .dv = 1, .heads = 4097, .kv_heads = 1}, "heads is 4097"},
        {{.d = 3, .dv = 5, .heads = huge, .kv_heads = 2}, "heads is 1099511627776"},
        {{.d = 3, .dv = 5, .heads = huge, .kv_heads = huge}, "heads is 1099511627776"},
        {{.d = 3, .dv = 5, .heads = std::numeric_limits<Index>::max(), .kv_heads = 1}, "heads is 9223372036854775807"}};
    const Head<float> heads(rows, shape);
    const Input in = heads.input();
    Matrix<float> out(rows, shape.heads * shape.dv), d_out(rows, shape.heads * shape.dv);
    for (const Case& one : cases) {
        const castle::Shape& wrong = one.wrong;
        const std::string& part = one.part;
        SCOPED_TRACE(words_of(wrong));
        const auto rejected = [&](const auto& call) { expect_parts(message<std::invalid_argument>(call), {part}); };
        rejected([&] { castle::UqKvCache<float>{wrong}; });
        rejected([&] { castle::Workspace<float>{wrong}; });
        rejected([&] { castle::parallel(wrong, in, out); });
        rejected([&] { castle::recurrent(wrong, in, out); });
        rejected([&] { static_cast<void>(castle::parallel(wrong, in)); });
        rejected([&] { static_cast<void>(castle::dense::output(wrong, in)); });
        rejected([&] { static_cast<void>(castle::backward(wrong, in, d_out)); });
    }
}

}  // namespace
