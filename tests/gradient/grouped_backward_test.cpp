// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/gradient_oracle.hpp"
#include "support/gradients.hpp"
#include "support/many_heads.hpp"
#include "support/message.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// The gradients of heads side by side: those of a head's queries are the lone head's, those of what a group shares are
// the sum over its heads.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class GroupedBackward : public ::testing::Test {};
TYPED_TEST_SUITE(GroupedBackward, support::Scalars);

template <class T>
struct Case {
    castle::Shape shape;
    Head<T> heads;
    Matrix<T> d_out;

    Case(std::uint64_t seed, Index length, const castle::Shape& s)
        : shape(s), heads(length, s), d_out(length, s.heads * s.dv) {
        Random random(seed);
        heads = random_heads<T>(random, length, s);
        fill_normal(random, d_out);
    }

    castle::Gradient<T> gradient(const castle::Options& options) const {
        return run_backward(shape, heads.input(), d_out, options);
    }
};

template <class T>
void expect_same_bits(const castle::Gradient<T>& a, const castle::Gradient<T>& b) {
    for (std::size_t m = 0; m < 6; ++m) EXPECT_TRUE(same_bits(*all_of(a)[m], *all_of(b)[m])) << input_names[m];
}

// The most that a gradient may differ from the sum of the lone heads' gradients, of which `magnitude` is the sum of the
// absolute terms. The terms are the same, in another order. A term of a key's gradient passes one addition for every
// row of every head of the group; one of a lookahead gradient does so twice, once on its way to the gates or to U and
// once more from there, and in between through d products and the 32 tokens of a block of every head.
template <class T>
double reordering_bound(const castle::Shape& shape, Index length, double magnitude) {
    const double heads = static_cast<double>(group_of(shape)), tokens = static_cast<double>(length);
    const double additions = 2 * heads * tokens + 32 * heads + static_cast<double>(shape.d) + 8;
    return gamma<T>(2 * additions) * magnitude + 2 * additions * smallest_normal<T>;
}

template <class T>
void expect_sums_of_lone_heads(const Case<T>& c, const castle::Options& options) {
    const Index length = c.d_out.rows();
    const castle::Gradient<T> ours = c.gradient(options);
    const castle::Gradient<T> lone = run_backward_head_by_head(c.shape, c.heads.input(), c.d_out, options);
    EXPECT_TRUE(same_bits(ours.causal.q, lone.causal.q)) << "of the queries";
    if (c.shape.heads == c.shape.kv_heads) {
        expect_same_bits(ours, lone);
        return;
    }
    const oracle::Gradient<double> magnitude = oracle_backward<double>(
        c.heads, c.shape, c.d_out, oracle_settings(c.shape.d, options), oracle::Terms::absolute);
    for (std::size_t m = 1; m < 6; ++m) {
        const oracle::Rows<double>& sizes = *all_of(magnitude)[m];
        oracle::Rows<double> bounds(sizes.rows(), sizes.cols());
        for (Index i = 0; i < sizes.rows(); ++i) {
            for (Index j = 0; j < sizes.cols(); ++j) {
                bounds(i, j) = reordering_bound<T>(c.shape, length, sizes(i, j));
            }
        }
        EXPECT_TRUE(within(*all_of(ours)[m], oracle_rows<double>(*all_of(lone)[m]), bounds)) << input_names[m];
    }
}

TYPED_TEST(GroupedBackward, IsTheSumOfTheLoneHeads) {
    using T = TypeParam;
    std::uint64_t seed = 5000;
    for (const castle::Shape& shape : many_shapes()) {
        for (const Index window : {Index(0), Index(1), Index(40), castle::unlimited}) {
            Random random(++seed);
            const Index longest = shape.heads > 10 ? 64 : 97;
            for (const Index length : {random.integer(1, 34), random.integer(60, longest)}) {
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", ", words_of(shape), ", window ", window));
                expect_sums_of_lone_heads(Case<T>(seed, length, shape), {.lookahead_window = window});
                if (this->HasFailure()) return;
            }
        }
    }
}

TYPED_TEST(GroupedBackward, IsTheSumOfTheLoneHeadsWithoutPartsOfTheScores) {
    using T = TypeParam;
    for (const castle::Shape& shape : grouped_shapes(4, 3)) {
        for (const Index window : {Index(20), castle::unlimited}) {
            for (const castle::Options& options : partial_scores(window)) {
                SCOPED_TRACE(describe(words_of(shape), ", window ", window, ", SiLU ", options.silu, ", causal keys ",
                                      options.causal_keys));
                expect_sums_of_lone_heads(Case<T>(5050, 70, shape), options);
            }
        }
    }
}

// What backward.hpp states of a gradient's error, relative to the gradient.
template <class T>
double precision_bound(Index length, Index window) {
    return (32 + static_cast<double>(std::min(window, length)) / 8) * unit_roundoff<T>;
}

// Both are within what is stated of the exact gradients.
TYPED_TEST(GroupedBackward, IsTheSumOfTheLoneHeadsAcrossSpans) {
    using T = TypeParam;
    const Index length = 600;
    for (const castle::Shape& shape : {castle::Shape{.d = 8, .dv = 5, .heads = 4, .kv_heads = 2},
                                       castle::Shape{.d = 7, .dv = 8, .heads = 3, .kv_heads = 1}}) {
        for (const Index window : {Index(0), Index(90), castle::unlimited}) {
            SCOPED_TRACE(describe(words_of(shape), ", window ", window));
            const castle::Options options{.lookahead_window = window};
            const Case<T> c(5100, length, shape);
            const castle::Gradient<T> ours = c.gradient(options);
            castle::Gradient<T> sum(length, shape);
            std::array<double, 6> norms{};
            for (std::size_t m = 0; m < 6; ++m) {
                all_of(sum)[m]->setZero();
                norms[m] = static_cast<double>(all_of(ours)[m]->norm());
            }
            for (Index h = 0; h < shape.heads; ++h) {
                const castle::Gradient<T> lone =
                    run_backward(c.heads.input().head(shape, h), output_of_head(c.d_out, shape, h), options);
                for (std::size_t m = 0; m < 6; ++m) {
                    const HeadColumns columns = columns_of(shape, m, h);
                    all_of(sum)[m]->middleCols(columns.first, columns.count) += *all_of(lone)[m];
                    norms[m] += static_cast<double>(all_of(lone)[m]->norm());
                }
                EXPECT_TRUE(same_bits(Matrix<T>(ours.causal.q.middleCols(h * shape.d, shape.d)), lone.causal.q));
            }
            for (std::size_t m = 1; m < 6; ++m) {
                const Matrix<T> difference = *all_of(ours)[m] - *all_of(sum)[m];
                EXPECT_LE(static_cast<double>(difference.norm()), precision_bound<T>(length, window) * norms[m])
                    << input_names[m];
            }
        }
    }
}

template <class T>
void expect_gradients(std::uint64_t seed, Index length, const castle::Shape& shape, const castle::Options& options) {
    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", ", words_of(shape), ", window ", options.lookahead_window,
                          ", SiLU ", options.silu, ", causal keys ", options.causal_keys));
    const Case<T> c(seed, length, shape);
    const oracle::Settings settings = oracle_settings(shape.d, options);
    const auto by_oracle = [&]<class S>(S, oracle::Terms terms) {
        return oracle_backward<S>(c.heads, shape, c.d_out, settings, terms);
    };
    const oracle::Gradient<Exact<T>> exact = by_oracle(Exact<T>(), oracle::Terms::as_they_are);
    const oracle::Gradient<Exact<T>> magnitude = by_oracle(Exact<T>(), oracle::Terms::absolute);
    const oracle::Gradient<T> plain = by_oracle(T(), oracle::Terms::as_they_are);
    const castle::Gradient<T> ours = c.gradient(options);
    for (std::size_t m = 0; m < 6; ++m) {
        EXPECT_TRUE(
            gradient_as_precise_as_plain(*all_of(exact)[m], *all_of(plain)[m], *all_of(magnitude)[m], *all_of(ours)[m]))
            << input_names[m];
    }
}

TYPED_TEST(GroupedBackward, MatchesOracle) {
    std::uint64_t seed = 5200;
    for (const castle::Shape& shape : grouped_shapes(5, 3)) {
        for (const Index window : {Index(0), Index(9), castle::unlimited}) {
            for (const Index length : {1, 2, 33, 66}) {
                expect_gradients<TypeParam>(++seed, length, shape, {.lookahead_window = window});
            }
        }
    }
}

TYPED_TEST(GroupedBackward, MatchesOracleWithoutPartsOfTheScores) {
    for (const castle::Options& options : partial_scores(9)) {
        expect_gradients<TypeParam>(5250, 40, {.d = 4, .dv = 6, .heads = 4, .kv_heads = 2}, options);
    }
}

TYPED_TEST(GroupedBackward, HasTheSameBitsOnEveryExecutor) {
    using T = TypeParam;
    ThreadPool two(2), four(4);
    for (const castle::Shape& shape : {castle::Shape{.d = 5, .dv = 3, .heads = 4, .kv_heads = 2},
                                       castle::Shape{.d = 4, .dv = 7, .heads = 5, .kv_heads = 1}}) {
        for (const Index window : {Index(0), Index(77), castle::unlimited}) {
            if (shape.kv_heads == 1 && window != 77) continue;
            SCOPED_TRACE(describe(words_of(shape), ", window ", window));
            const Case<T> c(5300, 520, shape);
            const castle::Gradient<T> serial = c.gradient({.lookahead_window = window});
            const Matrix<T> out = run_parallel(shape, c.heads.input(), {.lookahead_window = window});
            for (const castle::Executor& executor :
                 {reversed_executor(), shuffled_executor(1), two.executor(), four.executor()}) {
                expect_same_bits(serial, c.gradient({.lookahead_window = window, .executor = executor}));
                // With the calls, and not with the options.
                castle::Workspace<T> workspace(shape, {.lookahead_window = window});
                EXPECT_TRUE(same_bits(out, written<T>(520, out.cols(), [&](castle::MatrixView<T> view) {
                                          castle::forward(workspace, c.heads.input(), view, executor);
                                      })));
                expect_same_bits(serial, run_backward(workspace, c.heads.input(), c.d_out, executor));
            }
        }
    }
}

TYPED_TEST(GroupedBackward, TakesViewsWithinOneMatrixAndAUsedWorkspace) {
    using T = TypeParam;
    const castle::Shape shape{.d = 5, .dv = 3, .heads = 6, .kv_heads = 2};
    castle::Workspace<T> workspace(shape, {.lookahead_window = 50});
    for (const Index length : {200, 33, 0, 1, 199}) {
        SCOPED_TRACE(length);
        Case<T> c(5350, length, shape);
        const PackedHead<T> packed(c.heads);
        const castle::Gradient<T> expected = c.gradient({.lookahead_window = 50});
        const Matrix<T> out = written<T>(length, shape.heads * shape.dv, [&](castle::MatrixView<T> view) {
            castle::forward(workspace, packed.input(), view);
        });
        EXPECT_TRUE(same_bits(out, castle::parallel(shape, packed.input(), {.lookahead_window = 50})));
        EXPECT_EQ(workspace.size(), length);
        expect_same_bits(run_backward(workspace, packed.input(), c.d_out), expected);
        EXPECT_EQ(workspace.size(), 0);
        if (length == 0) continue;  // an input without rows is one without lookahead
        expect_same_bits(castle::backward(shape, packed.input(), c.d_out, {.lookahead_window = 50}), expected);
    }
}

TYPED_TEST(GroupedBackward, OfAWindowOfZeroIsThatOfStandardAttentionWithOrWithoutLookaheadInputs) {
    using T = TypeParam;
    const castle::Options options{.lookahead_window = 0};
    for (const castle::Shape& shape : grouped_shapes(5, 3)) {
        SCOPED_TRACE(words_of(shape));
        Case<T> c(5400, 150, shape);
        const castle::Gradient<T> causal = run_backward(shape, c.heads.causal_input(), c.d_out, options);
        EXPECT_EQ(causal.lookahead.q.size(), 0);
        const castle::Gradient<T> returned = castle::backward(shape, c.heads.causal_input(), c.d_out, options);
        expect_same_bits(returned, causal);
        for (Matrix<T>* m : {&c.heads.qu, &c.heads.ku, &c.heads.vu}) {
            m->setConstant(std::numeric_limits<T>::quiet_NaN());
        }
        const castle::Gradient<T> full = c.gradient(options);
        for (std::size_t m = 0; m < 3; ++m) {
            EXPECT_TRUE(same_bits(*all_of(full)[m], *all_of(causal)[m])) << input_names[m];
        }
        for (std::size_t m = 3; m < 6; ++m) EXPECT_EQ(all_of(full)[m]->cwiseAbs().maxCoeff(), 0) << input_names[m];
    }
}

// One bad number in an input, or in d_out, reaches what depends on it by the definition, and nothing else. The
// definition differentiated by hand, head by head, says what depends on it.
template <class T>
void expect_poison(std::uint64_t seed, Index length, const castle::Shape& shape, const castle::Options& options,
                   const std::vector<Index>& tokens) {
    constexpr T nan = std::numeric_limits<T>::quiet_NaN();
    Case<T> c(seed, length, shape);
    const oracle::Settings settings = oracle_settings(shape.d, options);
    const castle::Gradient<T> clean = c.gradient(options);
    std::vector<Matrix<T>*> inputs;
    for (Matrix<T>* m : c.heads.all()) inputs.push_back(m);
    inputs.push_back(&c.d_out);
    Random random(seed);
    for (std::size_t input = 0; input < inputs.size(); ++input) {
        for (const Index t : tokens) {
            const Index column = random.integer(0, inputs[input]->cols() - 1);
            T& number = (*inputs[input])(t, column);
            const T before = number;
            number = nan;
            const oracle::Gradient<double> depends = oracle_backward<double>(c.heads, shape, c.d_out, settings);
            for (const T poison : {nan, std::numeric_limits<T>::infinity()}) {
                SCOPED_TRACE(describe(poison, " in (", t, ", ", column, ") of ",
                                      input < 6 ? input_names[input] : "d_out", ", ", words_of(shape), ", window ",
                                      options.lookahead_window));
                number = poison;
                const castle::Gradient<T> g = c.gradient(options);
                for (std::size_t m = 0; m < 6; ++m) {
                    const Matrix<T>&ours = *all_of(g)[m], &healthy = *all_of(clean)[m];
                    const double size = static_cast<double>(healthy.cwiseAbs().maxCoeff());
                    for (Index j = 0; j < ours.cols(); ++j) {
                        // Queries before a bad lookahead key or value of theirs need U as it was before it, which is
                        // then summed up and not recovered by subtraction, and so is rounded otherwise.
                        const bool restored = m == 0 && input >= 3 && input < 6 && t > 0 &&
                                              columns_of(shape, input, j / shape.d).contain(column);
                        const double slack = restored ? most_roundings_backward * unit_roundoff<T> * size : 0;
                        for (Index i = 0; i < ours.rows(); ++i) {
                            if (std::isnan((*all_of(depends)[m])(i, j))) {
                                ASSERT_TRUE(!std::isnan(poison) || std::isnan(ours(i, j)))
                                    << input_names[m] << "(" << i << ", " << j << ") is " << ours(i, j);
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
            number = before;
        }
    }
}

TYPED_TEST(GroupedBackward, PoisonReachesWhatDependsOnItAlone) {
    for (const Index window : {Index(0), Index(5), castle::unlimited}) {
        expect_poison<TypeParam>(5500, 70, {.d = 2, .dv = 1, .heads = 4, .kv_heads = 2}, {.lookahead_window = window},
                                 {0, 1, 31, 32, 64, 69});
        expect_poison<TypeParam>(5501, 40, {.d = 1, .dv = 2, .heads = 3, .kv_heads = 1}, {.lookahead_window = window},
                                 {0, 31, 32, 39});
    }
}

// --- errors
// -----------------------------------------------------------------------------------------------------------

TYPED_TEST(GroupedBackward, NamesTheArgumentThatDoesNotFitAndChangesNothing) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 5, .heads = 4, .kv_heads = 2};
    const Index rows = 40, cols = shape.heads * shape.dv;
    const Case<T> c(5600, rows, shape);
    const castle::Input<T> input = c.heads.input();
    castle::Workspace<T> workspace(shape);
    Matrix<T> out(rows, cols);
    const auto expect_rejected = [&](const std::string& part, const auto& call) {
        const std::string sentence = message<std::invalid_argument>(call);
        EXPECT_EQ(sentence.rfind("castle::backward: ", 0), 0U) << sentence;
        EXPECT_NE(sentence.find(part), std::string::npos) << "'" << part << "' is not in: " << sentence;
        EXPECT_EQ(sentence.find('\n'), std::string::npos) << sentence;
    };
    const auto run = [&](const castle::Input<T>& in, castle::ConstMatrixView<T> d_out,
                         const castle::GradientView<T>& gradient) { castle::backward(workspace, in, d_out, gradient); };
    castle::Gradient<T> gradient(rows, shape);
    for (Matrix<T>* m : all_of(gradient)) m->setConstant(sentinel<T>());
    expect_rejected("no forward pass", [&] { run(input, c.d_out, gradient.view()); });
    castle::forward(workspace, input, out);

    // A row and a column more than are right.
    Matrix<T> spare = Matrix<T>::Constant(rows + 1, cols + 1, sentinel<T>());
    const castle::MatrixView<T> memory = spare;
    const auto off = [&](Index right_cols, Index more_rows, Index more_cols) {
        return memory.middle_rows(0, rows + more_rows).middle_cols(0, right_cols + more_cols);
    };
    for (const std::array<Index, 2>& more : std::vector<std::array<Index, 2>>{{1, 0}, {-1, 0}, {0, 1}, {0, -1}}) {
        const Index more_rows = more[0], more_cols = more[1];
        SCOPED_TRACE(describe(more_rows, " rows and ", more_cols, " columns more"));
        expect_rejected("d_out is ", [&] { run(input, off(cols, more_rows, more_cols), gradient.view()); });
        for (std::size_t m = 0; m < 6; ++m) {
            castle::GradientView<T> view = gradient.view();
            const std::array<castle::MatrixView<T>*, 6> views{&view.causal.q,    &view.causal.k,    &view.causal.v,
                                                              &view.lookahead.q, &view.lookahead.k, &view.lookahead.v};
            *views[m] = off(views[m]->cols(), more_rows, more_cols);
            expect_rejected(std::string("gradient.") + input_names[m] + " is ", [&] { run(input, c.d_out, view); });
            castle::Input<T> in = input;
            const std::array<castle::ConstMatrixView<T>*, 6> inputs{&in.causal.q,    &in.causal.k,    &in.causal.v,
                                                                    &in.lookahead.q, &in.lookahead.k, &in.lookahead.v};
            *inputs[m] = off(inputs[m]->cols(), more_rows, more_cols);
            // The rows of causal.q are the number of tokens.
            expect_rejected(m == 0 && more_rows != 0 ? "input" : std::string("input.") + input_names[m] + " is ",
                            [&] { run(in, c.d_out, gradient.view()); });
        }
    }
    castle::GradientView<T> without_lookahead = gradient.view();
    without_lookahead.lookahead = {};
    expect_rejected("gradient.lookahead.q is ", [&] { run(input, c.d_out, without_lookahead); });
    expect_rejected("input.lookahead.q is ", [&] { run(c.heads.causal_input(), c.d_out, gradient.view()); });
    expect_rejected("tokens", [&] {
        static_cast<void>(castle::backward(workspace, c.heads.first_tokens(rows - 1), c.d_out.topRows(rows - 1)));
    });

    // None of it has changed anything.
    for (const Matrix<T>* m : all_of(gradient)) {
        EXPECT_TRUE(same_bits(*m, Matrix<T>(Matrix<T>::Constant(m->rows(), m->cols(), sentinel<T>()))));
    }
    EXPECT_EQ(workspace.size(), rows);
    expect_same_bits(run_backward(workspace, input, c.d_out), c.gradient({}));
    expect_rejected("no forward pass", [&] { run(input, c.d_out, gradient.view()); });
}

TYPED_TEST(GroupedBackward, OfNoTokensIsEmpty) {
    using T = TypeParam;
    const castle::Shape shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2};
    const Head<T> heads(0, shape);
    const Matrix<T> d_out(0, 8);
    const castle::Gradient<T> g = castle::backward(shape, heads.input(), d_out);
    for (std::size_t m = 0; m < 6; ++m) {
        EXPECT_EQ(all_of(g)[m]->rows(), 0) << input_names[m];
        if (m < 3) {
            EXPECT_EQ(all_of(g)[m]->cols(), m == 0 ? 12 : m == 1 ? 6 : 4) << input_names[m];
        }
    }
}

}  // namespace
