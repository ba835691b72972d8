// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/many_heads.hpp"
#include "support/mask_oracle.hpp"
#include "support/masks.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// Masks and score terms in every form: what a row does not see is left out.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;

template <class T>
class Masked : public ::testing::Test {};
TYPED_TEST_SUITE(Masked, support::Scalars);

constexpr std::array<Index, 3> windows{0, 5, castle::unlimited};

/// All outputs of one call, poisoned before it.
template <class T>
struct Outputs {
    Matrix<T> out, log_sum_exp, mass;

    Outputs(Index rows, const castle::Shape& shape)
        : out(poisoned(rows, shape.heads * shape.dv)),
          log_sum_exp(poisoned(rows, shape.heads)),
          mass(poisoned(rows, shape.heads)) {}

    castle::Output<T> to(const castle::Masks& mass_over, Index first, Index count) {
        return {.out = castle::MatrixView<T>(out).middle_rows(first, count),
                .log_sum_exp = castle::MatrixView<T>(log_sum_exp).middle_rows(first, count),
                .mass = castle::MatrixView<T>(mass).middle_rows(first, count),
                .mass_over = mass_over};
    }
    castle::Output<T> to(const castle::Masks& mass_over) { return to(mass_over, 0, out.rows()); }

  private:
    static Matrix<T> poisoned(Index rows, Index cols) {
        return Matrix<T>::Constant(rows, cols, std::numeric_limits<T>::quiet_NaN());
    }
};

template <class T>
void expect_same(const Outputs<T>& a, const Outputs<T>& b) {
    EXPECT_TRUE(same_bits(a.out, b.out)) << "of the outputs";
    EXPECT_TRUE(same_bits(a.log_sum_exp, b.log_sum_exp)) << "of the log-sum-exps";
    EXPECT_TRUE(same_bits(a.mass, b.mass)) << "of the masses";
}

oracle::MaskedSettings oracle_settings(const castle::Shape& shape, const castle::Options& options, Index head,
                                       const std::function<bool(Index, Index)>& sees) {
    const auto row = [&](const Matrix<double>& table) {
        std::vector<double> values;
        for (Index k = 0; k < table.cols(); ++k) values.push_back(table(table.rows() == 1 ? 0 : head, k));
        return values;
    };
    oracle::MaskedSettings settings{.base = support::oracle_settings(shape.d, options),
                                    .sees = sees,
                                    .mass_over = in_mass,
                                    .factor = row(options.terms.factor),
                                    .bias = row(options.terms.bias),
                                    .cap = options.terms.soft_cap};
    if (!options.terms.sinks.empty()) settings.sink = options.terms.sinks[std::size_t(head)];
    return settings;
}

// The error of a score is that of sums of n d products of numbers of size 1, n tokens absorbed at most, in all orders;
// a weight is off by as much relatively, and outputs are averages. Scores here are of size sqrt(n), sums of absolute
// terms of size n sqrt(d); tables and cap have slopes below 2.
double tolerance(double u, Index length, Index d) {
    const double n = double(length);
    return 8 * u * (n + double(d) + 64) * std::sqrt(double(d)) * (4 + std::sqrt(n));
}

template <class T>
void expect_near(const Matrix<T>& actual, const std::function<double(Index, Index)>& expected, double bound,
                 const char* what) {
    for (Index i = 0; i < actual.rows(); ++i) {
        for (Index j = 0; j < actual.cols(); ++j) {
            const double x = static_cast<double>(actual(i, j)), y = expected(i, j);
            ASSERT_TRUE(x == y || std::abs(x - y) <= bound)
                << what << " (" << i << ", " << j << ") is " << x << " but should be " << y << ", within " << bound;
        }
    }
}

template <class T>
void expect_oracle(const castle::Shape& shape, const Head<T>& heads, const castle::Options& options,
                   const std::function<bool(Index, Index)>& sees, const Outputs<T>& outputs) {
    const double bound = tolerance(unit_roundoff<T>, heads.qc.rows(), shape.d);
    for (Index h = 0; h < shape.heads; ++h) {
        SCOPED_TRACE(describe("head ", h));
        const oracle::MaskedResult r =
            oracle::evaluate(oracle_head(lone_head(heads, shape, h)), oracle_settings(shape, options, h, sees));
        expect_near<T>(
            output_of_head(outputs.out, shape, h), [&](Index i, Index j) { return r.output(i, j); }, 4 * bound,
            "output");
        expect_near<T>(
            outputs.log_sum_exp.col(h), [&](Index i, Index) { return r.log_sum_exp[std::size_t(i)]; }, bound,
            "log-sum-exp");
        expect_near<T>(
            outputs.mass.col(h), [&](Index i, Index) { return r.mass[std::size_t(i)]; }, bound, "mass");
    }
}

// Every length up to more than a block, where one head has to do, and some beyond.
TYPED_TEST(Masked, MatchesTheOracle) {
    using T = TypeParam;
    std::uint64_t seed = 15000;
    std::vector<Index> lengths(40);
    std::iota(lengths.begin(), lengths.end(), 1);
    lengths.insert(lengths.end(), {64, 65, 100, 150, 550});
    for (const Index length : lengths) {
        for (const Index window : windows) {
            Random random(++seed);
            const bool is_grouped = length <= 200 && (length > 40 || length % 8 == 1);
            const castle::Shape shape =
                is_grouped ? castle::Shape{.d = 3, .dv = 2, .heads = 4, .kv_heads = 2} : castle::Shape{.d = 3, .dv = 2};
            const Head<T> heads = random_heads<T>(random, length, shape);
            for (const bool with_terms : {false, true}) {
                castle::Options options{.lookahead_window = window};
                if (with_terms) options.terms = some_terms(random, shape.heads, length);
                for (const NamedMask& named : all_masks(random, length)) {
                    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name,
                                          with_terms ? ", with terms" : ""));
                    Outputs<T> outputs(length, shape);
                    castle::parallel(shape, heads.input(), outputs.to(some_mass()), options, named.mask);
                    expect_oracle(shape, heads, options, named.sees, outputs);
                    if (this->HasFailure()) return;
                }
            }
        }
    }
}

TYPED_TEST(Masked, HasTheSameBitsInEverySplitAndOnEveryExecutor) {
    using T = TypeParam;
    ThreadPool threads(3);
    std::uint64_t seed = 15100;
    for (const Index length : {40, 150, 700}) {
        for (const Index window : windows) {
            Random random(++seed);
            const castle::Shape shape{.d = 5, .dv = 3, .heads = 2, .kv_heads = 1};
            const Head<T> heads = random_heads<T>(random, length, shape);
            const castle::Options options{.lookahead_window = window, .terms = some_terms(random, shape.heads, length)};
            for (const NamedMask& named : all_masks(random, length)) {
                SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name));
                // Documents at the top run as packed sequences, whose sums begin anew.
                const Mask mask = named.mask & masks::full();
                bool looks_ahead = false;
                for (Index t = 0; t < length; ++t) {
                    for (Index s = t + 1; s < length; ++s) looks_ahead = looks_ahead || named.sees(t, s);
                }
                Outputs<T> expected(length, shape);
                castle::parallel(shape, heads.input(), expected.to(some_mass()), options, mask);
                {
                    Outputs<T> outputs(length, shape);
                    castle::Options with_threads = options;
                    with_threads.executor = threads.executor();
                    castle::parallel(shape, heads.input(), outputs.to(some_mass()), with_threads, mask);
                    expect_same(outputs, expected);
                }
                Matrix<T> keys;
                for (int run = 0; run < 3; ++run) {
                    const std::vector<Index> split = looks_ahead ? std::vector<Index>{length}
                                                     : run == 0  ? one_by_one(length)
                                                                 : random_split(random, length);
                    castle::UqKvCache<T> cache(shape, options);
                    Outputs<T> outputs(length, shape);
                    Index first = 0;
                    for (const Index count : split) {
                        castle::extend(cache, heads.input().tokens(first, count), outputs.to(some_mass(), first, count),
                                       mask, run == 2 ? threads.executor() : castle::Executor());
                        first += count;
                    }
                    expect_same(outputs, expected);
                    if (run == 0) keys = cache.lookahead_keys();
                    EXPECT_TRUE(same_bits(cache.lookahead_keys(), keys)) << "of the lookahead keys";
                    if (this->HasFailure()) return;
                }
            }
        }
    }
}

}  // namespace
