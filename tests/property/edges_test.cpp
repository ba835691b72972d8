// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cfenv>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/poison.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Empty sequences, logits of any size, and poison: a bad element in a token must reach everything that depends on it
// and nothing else.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
struct Form {
    const char* name;
    std::function<Matrix<T>(const castle::Input<T>&, const castle::Options&)> run;
};

template <class T>
std::vector<Form<T>> all_forms() {
    using Head = castle::Input<T>;
    using Options = castle::Options;
    return {
        {"parallel", [](const Head& h, const Options& o) { return run_parallel(h, o); }},
        {"recurrent", [](const Head& h, const Options& o) { return run_recurrent(h, o); }},
        {"dense", [](const Head& h, const Options& o) { return castle::dense::output(h, o); }},
        {"extend one by one",
         [](const Head& h, const Options& o) { return run_in_chunks(h, one_by_one(h.causal.q.rows()), o).output; }},
        {"extend in chunks of 23",
         [](const Head& h, const Options& o) {
             std::vector<Index> chunks;
             for (Index left = h.causal.q.rows(); left > 0; left -= 23) chunks.push_back(std::min<Index>(left, 23));
             return run_in_chunks(h, chunks, o).output;
         }},
    };
}

template <class T>
class Edges : public ::testing::Test {};
TYPED_TEST_SUITE(Edges, support::Scalars);

TYPED_TEST(Edges, NoTokensGiveAnEmptyResult) {
    using T = TypeParam;
    const Head<T> head({.length = 0, .d = 3, .dv = 5});
    for (const Index window : {Index(0), Index(2), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window};
        for (const Form<T>& form : all_forms<T>()) {
            SCOPED_TRACE(form.name);
            const Matrix<T> out = form.run(head.input(), options);
            EXPECT_EQ(out.rows(), 0);
            EXPECT_EQ(out.cols(), 5);
        }
        EXPECT_EQ(castle::dense::gates(head.input(), options).size(), 0);
        EXPECT_EQ(castle::dense::weights(head.input(), options).size(), 0);
        EXPECT_EQ(castle::dense::lookahead_keys(head.input(), 0, options).rows(), 0);
    }
    EXPECT_EQ(castle::causal_attention(head.qc, head.kc, head.vc).rows(), 0);
    EXPECT_EQ(castle::parallel(head.causal_input(), {.lookahead_window = 0}).rows(), 0);
    const castle::Shape shape{.d = 3, .dv = 5, .heads = 4, .kv_heads = 2};
    const Matrix<T> side_by_side = castle::parallel(shape, Head<T>(0, shape).input());
    EXPECT_EQ(side_by_side.rows(), 0);
    EXPECT_EQ(side_by_side.cols(), 20);

    castle::UqKvCache<T> cache({.d = 3, .dv = 5});
    EXPECT_EQ(castle::extend(cache, head.input()).rows(), 0);
    EXPECT_EQ(cache.size(), 0);
    EXPECT_EQ(cache.lookahead_keys().rows(), 0);
    EXPECT_EQ(cache.lookahead_keys().cols(), 3);
}

// The output is a mean of values, so it lies between the least and the largest of them but for the roundings of the
// weights' sum and of the products, whatever the scores are.
template <class T>
void expect_means_of_values(const Matrix<T>& out, const Matrix<T>& values) {
    for (Index t = 0; t < out.rows(); ++t) {
        // As in error_bounds: keys, and steps of a panel each; every weight is positive, so this is relative to the
        // largest of the values.
        const double slack =
            2 * gamma<T>(static_cast<double>(t + 1) + (3 + static_cast<double>(t + 1) / 64) * (exp_roundings + 1));
        for (Index c = 0; c < out.cols(); ++c) {
            const auto seen = values.col(c).head(t + 1);
            const double size = static_cast<double>(seen.cwiseAbs().maxCoeff()) + smallest_normal<T>;
            const double x = static_cast<double>(out(t, c));
            ASSERT_TRUE(std::isfinite(x)) << "(" << t << ", " << c << ") is " << x;
            ASSERT_LE(x, static_cast<double>(seen.maxCoeff()) + slack * size) << "(" << t << ", " << c << ")";
            ASSERT_GE(x, static_cast<double>(seen.minCoeff()) - slack * size) << "(" << t << ", " << c << ")";
        }
    }
}

TYPED_TEST(Edges, OutputsAreMeansOfValuesForEveryFill) {
    using T = TypeParam;
    for (const Fill fill : all_fills) {
        for (const Index window : {Index(0), Index(5), castle::unlimited}) {
            const std::uint64_t seed = 11;
            Random random(seed);
            const Sizes sizes{.length = 150, .d = 9, .dv = 6};
            const Head<T> head = filled_head<T>(fill, random, sizes);
            for (const Form<T>& form : all_forms<T>()) {
                SCOPED_TRACE(describe(form.name, ", ", fill, ", seed ", seed, ", ", sizes, ", window ", window));
                expect_means_of_values(form.run(head.input(), {.lookahead_window = window}), head.vc);
                if (this->HasFatalFailure()) return;
            }
        }
    }
}

TYPED_TEST(Edges, LogitsOfAnyFiniteSizeGiveFiniteOutput) {
    using T = TypeParam;
    // Sums of d products of this size, times the scale, are still finite; so are they times the number of tokens.
    const double huge = std::sqrt(static_cast<double>(std::numeric_limits<T>::max()) / (9.0 * 150.0 * 8.0));
    for (const double size : {1e3, 1e6, 1e12, huge}) {
        for (const Index window : {Index(0), Index(5), castle::unlimited}) {
            const std::uint64_t seed = 12;
            Random random(seed);
            const Sizes sizes{.length = 150, .d = 9, .dv = 6};
            Head<T> head = random_head<T>(random, sizes);
            for (Matrix<T>* m : {&head.qc, &head.kc, &head.qu, &head.ku, &head.vu}) {
                for (Index i = 0; i < m->size(); ++i) {
                    m->data()[i] = static_cast<T>((random.integer(0, 1) == 0 ? -size : size) * random.uniform());
                }
            }
            for (const Form<T>& form : all_forms<T>()) {
                SCOPED_TRACE(describe(form.name, ", size ", size, ", seed ", seed, ", ", sizes, ", window ", window));
                expect_means_of_values(form.run(head.input(), {.lookahead_window = window}), head.vc);
                if (this->HasFatalFailure()) return;
            }
        }
    }
}

// Programs may trap overflow, and ordinary inputs raise none, in positions that are masked neither.
TYPED_TEST(Edges, OrdinaryInputsOverflowNowhere) {
    using T = TypeParam;
    for (const double size : {1.0, 30.0}) {
        Random random(13);
        Head<T> head = random_head<T>(random, {.length = 150, .d = 9, .dv = 6});
        for (Matrix<T>* m : head.all()) *m *= T(size);
        for (const Index window : {Index(0), Index(5), castle::unlimited}) {
            for (const Form<T>& form : all_forms<T>()) {
                SCOPED_TRACE(describe(form.name, ", size ", size, ", window ", window));
                std::feclearexcept(FE_ALL_EXCEPT);
                const Matrix<T> out = form.run(head.input(), {.lookahead_window = window});
                EXPECT_FALSE(std::fetestexcept(FE_OVERFLOW));
                EXPECT_TRUE(out.allFinite());
            }
        }
    }
}

// One bad element at row t of input number `input`.
struct Poison {
    std::size_t input;
    Index t;
    Index column;
};

enum Input : std::size_t { causal_q, causal_k, causal_v, lookahead_q, lookahead_k, lookahead_v };

// What a NaN reaches, from the definition alone.
struct Reach {
    Poison poison;
    castle::Index window;

    bool output(Index row, Index column) const {
        switch (poison.input) {
            case causal_q:
                return row == poison.t;
            case causal_k:
                return row >= poison.t;
            case causal_v:
                return row >= poison.t && column == poison.column;
            // Token t's own gates, which the token after it opens.
            case lookahead_q:
                return window > 0 && row > poison.t;
            // The lookahead keys of the tokens that absorb token t, if there are any.
            default:
                return window > 0 && poison.t > 0 && row >= poison.t;
        }
    }
    bool lookahead_key(Index s, Index column, Index length) const {
        const bool absorbs = s < poison.t && poison.t - s <= window;
        switch (poison.input) {
            case lookahead_q:
                return window > 0 && s == poison.t && s + 1 < length;
            case lookahead_k:
                return absorbs;
            case lookahead_v:
                return absorbs && column == poison.column;
            default:
                return false;
        }
    }
};

template <class T>
void check_poison(const std::vector<Form<T>>& forms, std::uint64_t seed, Sizes sizes, const std::vector<Index>& tokens,
                  const std::vector<Index>& windows) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    for (const Index window : windows) {
        const castle::Options options{.lookahead_window = window};
        Random random(seed);
        Head<T> head = random_head<T>(random, sizes);
        std::vector<Matrix<T>> clean;
        for (const Form<T>& form : forms) clean.push_back(form.run(head.input(), options));
        const Matrix<T> clean_keys = run_at_once(head.input(), options).lookahead_keys;
        const Matrix<T> clean_dense_keys = castle::dense::lookahead_keys(head.input(), sizes.length, options);

        for (const Index t : tokens) {
            for (std::size_t input = 0; input < 6; ++input) {
                Matrix<T>& m = *head.all()[input];
                const Index column = random.integer(0, m.cols() - 1);
                const T original = m(t, column);
                for (const T value : {std::numeric_limits<T>::quiet_NaN(), infinity, -infinity}) {
                    const Reach reach{.poison = {.input = input, .t = t, .column = column}, .window = window};
                    m(t, column) = value;
                    for (std::size_t i = 0; i < forms.size(); ++i) {
                        SCOPED_TRACE(describe(forms[i].name, ", ", value, " in ", input_names[input], "(", t, ", ",
                                              column, "), seed ", seed, ", ", sizes, ", window ", window));
                        expect_poison(clean[i], forms[i].run(head.input(), options), std::isnan(value),
                                      [&](Index row, Index c) { return reach.output(row, c); });
                        if (::testing::Test::HasFatalFailure()) return;
                    }
                    SCOPED_TRACE(describe("lookahead keys, ", value, " in ", input_names[input], "(", t, ", ", column,
                                          "), seed ", seed, ", ", sizes, ", window ", window));
                    const auto reaches = [&](Index s, Index c) { return reach.lookahead_key(s, c, sizes.length); };
                    const bool is_nan = std::isnan(value);
                    expect_poison(clean_keys, run_at_once(head.input(), options).lookahead_keys, is_nan, reaches);
                    expect_poison(clean_keys,
                                  run_in_chunks(head.input(), one_by_one(sizes.length), options).lookahead_keys, is_nan,
                                  reaches);
                    expect_poison(clean_dense_keys, castle::dense::lookahead_keys(head.input(), sizes.length, options),
                                  is_nan, reaches);
                    if (::testing::Test::HasFatalFailure()) return;
                }
                m(t, column) = original;
            }
        }
    }
}

TYPED_TEST(Edges, PoisonReachesWhatDependsOnItAndNothingElse) {
    using T = TypeParam;
    check_poison<T>(all_forms<T>(), 21, {.length = 100, .d = 5, .dv = 4}, {0, 1, 31, 32, 40, 63, 64, 65, 98, 99},
                    {0, 1, 3, 33, castle::unlimited});
}

TYPED_TEST(Edges, PoisonAroundASpanBoundaryReachesWhatDependsOnItAndNothingElse) {
    using T = TypeParam;
    check_poison<T>({all_forms<T>().front()}, 22, {.length = 516, .d = 2, .dv = 1}, {0, 511, 512},
                    {2, castle::unlimited});
}

}  // namespace
