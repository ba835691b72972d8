// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <type_traits>
#include <utility>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/generators.hpp"
#include "support/gradients.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// What moves goes on where it has come to, also where it is moved to itself, and takes what it is assigned after it was
// moved from.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Move : public ::testing::Test {};
TYPED_TEST_SUITE(Move, support::Scalars);

// Compilers warn of it where they see it.
template <class X>
void move_to_itself(X& x) {
    X& same = x;
    x = std::move(same);
}

// Runs `go_on(x)` after `x` was moved around, `other` being another object of the same class.
template <class X, class GoOn>
void expect_moves(X x, X other, const GoOn& go_on) {
    static_assert(!std::is_copy_constructible_v<X> && !std::is_copy_assignable_v<X>);
    static_assert(std::is_nothrow_move_constructible_v<X> && std::is_nothrow_move_assignable_v<X>);
    move_to_itself(x);
    go_on(x);
    move_to_itself(x);
    X second = std::move(x);
    x = std::move(other);
    other = std::move(second);
    x = std::move(other);
    move_to_itself(x);
    go_on(x);
}

template <class T, class Cache, class Input>
void expect_cache_moves(const Input& input, Cache cache, Cache expected, Cache other) {
    Index done = 0;
    expect_moves(std::move(cache), std::move(other), [&](Cache& moved) {
        for (const Index count : {40, 30, 1, 1}) {
            EXPECT_TRUE(
                same_bits(castle::extend(moved, input(done, count)), castle::extend(expected, input(done, count))));
            done += count;
        }
        moved.rollback(10);
        expected.rollback(10);
        done -= 10;
        EXPECT_EQ(moved.size(), done);
        EXPECT_EQ(moved.bytes(), expected.bytes());
    });
}

TYPED_TEST(Move, ACacheGoesOn) {
    using T = TypeParam;
    Random random(4100);
    const castle::HeadShape shape{.d = 5, .dv = 4};
    const Head<T> head = random_head<T>(random, {.length = 200, .d = 5, .dv = 4});
    for (const Index window : {Index(0), Index(20), castle::unlimited}) {
        const castle::Options options{.lookahead_window = window, .executor = [](Index n, castle::Task task) {
                                          for (Index i = 0; i < n; ++i) task(i);
                                      }};
        const auto make = [&] { return castle::UqKvCache<T>(shape, options); };
        const auto input = [&](Index first, Index count) { return head.input().tokens(first, count); };
        expect_cache_moves<T>(input, make(), make(), castle::UqKvCache<T>({.d = 1, .dv = 1}));
    }
    const auto make = [&] { return castle::KvCache<T>(shape, {.scale = 0.3}); };
    const auto input = [&](Index first, Index count) { return head.input().tokens(first, count).causal; };
    expect_cache_moves<T>(input, make(), make(), castle::KvCache<T>({.d = 1, .dv = 1}));
}

// Forks keep what they share.
TYPED_TEST(Move, AForkAndItsOriginGoOn) {
    using T = TypeParam;
    Random random(4110);
    const Head<T> head = random_head<T>(random, {.length = 150, .d = 5, .dv = 4});
    const Outcome<T> expected = run_at_once(head.input());
    castle::UqKvCache<T> cache(shape_of(head));
    castle::extend(cache, head.first_tokens(100));
    castle::UqKvCache<T> fork = cache.fork();
    for (auto* one : {&cache, &fork}) {
        move_to_itself(*one);
        const Matrix<T> rows = castle::extend(*one, head.input().tokens(100, 50));
        EXPECT_TRUE(same_bits(rows, Matrix<T>(expected.output.bottomRows(50))));
        EXPECT_TRUE(same_bits(one->lookahead_keys(), expected.lookahead_keys));
    }
}

template <class T, class Workspace, class Input>
void expect_workspace_moves(const Input& input, const Matrix<T>& d_out, Workspace workspace, Workspace expected,
                            Workspace other) {
    expect_moves(std::move(workspace), std::move(other), [&](Workspace& moved) {
        Matrix<T> out(d_out.rows(), d_out.cols()), expected_out(d_out.rows(), d_out.cols());
        castle::forward(moved, input, out);
        castle::forward(expected, input, expected_out);
        EXPECT_TRUE(same_bits(out, expected_out));
        move_to_itself(moved);
        EXPECT_EQ(moved.size(), d_out.rows());
        EXPECT_EQ(moved.bytes(), expected.bytes());
        const auto gradient = castle::backward(moved, input, d_out);
        const auto expected_gradient = castle::backward(expected, input, d_out);
        if constexpr (std::is_same_v<Workspace, castle::Workspace<T>>) {
            for (std::size_t i = 0; i < 6; ++i) {
                EXPECT_TRUE(same_bits(*all_of(gradient)[i], *all_of(expected_gradient)[i]));
            }
        } else {
            EXPECT_TRUE(same_bits(gradient.q, expected_gradient.q));
            EXPECT_TRUE(same_bits(gradient.k, expected_gradient.k));
            EXPECT_TRUE(same_bits(gradient.v, expected_gradient.v));
        }
    });
}

TYPED_TEST(Move, AWorkspaceGoesOn) {
    using T = TypeParam;
    Random random(4120);
    const Head<T> head = random_head<T>(random, {.length = 90, .d = 5, .dv = 4});
    Matrix<T> d_out(90, 4);
    fill_normal(random, d_out);
    const auto make = [&] { return castle::Workspace<T>(shape_of(head), {.lookahead_window = 40}); };
    expect_workspace_moves(head.input(), d_out, make(), make(), castle::Workspace<T>({.d = 1, .dv = 1}));
    const auto make_causal = [&] { return castle::CausalWorkspace<T>(shape_of(head)); };
    expect_workspace_moves(head.input().causal, d_out, make_causal(), make_causal(),
                           castle::CausalWorkspace<T>({.d = 1, .dv = 1}));
}

template <class T, class Layer>
void expect_layer_moves(std::uint64_t seed) {
    Random random(seed);
    Index asked = 0;
    const castle::Executor counting = [&](Index n, castle::Task task) {
        ++asked;
        for (Index i = 0; i < n; ++i) task(i);
    };
    const castle::MultiHeadConfig config{.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    const Layer expected(config);
    Layer layer(config, {.executor = counting});
    Matrix<T> x(80, 20), d_y(80, 20);
    fill_normal(random, x);
    fill_normal(random, d_y);
    castle::MultiHeadWorkspace<T> expected_workspace = expected.make_workspace();
    castle::MultiHeadCache<T> expected_cache = expected.make_cache();
    const Matrix<T> y = expected.forward(x);

    // The parts of a layer that has not moved.
    expect_moves(layer.make_cache(), Layer({.d_model = 2, .heads = 1, .d_head = 2}).make_cache(),
                 [&](castle::MultiHeadCache<T>& cache) {
                     const Index before = cache.size();
                     const Matrix<T> rows = layer.extend(cache, x.middleRows(before, 35));
                     EXPECT_TRUE(same_bits(rows, Matrix<T>(y.middleRows(before, 35))));
                     EXPECT_TRUE(same_bits(layer.extend(cache, x.row(before + 35)), Matrix<T>(y.row(before + 35))));
                     EXPECT_EQ(cache.heads(), 3);
                 });
    const auto expect_trains = [&](const Layer& which, castle::MultiHeadWorkspace<T>& workspace) {
        Matrix<T> out(80, 20);
        which.forward(workspace, x, out);
        EXPECT_TRUE(same_bits(out, y));
        move_to_itself(workspace);
        EXPECT_EQ(workspace.size(), 80);
        const auto gradient = which.backward(workspace, x, d_y);
        expected.forward(expected_workspace, x, out);
        const auto expected_gradient = expected.backward(expected_workspace, x, d_y);
        EXPECT_TRUE(same_bits(gradient.x, expected_gradient.x));
        EXPECT_TRUE(same_bits(gradient.weights.causal.q, expected_gradient.weights.causal.q));
        EXPECT_TRUE(same_bits(gradient.weights.w_out, expected_gradient.weights.w_out));
    };
    expect_moves(layer.make_workspace(), Layer({.d_model = 2, .heads = 1, .d_head = 2}).make_workspace(),
                 [&](castle::MultiHeadWorkspace<T>& workspace) { expect_trains(layer, workspace); });

    // And the layer, whose caches and workspaces stay its own.
    castle::MultiHeadCache<T> cache = layer.make_cache();
    castle::MultiHeadWorkspace<T> workspace = layer.make_workspace();
    expect_moves(std::move(layer), Layer({.d_model = 2, .heads = 1, .d_head = 2}), [&](Layer& moved) {
        asked = 0;
        EXPECT_TRUE(same_bits(moved.forward(x), y));
        EXPECT_GT(asked, 0) << "the executor is gone";
        expect_trains(moved, workspace);
        cache.clear();
        EXPECT_TRUE(same_bits(moved.extend(cache, x), y));
        EXPECT_TRUE(same_bits(moved.weights().w_out, expected.weights().w_out));
    });
}

TYPED_TEST(Move, ALayerItsCachesAndWorkspacesGoOn) {
    using T = TypeParam;
    expect_layer_moves<T, castle::MultiHeadCastle<T>>(4130);
    expect_layer_moves<T, castle::MultiHeadCausal<T>>(4131);
}

// A layer or a workspace of one kind becomes none of the other, as caches do not.
TYPED_TEST(Move, ARotaryTableGoesOn) {
    using T = TypeParam;
    Random random(4140);
    Matrix<T> x(6, 8);
    fill_normal(random, x);
    Matrix<T> expected = x;
    castle::rotate(expected, 2);
    expect_moves(castle::RotaryTable<T>(8, 1e4, 4), castle::RotaryTable<T>(2), [&](castle::RotaryTable<T>& moved) {
        Matrix<T> y = x;
        moved.rotate(y, 2);
        EXPECT_TRUE(same_bits(y, expected));
    });
}

TYPED_TEST(Move, KindsStayApart) {
    using T = TypeParam;
    static_assert(!std::is_move_assignable_v<castle::HeadCache<T>>);
    static_assert(!std::is_move_assignable_v<castle::HeadWorkspace<T>>);
    static_assert(!std::is_move_assignable_v<castle::MultiHeadLayer<T>>);
    static_assert(!std::is_assignable_v<castle::UqKvCache<T>&, castle::KvCache<T>>);
}

}  // namespace
