// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/masks.hpp"
#include "support/message.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Masks pair by pair, score terms number by number, and what is rejected.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;
namespace tables = castle::tables;

TEST(Mask, SeesWhatItsNameSays) {
    for (const Index length : {1, 5, 64, 65, 200}) {
        Random random(std::uint64_t(17000 + length));
        for (const NamedMask& named : all_masks(random, length)) {
            SCOPED_TRACE(describe("L ", length, ", ", named.name));
            for (Index t = 0; t < length; ++t) {
                for (Index s = 0; s < length; ++s) {
                    ASSERT_EQ(named.mask.sees(t, s, length), named.sees(t, s)) << "row " << t << ", key " << s;
                }
                ASSERT_FALSE(named.mask.sees(t, length, length));
            }
        }
    }
}

TEST(Mask, ReachesAsFarAsItsRowsSee) {
    const Index length = 200;
    Random random(17100);
    for (const NamedMask& named : all_masks(random, length)) {
        if (named.mask.rule() == nullptr) continue;
        SCOPED_TRACE(named.name);
        for (const Index first : {0, 3, 64, 150}) {
            for (const Index count : {1, 20, 50}) {
                const castle::detail::KeyRange reach = named.mask.rule()->reach(first, first + count);
                for (Index t = first; t < first + count; ++t) {
                    for (Index s = 0; s < length; ++s) {
                        ASSERT_TRUE(!named.sees(t, s) || (reach.begin <= s && s < reach.end)) << t << ", " << s;
                    }
                }
            }
        }
    }
}

TEST(Mask, OfBooleanExpressionsIsWhatTheySay) {
    Matrix<float> scores = Matrix<float>::Random(70, 90);
    const Mask mask = masks::matrix(scores.array() > 0);
    for (Index t = 0; t < 70; ++t) {
        for (Index s = 0; s < 90; ++s) ASSERT_EQ(mask.sees(t, s, 90), scores(t, s) > 0);
    }
}

// What a call with this mask says, on a cache of `size` tokens.
std::string rejection(const Mask& mask, Index size, Index count, const castle::ScoreTerms& terms = {}) {
    Random random(17200);
    const castle::Shape shape{.d = 2, .dv = 2, .heads = 2, .kv_heads = 1};
    const Head<float> head = random_heads<float>(random, size + count, shape);
    castle::UqKvCache<float> cache(shape, {.terms = terms});
    castle::extend(cache, head.first_tokens(size));
    const Matrix<float> before = cache.lookahead_keys();
    Matrix<float> out = Matrix<float>::Constant(count, 4, 7);
    const std::string words =
        message<std::invalid_argument>([&] { castle::extend(cache, head.input().tokens(size, count), out, mask); });
    EXPECT_EQ(cache.size(), words == "did not throw" ? size + count : size);
    if (cache.size() == size) {
        EXPECT_TRUE(same_bits(cache.lookahead_keys(), before));
        EXPECT_TRUE((out.array() == 7).all());
    }
    return words;
}

TEST(Mask, RejectsWhatIsNotThere) {
    EXPECT_EQ(rejection(masks::prefix(100), 0, 50),
              "castle::extend: row 0 of mask sees key 50 but there are only 50 keys");
    EXPECT_EQ(rejection(masks::prefix(100) & masks::causal(), 0, 50), "did not throw");
    EXPECT_EQ(rejection(masks::prefix(100) | masks::causal(), 20, 50),
              "castle::extend: row 20 of mask sees key 70 but there are only 70 keys");
    const Mask any = masks::predicate([](Index t, Index s) { return s <= t; });
    EXPECT_EQ(rejection(masks::prefix(100) | any, 20, 50),
              "castle::extend: row 20 of mask sees key 70 but there are only 70 keys");
    // What is there, of the prefix.
    EXPECT_EQ(rejection(masks::prefix(100) & masks::full(), 20, 50), "did not throw");
    EXPECT_EQ(rejection(masks::modality(std::vector<bool>(30, true), castle::Future::all), 0, 20),
              "castle::extend: row 0 of mask sees key 20 but there are only 20 keys");
    EXPECT_EQ(rejection(masks::packed(60, 60, [](Index, Index) { return true; }), 20, 50),
              "castle::extend: mask has 60 rows but the call has row 69");
    EXPECT_EQ(rejection(masks::documents({10, 20}), 0, 31), "castle::extend: mask has 30 rows but the call has row 30");
    EXPECT_EQ(rejection(masks::full(), 20, 50), "did not throw");
    Random random(17300);
    const Head<float> head = random_heads<float>(random, 20, {.d = 2, .dv = 2});
    EXPECT_EQ(message<std::invalid_argument>([&] {
                  static_cast<void>(castle::parallel(head.input(), {}, masks::documents({10, 11})));
              }),
              "castle::parallel: mask has documents of 21 tokens but the input has 20 rows");
    const std::vector<Mask> two(2);
    Matrix<float> out(20, 2);
    EXPECT_EQ(message<std::invalid_argument>([&] { castle::parallel(head.input(), out, {}, two); }),
              "castle::parallel: mask has 2 masks but there are 1 sequences");
}

TEST(Mask, RejectsRowsWithoutKeysUnlessItSaysThatTheyMayBe) {
    const auto sees = [](Index t, Index s) { return s <= t && t != 42; };
    EXPECT_EQ(rejection(masks::predicate(sees), 20, 50),
              "castle::extend: row 42 of mask sees none of the 70 keys; if that may be, pass "
              "mask.allowing_empty_rows()");
    EXPECT_EQ(rejection(masks::packed(70, 70, sees), 20, 50), rejection(masks::predicate(sees), 20, 50));
    EXPECT_EQ(rejection(masks::predicate(sees).allowing_empty_rows(), 20, 50), "did not throw");
    EXPECT_EQ(rejection(masks::predicate(sees) | masks::sliding_window(1), 20, 50), "did not throw");
    EXPECT_TRUE((masks::causal() & masks::full().allowing_empty_rows()).allows_empty_rows());
}

TEST(Mask, RejectsSizesThatMeanNothing) {
    const std::vector<Mask> two(2);
    const auto says = [](const auto& call) { return message<std::invalid_argument>(call); };
    EXPECT_EQ(says([] { masks::sliding_window(0); }),
              "castle::masks::sliding_window: window is 0 but must be at least 1");
    EXPECT_EQ(says([] { masks::sliding_window(3, -1); }),
              "castle::masks::sliding_window: keep_first is -1 but must be at least 0");
    EXPECT_EQ(says([] { masks::prefix(-2); }), "castle::masks::prefix: tokens is -2 but must be at least 0");
    EXPECT_EQ(says([] {
                  masks::documents({3, -1});
              }),
              "castle::masks::documents: lengths[1] is -1 but must be at least 0");
    EXPECT_EQ(says([] {
                  masks::documents({3, 4}, masks::prefix(4));
              }),
              "castle::masks::documents: row 0 of mask sees key 3 but there are only 3 keys");
    EXPECT_EQ(says([&] {
                  masks::documents({3, 4, 5}, two);
              }),
              "castle::masks::documents: within has 2 masks but lengths has 3 elements");
    EXPECT_EQ(says([] { masks::packed(-1, 2, [](Index, Index) { return true; }); }),
              "castle::masks::packed: rows is -1 but must be at least 0");
    EXPECT_EQ(says([] { tables::alibi(0, 3); }), "castle::tables::alibi_slopes: heads is 0 but must be at least 1");
    EXPECT_EQ(says([] { tables::alibi(3, 0); }), "castle::tables::linear: distances is 0 but must be at least 1");
    EXPECT_EQ(says([] { tables::decay(std::array{0.1}, 0); }),
              "castle::tables::decay: distances is 0 but must be at least 1");
}

TEST(ScoreTerms, AreRejectedWhereTheyDoNotFit) {
    const auto says = [](const castle::ScoreTerms& terms) {
        return message<std::invalid_argument>(
            [&] { castle::UqKvCache<float>({.d = 2, .dv = 2, .heads = 2, .kv_heads = 1}, {.terms = terms}); });
    };
    EXPECT_EQ(says({.factor = Matrix<double>::Ones(3, 5)}),
              "castle::UqKvCache: options.terms.factor is [3, 5] but must have 1 row or 2, one for each head");
    EXPECT_EQ(says({.factor = Matrix<double>(2, 0), .soft_cap = 50.0}),
              "castle::UqKvCache: options.terms.factor is [2, 0] but must have a column");
    EXPECT_EQ(says({.bias = Matrix<double>(0, 5), .soft_cap = 50.0}),
              "castle::UqKvCache: options.terms.bias is [0, 5] but must have 1 row or 2, one for each head");
    Matrix<double> bad = Matrix<double>::Ones(2, 5);
    bad(1, 3) = 1e300;
    EXPECT_EQ(says({.bias = bad}),
              "castle::UqKvCache: options.terms.bias(1, 3) is 1e+300 but must be finite, also in the scalar of the "
              "matrices");
    EXPECT_EQ(
        says({.soft_cap = 0.0}),
        "castle::UqKvCache: options.terms.soft_cap is 0 but must be above 0 and finite, also in the scalar of the "
        "matrices");
    EXPECT_EQ(says({.sinks = {1, 2, 3}}),
              "castle::UqKvCache: options.terms.sinks has 3 elements but there are 2 heads");
    EXPECT_EQ(says({.sinks = {1, std::numeric_limits<double>::infinity()}}),
              "castle::UqKvCache: options.terms.sinks[1] is inf but must be finite");
    // Tables have to reach as far as a row sees, and no farther.
    const castle::ScoreTerms short_table{.bias = Matrix<double>::Zero(1, 10)};
    EXPECT_EQ(rejection(masks::causal(), 0, 10, short_table), "did not throw");
    EXPECT_EQ(rejection(masks::causal(), 0, 11, short_table),
              "castle::extend: options.terms has tables of 10 distances but row 10 sees key 0, at distance 10");
    EXPECT_EQ(rejection(masks::sliding_window(10), 0, 100, short_table), "did not throw");
    EXPECT_EQ(rejection(masks::sliding_window(11), 0, 100, short_table),
              "castle::extend: options.terms has tables of 10 distances but row 10 sees key 0, at distance 10");
    EXPECT_EQ(rejection(masks::full(), 0, 11, short_table),
              "castle::extend: options.terms has tables of 10 distances but row 0 sees key 10, at distance 10");
}

TEST(Mask, OfMassesHasToKnowEveryRow) {
    Random random(17350);
    const castle::Shape shape{.d = 2, .dv = 2};
    const Head<float> head = random_heads<float>(random, 40, shape);
    Matrix<float> out(40, 2), mass(40, 1);
    const std::vector<Mask> too_short = {masks::packed(10, 10, [](Index, Index) { return true; }),
                                         masks::documents({4, 6})};
    for (const Mask& mass_over : too_short) {
        const castle::Output<float> output{.out = out, .mass = mass, .mass_over = mass_over};
        castle::UqKvCache<float> cache(shape);
        castle::Workspace<float> workspace(shape);
        const auto says = [](const auto& call) { return message<std::invalid_argument>(call); };
        const std::string words = "mass_over has 10 rows but the call has row 39";
        EXPECT_EQ(says([&] { castle::extend(cache, head.input(), output); }), "castle::extend: " + words);
        EXPECT_EQ(says([&] { castle::parallel(shape, head.input(), output); }), "castle::parallel: " + words);
        EXPECT_EQ(says([&] { castle::forward(workspace, head.input(), output); }), "castle::forward: " + words);
        EXPECT_EQ(cache.size(), 0);
    }
    EXPECT_FALSE(too_short[0].sees(10, 0, 40));
    EXPECT_FALSE(too_short[1].sees(10, 0, 40));
}

TEST(ScoreTerms, HaveTheTablesThatPapersHave) {
    EXPECT_EQ(tables::alibi_slopes(8),
              (std::vector<double>{0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625}));
    // Of 12 heads: those of 8, then every other one of 16.
    const std::vector<double> twelve = tables::alibi_slopes(12);
    ASSERT_EQ(twelve.size(), 12u);
    for (Index h = 0; h < 4; ++h) EXPECT_DOUBLE_EQ(twelve[std::size_t(8 + h)], std::exp2(-0.5 * double(2 * h + 1)));
    const Matrix<double> bias = tables::alibi(2, 4);
    EXPECT_EQ(bias(0, 3), -3 * 0.0625);
    EXPECT_EQ(bias(1, 2), -2 * 0.00390625);
    const Matrix<double> decay = tables::decay(std::array{0.5, 0.0}, 3);
    EXPECT_DOUBLE_EQ(decay(0, 2), std::exp(-1.0));
    EXPECT_EQ(decay(1, 2), 1.0);
}

// A forward pass that was made with other terms has no backward pass any more.
TEST(ScoreTerms, ThatAreSetEndAForwardPass) {
    Random random(17360);
    const castle::Shape shape{.d = 2, .dv = 2};
    const Head<float> head = random_heads<float>(random, 40, shape);
    castle::Workspace<float> workspace(shape, {.terms = {.bias = Matrix<double>::Zero(1, 40)}});
    Matrix<float> out(40, 2);
    castle::forward(workspace, head.input(), out);
    workspace.set_terms({.bias = Matrix<double>::Ones(1, 40)});
    EXPECT_EQ(workspace.size(), 0);
    EXPECT_THROW(static_cast<void>(castle::backward(workspace, head.input(), out)), std::invalid_argument);
    EXPECT_THROW(workspace.set_terms({.sinks = {1, 2}}), std::invalid_argument);
    EXPECT_EQ(workspace.options().terms.bias(0, 0), 1);
}

template <class T>
class SoftCap : public ::testing::Test {};
TYPED_TEST_SUITE(SoftCap, support::Scalars);

// tanh is the quotient of 1 - e and 1 + e: the exponential's error, times |x| / c that its argument is rounded by, and
// four roundings. An exponential below the normal numbers is 0 or so.
TYPED_TEST(SoftCap, IsWithinItsRoundingsOverTheWholeRange) {
    using T = TypeParam;
    using S = castle::detail::Simd<T>;
    using Wide = Exact<T>;
    const T cap = T(1.5);
    for (int exponent = -130; exponent <= 130; ++exponent) {
        for (const double mantissa : {1.0, 1.2345, 1.7, -1.0, -1.9}) {
            const T x = static_cast<T>(std::ldexp(mantissa, exponent));
            if (!std::isfinite(x)) continue;
            const castle::detail::SoftCap<T> capped(S::set(x), cap);
            alignas(64) T value[std::size_t(S::width)], derivative[std::size_t(S::width)];
            S::store(value, capped.value());
            S::store(derivative, capped.derivative());
            const Wide u = Wide(x) / Wide(cap), exact = Wide(cap) * std::tanh(u);
            const Wide slope = 1 / (std::cosh(u) * std::cosh(u));
            const double roundings = gamma<T>(exp_roundings + 10);
            EXPECT_LE(double(std::abs(Wide(value[0]) - exact)),
                      roundings * double(std::abs(exact)) + smallest_normal<T>)
                << x;
            // The argument's rounding, |u| u_0, and as much again where |u| is large.
            EXPECT_LE(double(std::abs(Wide(derivative[0]) - slope)),
                      (roundings + 8 * unit_roundoff<T> * double(std::abs(u))) * double(slope) + 4 * smallest_normal<T>)
                << x;
        }
    }
    const auto at = [&](T x) {
        alignas(64) T value[std::size_t(S::width)];
        S::store(value, castle::detail::SoftCap<T>(S::set(x), cap).value());
        return value[0];
    };
    const T infinity = std::numeric_limits<T>::infinity();
    EXPECT_EQ(at(infinity), cap);
    EXPECT_EQ(at(-infinity), -cap);
    EXPECT_TRUE(std::isnan(at(std::numeric_limits<T>::quiet_NaN())));
}

template <class T>
class Merge : public ::testing::Test {};
TYPED_TEST_SUITE(Merge, support::Scalars);

TYPED_TEST(Merge, OfTwoSetsOfKeysIsTheirUnion) {
    using T = TypeParam;
    Random random(17400);
    const castle::Shape shape{.d = 4, .dv = 3, .heads = 2, .kv_heads = 2};
    const Index length = 90;
    const castle::Options options{.lookahead_window = 0};
    const Head<T> head = random_heads<T>(random, length, shape);
    const auto in_a = [](Index t, Index s) { return s <= t && (s % 3 == 0 || t == 7) && t != 8; };
    const Mask a = masks::predicate(in_a).allowing_empty_rows();
    const Mask b = masks::predicate([=](Index t, Index s) { return s <= t && !in_a(t, s); }).allowing_empty_rows();
    const auto run = [&](const Mask& mask, Matrix<T>& out, Matrix<T>& sums) {
        castle::parallel(shape, head.input(), castle::Output<T>{.out = out, .log_sum_exp = sums}, options, mask);
    };
    Matrix<T> out_a(length, 6), out_b(length, 6), out(length, 6), sums_a(length, 2), sums_b(length, 2), sums(length, 2);
    run(a, out_a, sums_a);
    run(b, out_b, sums_b);
    run(masks::causal(), out, sums);
    castle::merge<T>({.out = out_a, .log_sum_exp = sums_a}, {.out = out_b, .log_sum_exp = sums_b},
                     {.out = out_a, .log_sum_exp = sums_a});
    const double bound = 500 * unit_roundoff<T>;
    EXPECT_LE(double((out_a - out).cwiseAbs().maxCoeff()), bound);
    EXPECT_LE(double((sums_a - sums).cwiseAbs().maxCoeff()), bound);

    Matrix<T> narrow(length, 1);
    EXPECT_EQ(message<std::invalid_argument>([&] {
                  castle::merge<T>({.out = out_a, .log_sum_exp = sums_a}, {.out = out_b, .log_sum_exp = narrow},
                                   {.out = out});
              }),
              "castle::merge: b.log_sum_exp is [90, 1] but must be [90, 2]");
}

}  // namespace
