// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradients.hpp"
#include "support/masks.hpp"
#include "support/poison.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// What stands behind a mask reaches nothing, in both passes.
namespace {

using castle::Index;
using castle::Mask;
using castle::Matrix;
using namespace support;
namespace masks = castle::masks;

template <class T>
class MaskPoison : public ::testing::Test {};
TYPED_TEST_SUITE(MaskPoison, support::Scalars);

constexpr std::array<Index, 3> windows{0, 7, castle::unlimited};

/// Which rows token j's part of input m reaches: itself, those that see it, or those that see a key that has absorbed
/// it.
std::function<bool(Index, Index)> reach_of(std::size_t m, const std::function<bool(Index, Index)>& sees, Index window,
                                           Index length) {
    const auto absorbs = [=](Index s, Index t) { return s < t && t - s <= window && sees(t, s); };
    switch (m) {
        case 0:
            return [](Index i, Index j) { return i == j; };
        case 1:
        case 2:
            return sees;
        case 3:
            return [=](Index i, Index j) {
                for (Index t = j + 1; sees(i, j) && t <= i; ++t) {
                    if (absorbs(j, t)) return true;
                }
                return false;
            };
        default:
            return [=](Index i, Index j) {
                for (Index s = 0; s < length && j <= i; ++s) {
                    if (sees(i, s) && absorbs(s, j)) return true;
                }
                return false;
            };
    }
}

TYPED_TEST(MaskPoison, ReachesOnlyWhatSeesItInTheForwardPass) {
    using T = TypeParam;
    std::uint64_t seed = 16000;
    for (const Index length : {20, 90, 140}) {
        for (const Index window : windows) {
            Random random(++seed);
            const castle::Options options{.lookahead_window = window};
            const castle::Shape shape{.d = 3, .dv = 2};
            Head<T> head = random_heads<T>(random, length, shape);
            for (const NamedMask& named : all_masks(random, length)) {
                const Mask mask = named.mask & masks::full();
                const Matrix<T> clean = castle::parallel(shape, head.input(), options, mask);
                for (std::size_t m = 0; m < (window == 0 ? 3u : 6u); ++m) {
                    const Index token = random.integer(0, length - 1);
                    const T bad = random.integer(0, 1) == 0 ? std::numeric_limits<T>::quiet_NaN()
                                                            : std::numeric_limits<T>::infinity();
                    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window, ", ", named.name, ", ",
                                          input_names[m], " of token ", token, ", ", bad));
                    const auto reaches = reach_of(m, named.sees, window, length);
                    Matrix<T>& x = *head.all()[m];
                    const Matrix<T> before = x;
                    x.row(token).setConstant(bad);
                    const Matrix<T> poisoned = castle::parallel(shape, head.input(), options, mask);
                    x = before;
                    expect_poison(clean, poisoned, false, [&](Index i, Index) { return reaches(i, token); });
                    if (this->HasFatalFailure()) return;
                }
            }
        }
    }
}

// Tokens of three kinds, mixed, that see their own kind only: what one kind holds is nothing to the others.
TYPED_TEST(MaskPoison, ReachesNoGradientOfTokensThatAreNotRelated) {
    using T = TypeParam;
    using C = castle::Compute<T>;
    std::uint64_t seed = 16100;
    for (const Index length : {1, 20, 64, 100, 150, 600}) {
        for (const Index window : windows) {
            for (const bool causal : {true, false}) {
                for (const C bad : {std::numeric_limits<C>::quiet_NaN(), std::numeric_limits<C>::infinity(), C(1e30)}) {
                    Random random(++seed);
                    SCOPED_TRACE(describe("seed ", seed, ", L ", length, ", window ", window,
                                          causal ? ", causal, " : ", ", bad));
                    std::vector<Index> kind;
                    for (Index t = 0; t < length; ++t) kind.push_back(random.integer(0, 2));
                    const Mask mask = masks::packed(length, length, [&](Index t, Index s) {
                        return kind[std::size_t(t)] == kind[std::size_t(s)] && (s <= t || !causal);
                    });
                    const castle::Shape shape{.d = 3, .dv = 2, .heads = 2, .kv_heads = 1};
                    const castle::Options options{.lookahead_window = window};
                    Head<T> head = random_heads<T>(random, length, shape);
                    Matrix<C> d_out(length, shape.heads * shape.dv), d_sums(length, shape.heads);
                    fill_normal(random, d_out);
                    fill_normal(random, d_sums);
                    const auto run = [&] {
                        castle::Workspace<T> workspace(shape, options);
                        Matrix<T> out(length, shape.heads * shape.dv);
                        castle::forward(workspace, head.input(), castle::Output<T>{.out = out}, mask);
                        castle::Gradient<C> g(length, shape);
                        castle::backward(workspace, head.input(),
                                         castle::OutputGradient<C>{.out = d_out, .log_sum_exp = d_sums}, g.view());
                        return g;
                    };
                    const castle::Gradient<C> clean = run();
                    for (Index t = 0; t < length; ++t) {
                        if (kind[std::size_t(t)] != 0) continue;
                        for (Matrix<T>* m : head.all()) {
                            if (random.integer(0, 2) == 0) m->row(t).setConstant(static_cast<T>(bad));
                        }
                        if (random.integer(0, 2) == 0) d_out.row(t).setConstant(bad);
                        if (random.integer(0, 2) == 0) d_sums.row(t).setConstant(bad);
                    }
                    const castle::Gradient<C> poisoned = run();
                    for (std::size_t m = 0; m < 6; ++m) {
                        SCOPED_TRACE(input_names[m]);
                        expect_poison(*all_of(clean)[m], *all_of(poisoned)[m], false,
                                      [&](Index i, Index) { return kind[std::size_t(i)] == 0; });
                        if (this->HasFatalFailure()) return;
                    }
                }
            }
        }
    }
}

TYPED_TEST(MaskPoison, OfARowThatSeesNothingIsNone) {
    using T = TypeParam;
    Random random(16200);
    const Index length = 70;
    const castle::Shape shape{.d = 3, .dv = 2};
    const Mask mask = masks::predicate([](Index t, Index s) { return t % 2 == 0 && s <= t; }).allowing_empty_rows();
    Head<T> head = random_heads<T>(random, length, shape);
    head.qc.row(5).setConstant(std::numeric_limits<T>::quiet_NaN());
    using C = castle::Compute<T>;
    Matrix<T> out(length, 2);
    Matrix<C> sums(length, 1);
    castle::Workspace<T> workspace(shape);
    castle::forward(workspace, head.input(), castle::Output<T>{.out = out, .log_sum_exp = sums}, mask);
    Matrix<C> d_out(length, 2);
    d_out.setConstant(std::numeric_limits<C>::quiet_NaN());
    for (Index t = 0; t < length; t += 2) d_out.row(t).setOnes();
    const castle::Gradient<C> g = castle::backward(workspace, head.input(), d_out);
    for (Index t = 1; t < length; t += 2) {
        EXPECT_TRUE((out.row(t).array() == T(0)).all());
        EXPECT_EQ(sums(t, 0), -std::numeric_limits<C>::infinity());
        EXPECT_TRUE((g.causal.q.row(t).array() == 0).all());
    }
    for (const Matrix<C>* m : all_of(g)) EXPECT_TRUE(m->allFinite());
}

}  // namespace
