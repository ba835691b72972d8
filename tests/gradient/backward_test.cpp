// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/gradient_oracle.hpp"
#include "support/gradients.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Backward : public ::testing::Test {};
TYPED_TEST_SUITE(Backward, support::Scalars);

template <class T>
void expect_gradients(std::uint64_t seed, Sizes sizes, const castle::Options& options) {
    SCOPED_TRACE(describe("seed ", seed, ", ", sizes, ", window ", options.lookahead_window, ", SiLU ", options.silu,
                          ", causal keys ", options.causal_keys));
    Random random(seed);
    const Head<T> head = random_head<T>(random, sizes);
    Matrix<T> d_out(sizes.length, sizes.dv);
    fill_normal(random, d_out);
    const oracle::Settings settings = oracle_settings(sizes.d, options);
    const auto by_oracle = [&]<class S>(S, oracle::Terms terms) {
        return oracle::backward(oracle_head<S>(head), oracle_rows<S>(d_out), settings, terms);
    };
    const oracle::Gradient<Exact<T>> exact = by_oracle(Exact<T>(), oracle::Terms::as_they_are);
    const oracle::Gradient<Exact<T>> magnitude = by_oracle(Exact<T>(), oracle::Terms::absolute);
    const oracle::Gradient<T> plain = by_oracle(T(), oracle::Terms::as_they_are);
    const castle::Gradient<T> ours = run_backward(head.input(), d_out, options);
    for (std::size_t m = 0; m < 6; ++m) {
        EXPECT_TRUE(
            gradient_as_precise_as_plain(*all_of(exact)[m], *all_of(plain)[m], *all_of(magnitude)[m], *all_of(ours)[m]))
            << input_names[m];
    }
}

TYPED_TEST(Backward, MatchesOracleForEveryLengthAroundBlocksAndPanels) {
    std::uint64_t seed = 2200;
    for (const Index length : {1, 2, 3, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 130, 161}) {
        for (const Index window :
             {Index(0), Index(1), Index(31), Index(32), Index(40), Index(64), Index(100), castle::unlimited}) {
            expect_gradients<TypeParam>(++seed, {length, 5, 3}, {.lookahead_window = window});
        }
    }
}

TYPED_TEST(Backward, MatchesOracleForEverySize) {
    std::uint64_t seed = 2500;
    for (const Index d : {1, 2, 7, 16, 33, 64, 130}) {
        for (const Index dv : {1, 8, 17, 70}) {
            for (const Index window : {Index(20), castle::unlimited}) {
                expect_gradients<TypeParam>(++seed, {70, d, dv}, {.lookahead_window = window});
            }
        }
    }
}

TYPED_TEST(Backward, MatchesOracleAcrossSpans) {
    for (const Index window : {Index(0), Index(90), castle::unlimited}) {
        expect_gradients<TypeParam>(2600 + static_cast<std::uint64_t>(window % 100), {530, 6, 4},
                                    {.lookahead_window = window});
    }
}

TYPED_TEST(Backward, MatchesOracleWithoutPartsOfTheScores) {
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        for (const castle::Options& options : partial_scores(window)) {
            for (const Index length : {2, 33, 100}) expect_gradients<TypeParam>(2650, {length, 6, 4}, options);
        }
    }
}

template <class T>
struct Case {
    Head<T> head;
    Matrix<T> d_out;

    Case(std::uint64_t seed, Sizes sizes) : head(sizes), d_out(sizes.length, sizes.dv) {
        Random random(seed);
        head = random_head<T>(random, sizes);
        fill_normal(random, d_out);
    }
};

template <class T>
void expect_same_bits(const castle::Gradient<T>& a, const castle::Gradient<T>& b) {
    for (std::size_t m = 0; m < 6; ++m) EXPECT_TRUE(same_bits(*all_of(a)[m], *all_of(b)[m])) << input_names[m];
}

TYPED_TEST(Backward, HasTheSameBitsForEveryExecutor) {
    using T = TypeParam;
    for (const Index window : {Index(0), Index(77), castle::unlimited}) {
        const Case<T> c(2700, {1100, 9, 5});
        const castle::Gradient<T> serial = run_backward(c.head.input(), c.d_out, {.lookahead_window = window});
        ThreadPool two(2), four(4);
        for (const castle::Executor& executor :
             {reversed_executor(), shuffled_executor(1), two.executor(), four.executor()}) {
            const castle::Options options{.lookahead_window = window, .executor = executor};
            expect_same_bits(serial, run_backward(c.head.input(), c.d_out, options));
            // The same with an executor of the calls.
            castle::Workspace<T> workspace(shape_of(c.head), {.lookahead_window = window});
            Matrix<T> out(1100, 5);
            castle::forward(workspace, c.head.input(), out, executor);
            castle::Gradient<T> g(1100, shape_of(c.head));
            castle::backward(workspace, c.head.input(), c.d_out, g.view(), executor);
            expect_same_bits(serial, g);
        }
    }
}

TYPED_TEST(Backward, ForwardHasTheBitsOfParallel) {
    using T = TypeParam;
    const Case<T> c(2710, {300, 9, 5});
    for (const Index window : {Index(0), Index(77), castle::unlimited}) {
        castle::Workspace<T> workspace(shape_of(c.head), {.lookahead_window = window});
        const Matrix<T> out =
            written<T>(300, 5, [&](castle::MatrixView<T> view) { castle::forward(workspace, c.head.input(), view); });
        EXPECT_TRUE(same_bits(out, castle::parallel(c.head.input(), {.lookahead_window = window})));
    }
}

// Lookahead views may be there or be left empty.
TYPED_TEST(Backward, OfWindowZeroIsThatOfStandardAttention) {
    using T = TypeParam;
    const Case<T> c(2720, {150, 9, 5});
    const castle::Options options{.lookahead_window = 0};
    const castle::Input<T> causal_alone = c.head.causal_input();
    const castle::Gradient<T> g = run_backward(c.head.input(), c.d_out, options);
    for (std::size_t m = 3; m < 6; ++m) {
        EXPECT_TRUE(same_bits(*all_of(g)[m], Matrix<T>(Matrix<T>::Zero(150, 9)))) << input_names[m];
    }
    for (const castle::Gradient<T>& alone :
         {run_backward(causal_alone, c.d_out, options), castle::backward(causal_alone, c.d_out, options)}) {
        for (std::size_t m = 0; m < 3; ++m) EXPECT_TRUE(same_bits(*all_of(g)[m], *all_of(alone)[m])) << input_names[m];
        for (std::size_t m = 3; m < 6; ++m) EXPECT_EQ(all_of(alone)[m]->size(), 0) << input_names[m];
    }
    // As the library makes them.
    castle::Workspace<T> workspace(shape_of(c.head), options);
    Matrix<T> out(150, 5);
    castle::forward(workspace, causal_alone, out);
    EXPECT_TRUE(same_bits(out, castle::causal_attention(c.head.qc, c.head.kc, c.head.vc)));
    castle::Gradient<T> into(150, shape_of(c.head), /*has_lookahead=*/false);
    castle::backward(workspace, causal_alone, c.d_out, into.view());
    for (std::size_t m = 0; m < 3; ++m) EXPECT_TRUE(same_bits(*all_of(g)[m], *all_of(into)[m])) << input_names[m];
}

TYPED_TEST(Backward, OfAWindowAsLongAsTheSequenceIsThatOfNone) {
    using T = TypeParam;
    const Case<T> c(2730, {150, 9, 5});
    const castle::Gradient<T> unlimited = run_backward(c.head.input(), c.d_out);
    for (const Index window : {Index(149), Index(150), Index(1000), castle::unlimited - 1}) {
        expect_same_bits(unlimited, run_backward(c.head.input(), c.d_out, {.lookahead_window = window}));
    }
}

// A workspace keeps its memory and nothing else.
TYPED_TEST(Backward, HasTheSameBitsInAUsedWorkspace) {
    using T = TypeParam;
    castle::Workspace<T> workspace({.d = 6, .dv = 7});
    for (const Index length : {200, 33, 600, 1, 0, 599}) {
        SCOPED_TRACE(length);
        const Case<T> c(2740 + static_cast<std::uint64_t>(length), {length, 6, 7});
        Matrix<T> out(length, 7);
        castle::forward(workspace, c.head.input(), out);
        EXPECT_EQ(workspace.size(), length);
        expect_same_bits(run_backward(workspace, c.head.input(), c.d_out), run_backward(c.head.input(), c.d_out));
        EXPECT_EQ(workspace.size(), 0);
    }
}

TYPED_TEST(Backward, TakesViewsWithinOneMatrix) {
    using T = TypeParam;
    Case<T> c(2750, {100, 7, 5});
    const castle::Gradient<T> expected = run_backward(c.head.input(), c.d_out);
    const PackedHead<T> packed(c.head);
    expect_same_bits(expected, run_backward(packed.input(), c.d_out));
    expect_same_bits(expected, castle::backward(packed.input(), c.d_out));
}

// One bad element in an input, or in d_out, reaches what depends on it by the definition, and nothing else: what is
// masked is left out of sums, not added as 0. The definition differentiated by hand, which has loops over what is not
// masked, says what depends on it.
template <class T>
void expect_poison(std::uint64_t seed, Sizes sizes, const castle::Options& options, const std::vector<Index>& tokens) {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    Case<T> c(seed, sizes);
    const oracle::Settings settings = oracle_settings(sizes.d, options);
    const castle::Gradient<T> clean = run_backward(c.head.input(), c.d_out, options);
    std::vector<Matrix<T>*> inputs;
    for (Matrix<T>* m : c.head.all()) inputs.push_back(m);
    inputs.push_back(&c.d_out);
    Random random(seed);
    for (std::size_t input = 0; input < inputs.size(); ++input) {
        for (const Index t : tokens) {
            // Without causal keys no key counts for row 0 but its own, whose U is 0: NaN by eq. 6, and left out here.
            if (input == 0 && t == 0 && !options.causal_keys) continue;
            for (const T poison : {nan, std::numeric_limits<T>::infinity()}) {
                SCOPED_TRACE(describe(poison, " in token ", t, " of ", input < 6 ? input_names[input] : "d_out", ", ",
                                      sizes, ", window ", options.lookahead_window));
                T& element = (*inputs[input])(t, random.integer(0, inputs[input]->cols() - 1));
                const T before = element;
                element = nan;
                const oracle::Gradient<double> depends =
                    oracle::backward(oracle_head<double>(c.head), oracle_rows<double>(c.d_out), settings);
                element = poison;
                const castle::Gradient<T> g = run_backward(c.head.input(), c.d_out, options);
                element = before;
                for (std::size_t m = 0; m < 6; ++m) {
                    const Matrix<T>& ours = *all_of(g)[m];
                    const Matrix<T>& healthy = *all_of(clean)[m];
                    const double size = static_cast<double>(healthy.cwiseAbs().maxCoeff());
                    // Queries before a bad lookahead key or value need U as it was before it, which is then summed up
                    // and not recovered by subtraction, and so is rounded otherwise.
                    const double slack = m == 0 && input >= 3 && input < 6 && t > 0
                                             ? most_roundings_backward * unit_roundoff<T> * size
                                             : 0;
                    for (Index i = 0; i < ours.rows(); ++i) {
                        for (Index j = 0; j < ours.cols(); ++j) {
                            if (std::isnan((*all_of(depends)[m])(i, j))) {
                                ASSERT_TRUE(!std::isnan(poison) || std::isnan(ours(i, j))) << input_names[m];
                            } else if (slack == 0) {
                                ASSERT_TRUE(same_bits(ours(i, j), healthy(i, j)))
                                    << input_names[m] << "(" << i << ", " << j << ") is " << ours(i, j) << ", without "
                                    << healthy(i, j);
                            } else {
                                ASSERT_TRUE(std::abs(static_cast<double>(ours(i, j) - healthy(i, j))) <= slack)
                                    << input_names[m] << "(" << i << ", " << j << ") is " << ours(i, j) << ", without "
                                    << healthy(i, j);
                            }
                        }
                    }
                }
            }
        }
    }
}

TYPED_TEST(Backward, PoisonReachesWhatDependsOnItAlone) {
    for (const Index window : {Index(0), Index(1), Index(5), Index(40), castle::unlimited}) {
        expect_poison<TypeParam>(2760, {140, 3, 2}, {.lookahead_window = window},
                                 {0, 1, 30, 31, 32, 33, 63, 64, 95, 96, 100, 127, 128, 138, 139});
        expect_poison<TypeParam>(2761, {64, 2, 1}, {.lookahead_window = window}, {0, 1, 31, 32, 62, 63});
        expect_poison<TypeParam>(2762, {2, 1, 1}, {.lookahead_window = window}, {0, 1});
        expect_poison<TypeParam>(2763, {1, 1, 1}, {.lookahead_window = window}, {0});
    }
}

TYPED_TEST(Backward, PoisonReachesWhatDependsOnItAloneWithoutPartsOfTheScores) {
    for (const castle::Options& options : partial_scores(20)) {
        expect_poison<TypeParam>(2764, {70, 3, 2}, options, {0, 1, 31, 32, 40, 63, 64, 68, 69});
    }
}

// U of more rows than are restored together, in more than one panel, from more than one bad block, and from one that
// finite ones follow.
TYPED_TEST(Backward, PoisonInManyTokensReachesNoTokenBeforeIt) {
    using T = TypeParam;
    const Index length = 230, d = 70;
    for (const Index window : {Index(50), castle::unlimited}) {
        for (const std::size_t input : {std::size_t(3), std::size_t(4), std::size_t(5)}) {
            Case<T> c(2765, {length, d, 2});
            const castle::Options options{.lookahead_window = window};
            const castle::Gradient<T> clean = run_backward(c.head.input(), c.d_out, options);
            Random random(2766);
            for (Index t = 90; t < length; ++t) {
                if (t % 3 == 0 && t < 200)
                    (*c.head.all()[input])(t, random.integer(0, d - 1)) = std::numeric_limits<T>::quiet_NaN();
            }
            const castle::Gradient<T> g = run_backward(c.head.input(), c.d_out, options);
            const Matrix<T> error = g.causal.q.topRows(90) - clean.causal.q.topRows(90);
            const double most =
                4 * precision_bound<T>(length, window) * static_cast<double>(clean.causal.q.cwiseAbs().maxCoeff());
            EXPECT_TRUE(error.allFinite()) << input_names[input];
            EXPECT_LE(static_cast<double>(error.cwiseAbs().maxCoeff()), most) << input_names[input];
            EXPECT_TRUE(g.causal.q.bottomRows(length - 91).array().isNaN().all());
        }
    }
}

// A value that is far larger than all before it, or overflows U, is no poison: tokens before it do not see it, and
// their gradients do not either, though U of theirs is recovered from what has it in it.
TYPED_TEST(Backward, ALargeTokenSpoilsNoGradientBeforeIt) {
    using T = TypeParam;
    const Index length = 150, seen = 51;
    const double most = static_cast<double>(std::numeric_limits<T>::max());
    for (const Index window : {Index(40), castle::unlimited}) {
        for (const double size : {1e2, 1e4, 1e6, 1e8, 1e10, 1e20, most / 1e4}) {
            SCOPED_TRACE(describe("window ", window, ", size ", size));
            Case<T> c(2769, {length, 6, 3});
            c.d_out.bottomRows(length - seen).setZero();
            for (Index t = 70; t < 76; ++t) c.head.vu.row(t).setConstant(T(size));
            Case<T> before(0, {0, 6, 3});
            for (std::size_t m = 0; m < 6; ++m) *before.head.all()[m] = c.head.all()[m]->topRows(seen);
            before.d_out = c.d_out.topRows(seen);
            const castle::Options options{.lookahead_window = window};
            const castle::Gradient<T> g = run_backward(c.head.input(), c.d_out, options);
            const castle::Gradient<T> expected = run_backward(before.head.input(), before.d_out, options);
            // Half of the digits of U are left at least. A lookahead score, of terms that add up to some 8, is off by
            // as much; a weight and its derivative are, relatively, by twice the score's error, and dS by their sum.
            const double half = std::ldexp(1.0, -std::numeric_limits<T>::digits / 2);
            for (std::size_t m = 0; m < 6; ++m) {
                const Matrix<T> error = all_of(g)[m]->topRows(seen) - *all_of(expected)[m];
                const double largest = static_cast<double>(all_of(expected)[m]->cwiseAbs().maxCoeff());
                EXPECT_LE(static_cast<double>(error.cwiseAbs().maxCoeff()), 32 * half * largest) << input_names[m];
                EXPECT_TRUE(error.allFinite()) << input_names[m];
            }
        }
    }
}

// The same where finite values overflow U, but no product with it that a gradient depends on.
TYPED_TEST(Backward, AnOverflowOfUSpoilsNoGradientBeforeIt) {
    using T = TypeParam;
    const Index length = 96;
    Head<T> head({.length = length, .d = 1, .dv = 1});
    for (Matrix<T>* m : {&head.kc, &head.qu, &head.ku}) m->setZero();
    head.qc.setOnes();
    head.vu.setOnes();
    for (Index t = 0; t < length; ++t) head.vc(t, 0) = T(t % 3);
    Matrix<T> d_out = Matrix<T>::Zero(length, 1);
    d_out(50, 0) = 1;
    const castle::Gradient<T> expected = run_backward(head.input(), d_out);
    for (Index t = 70; t < 76; ++t) head.vu(t, 0) = std::numeric_limits<T>::max() * T(0.45);
    const castle::Gradient<T> g = run_backward(head.input(), d_out);
    EXPECT_NEAR(static_cast<double>(g.causal.q(50, 0)), static_cast<double>(expected.causal.q(50, 0)),
                64 * unit_roundoff<T>);
    EXPECT_NEAR(static_cast<double>(g.causal.v.sum()), 1, 64 * unit_roundoff<T>);
}

// Two tokens with equal logits share the second row's weight, however large the logits are.
TYPED_TEST(Backward, IsExactForEqualLogitsOfAnySize) {
    using T = TypeParam;
    for (const double logit : {1.0, 1e4, 1e6, 1e8, 1e30, -1e4, -1e8}) {
        SCOPED_TRACE(logit);
        Head<T> head({.length = 2, .d = 1, .dv = 1});
        head.qc << 1, 1;
        head.kc << T(logit), T(logit);
        head.vc << 1, 2;
        for (Matrix<T>* m : {&head.qu, &head.ku, &head.vu}) m->setZero();
        const Matrix<T> d_out = Matrix<T>::Ones(2, 1);
        for (const Index window : {Index(0), castle::unlimited}) {
            const castle::Gradient<T> g = run_backward(head.input(), d_out, {.scale = 1.0, .lookahead_window = window});
            EXPECT_NEAR(static_cast<double>(g.causal.v(0, 0)), 1.5, 8 * unit_roundoff<T>);
            EXPECT_NEAR(static_cast<double>(g.causal.v(1, 0)), 0.5, 8 * unit_roundoff<T>);
        }
    }
}

// A lookahead score of -709.8, where e^-x is infinite in double: eq. 7's term is 0, and so is all that goes through it.
TYPED_TEST(Backward, IsRightWhereALookaheadScoreIsFarBelowZero) {
    using T = TypeParam;
    for (const double score : {-80.0, -87.5, -88.5, -104.0, -700.0, -709.8, -745.5, -2000.0, -1e30}) {
        SCOPED_TRACE(score);
        Head<T> head({.length = 2, .d = 1, .dv = 1});
        head.qc << 1, 1;
        head.vc << 1, 2;
        head.vu << 0, T(2 * score);
        for (Matrix<T>* m : {&head.kc, &head.qu, &head.ku}) m->setZero();
        const Matrix<T> d_out = Matrix<T>::Ones(2, 1);
        const castle::Gradient<T> g = run_backward(head.input(), d_out, {.scale = 1.0});
        EXPECT_NEAR(static_cast<double>(g.causal.v(0, 0)), 1.5, 8 * unit_roundoff<T>);
        EXPECT_NEAR(static_cast<double>(g.causal.v(1, 0)), 0.5, 8 * unit_roundoff<T>);
        // dS is 1/4 at most, and the gate 1/2.
        const double slope = std::exp(score) * (1 - score) + activation_underflow<T>;
        for (std::size_t m : {std::size_t(0), std::size_t(3), std::size_t(4)}) {
            EXPECT_LE(static_cast<double>(all_of(g)[m]->cwiseAbs().maxCoeff()), -score * slope) << input_names[m];
        }
        EXPECT_LE(static_cast<double>(g.lookahead.v.cwiseAbs().maxCoeff()), slope);
    }
}

// Scores of millions are rounded by more than their differences, and recovered ones may exceed the largest of the
// forward pass: weights are at most 1 all the same, and so a value's gradient at most the sum of d_out.
TYPED_TEST(Backward, HasNoWeightAboveOneForScalesOfAnySize) {
    using T = TypeParam;
    const Index length = 512;
    Case<T> c(2767, {length, 8, 3});
    const Matrix<T> d_out = Matrix<T>::Ones(length, 3);
    for (const double scale : {1.0, 1e3, 1e5, 1e8, 1e12}) {
        for (const Index window : {Index(0), Index(40), castle::unlimited}) {
            SCOPED_TRACE(describe("scale ", scale, ", window ", window));
            const castle::Gradient<T> g =
                run_backward(c.head.input(), d_out, {.scale = scale, .lookahead_window = window});
            for (Index s = 0; s < length; ++s) {
                ASSERT_GE(g.causal.v(s, 0), 0);
                ASSERT_LE(g.causal.v(s, 0), T(length - s)) << s;
            }
            for (std::size_t m = 0; m < 6; ++m) ASSERT_TRUE(all_of(g)[m]->allFinite()) << input_names[m];
        }
    }
}

// Programs may trap overflow, and ordinary inputs raise none, in positions that are masked neither.
TYPED_TEST(Backward, OfOrdinaryInputsOverflowsNowhere) {
    using T = TypeParam;
    for (const double size : {1.0, 30.0}) {
        Case<T> c(2768, {200, 9, 5});
        for (Matrix<T>* m : c.head.all()) *m *= T(size);
        for (const Index window : {Index(0), Index(40), castle::unlimited}) {
            SCOPED_TRACE(describe("size ", size, ", window ", window));
            std::feclearexcept(FE_ALL_EXCEPT);
            const castle::Gradient<T> g = run_backward(c.head.input(), c.d_out, {.lookahead_window = window});
            EXPECT_FALSE(std::fetestexcept(FE_OVERFLOW));
            EXPECT_TRUE(g.causal.q.allFinite());
        }
    }
}

template <class T>
void expect_rejects_what_does_not_fit(const castle::Input<T>& input, const Case<T>& c, const castle::Options& options) {
    const castle::Shape shape = shape_of(c.head);
    castle::Workspace<T> workspace(shape, options);
    Matrix<T> out(40, 5);
    const auto rejected = [&](const auto& call) { EXPECT_THROW(call(), std::invalid_argument); };
    rejected([&] { static_cast<void>(castle::backward(workspace, input, c.d_out)); });  // no forward pass
    castle::forward(workspace, input, out);
    rejected([&] { static_cast<void>(castle::backward(workspace, input.tokens(0, 39), c.d_out.topRows(39))); });
    rejected([&] { static_cast<void>(castle::backward(workspace, input, c.d_out.topRows(39))); });
    rejected([&] { castle::forward(workspace, input, out.topRows(39)); });
    castle::Gradient<T> small(39, shape, input.has_lookahead());
    rejected([&] { castle::backward(workspace, input, c.d_out, small.view()); });
    // None of it has changed anything.
    expect_same_bits(run_backward(workspace, input, c.d_out), run_backward(input, c.d_out, options));
    rejected([&] { static_cast<void>(castle::backward(workspace, input, c.d_out)); });  // used up
}

TYPED_TEST(Backward, RejectsWhatDoesNotFit) {
    using T = TypeParam;
    const Case<T> c(2770, {40, 6, 5});
    expect_rejects_what_does_not_fit<T>(c.head.input(), c, {});
    expect_rejects_what_does_not_fit<T>(c.head.input(), c, {.lookahead_window = 0});
    expect_rejects_what_does_not_fit<T>(c.head.causal_input(), c, {.lookahead_window = 0});
    const auto rejected = [&](const auto& call) { EXPECT_THROW(call(), std::invalid_argument); };
    rejected([&] { castle::Workspace<T>({.d = 0, .dv = 1}); });
    rejected([&] { castle::Workspace<T>({.d = 1, .dv = 1, .heads = 3, .kv_heads = 2}); });
    rejected([&] { castle::Workspace<T>({.d = 1, .dv = 1, .heads = 2, .kv_heads = 0}); });
    // Empty lookahead views are for a window of 0 alone.
    castle::Workspace<T> workspace(shape_of(c.head));
    Matrix<T> out(40, 5);
    rejected([&] { castle::forward(workspace, c.head.causal_input(), out); });
    EXPECT_EQ(workspace.size(), 0);
}

TYPED_TEST(Backward, OfNoTokensIsEmpty) {
    using T = TypeParam;
    const Head<T> head({.length = 0, .d = 3, .dv = 2});
    const Matrix<T> d_out(0, 2);
    for (const Index window : {Index(0), castle::unlimited}) {
        const castle::Gradient<T> g = castle::backward(head.input(), d_out, {.lookahead_window = window});
        EXPECT_EQ(g.causal.q.rows(), 0);
        EXPECT_EQ(g.causal.v.cols(), 2);
        EXPECT_EQ(all_of(g)[5]->rows(), 0);
    }
    EXPECT_EQ(castle::backward(head.input(), d_out).lookahead.v.cols(), 3);
}

// Weights and derivatives stay finite where exp overflows.
TYPED_TEST(Backward, IsFiniteForLogitsOfAnySize) {
    using T = TypeParam;
    for (const Fill fill : all_fills) {
        SCOPED_TRACE(fill);
        Random random(2780);
        const Head<T> head = filled_head<T>(fill, random, {100, 8, 8});
        Matrix<T> d_out(100, 8);
        fill_normal(random, d_out);
        const castle::Gradient<T> g = run_backward(head.input(), d_out);
        for (std::size_t m = 0; m < 6; ++m) EXPECT_TRUE(all_of(g)[m]->allFinite()) << input_names[m];
    }
}

}  // namespace
