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
    for (const castle::Shape& shape : {castle::Shape{.d = 5, .dv = 4}, {.d = 5, .dv = 4, .heads = 4, .kv_heads = 2}}) {
        const Head<T> head = random_heads<T>(random, 200, shape);
        for (const Index window : {Index(0), Index(20), castle::unlimited}) {
            const castle::Options options{.lookahead_window = window, .executor = [](Index n, castle::Task task) {
                                              for (Index i = 0; i < n; ++i) task(i);
                                          }};
            const auto make = [&] { return castle::UqKvCache<T>(shape, options); };
            const auto input = [&](Index first, Index count) { return head.input().tokens(first, count); };
            expect_cache_moves<T>(input, make(), make(), castle::UqKvCache<T>({.d = 1, .dv = 1}));
        }
        // Of standard attention, without lookahead inputs; in place of one that is not.
        const auto make = [&] { return castle::UqKvCache<T>(shape, {.scale = 0.3, .lookahead_window = 0}); };
        const auto input = [&](Index first, Index count) { return head.causal_input().tokens(first, count); };
        expect_cache_moves<T>(input, make(), make(), castle::UqKvCache<T>({.d = 1, .dv = 1}));
    }
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

template <class T>
void expect_workspace_moves(const castle::Input<T>& input, castle::Workspace<T> workspace,
                            castle::Workspace<T> expected) {
    using Workspace = castle::Workspace<T>;
    const castle::Shape shape = workspace.shape();
    const Index length = input.causal.q.rows();
    Random random(4125);
    Matrix<T> d_out(length, shape.heads * shape.dv);
    fill_normal(random, d_out);
    expect_moves(std::move(workspace), Workspace({.d = 1, .dv = 1}), [&](Workspace& moved) {
        Matrix<T> out(d_out.rows(), d_out.cols()), expected_out(d_out.rows(), d_out.cols());
        castle::forward(moved, input, out);
        castle::forward(expected, input, expected_out);
        EXPECT_TRUE(same_bits(out, expected_out));
        move_to_itself(moved);
        EXPECT_EQ(moved.size(), length);
        EXPECT_EQ(moved.bytes(), expected.bytes());
        const castle::Gradient<T> gradient = castle::backward(moved, input, d_out);
        const castle::Gradient<T> expected_gradient = castle::backward(expected, input, d_out);
        for (std::size_t i = 0; i < 6; ++i) {
            EXPECT_TRUE(same_bits(*all_of(gradient)[i], *all_of(expected_gradient)[i]));
        }
    });
}

TYPED_TEST(Move, AWorkspaceGoesOn) {
    using T = TypeParam;
    Random random(4120);
    for (const castle::Shape& shape : {castle::Shape{.d = 5, .dv = 4}, {.d = 5, .dv = 4, .heads = 4, .kv_heads = 2}}) {
        const Head<T> head = random_heads<T>(random, 90, shape);
        const auto make = [&](Index window) { return castle::Workspace<T>(shape, {.lookahead_window = window}); };
        expect_workspace_moves(head.input(), make(40), make(40));
        expect_workspace_moves(head.causal_input(), make(0), make(0));
    }
}

template <class T>
void expect_layer_moves(std::uint64_t seed, Index window) {
    using Layer = castle::Layer<T>;
    Random random(seed);
    Index asked = 0;
    const castle::Executor counting = [&](Index n, castle::Task task) {
        ++asked;
        for (Index i = 0; i < n; ++i) task(i);
    };
    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    const castle::LayerConfig small{.d_model = 2, .heads = 1, .d_head = 2};
    const Layer expected(config, {.lookahead_window = window});
    Layer layer(config, {.lookahead_window = window, .executor = counting});
    Matrix<T> x(80, 20), d_y(80, 20);
    fill_normal(random, x);
    fill_normal(random, d_y);
    castle::LayerWorkspace<T> expected_workspace = expected.make_workspace();
    const Matrix<T> y = expected.forward(x);

    // The parts of a layer that has not moved.
    expect_moves(layer.make_cache(), Layer(small).make_cache(), [&](castle::LayerCache<T>& cache) {
        const Index before = cache.size();
        const Matrix<T> rows = layer.extend(cache, x.middleRows(before, 35));
        EXPECT_TRUE(same_bits(rows, Matrix<T>(y.middleRows(before, 35))));
        EXPECT_TRUE(same_bits(layer.extend(cache, x.row(before + 35)), Matrix<T>(y.row(before + 35))));
        EXPECT_EQ(cache.lookahead_keys(2).rows(), before + 36);
    });
    const auto expect_trains = [&](const Layer& which, castle::LayerWorkspace<T>& workspace) {
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
    expect_moves(layer.make_workspace(), Layer(small).make_workspace(),
                 [&](castle::LayerWorkspace<T>& workspace) { expect_trains(layer, workspace); });

    // And the layer, whose caches and workspaces stay its own.
    castle::LayerCache<T> cache = layer.make_cache();
    castle::LayerWorkspace<T> workspace = layer.make_workspace();
    expect_moves(std::move(layer), Layer(small), [&](Layer& moved) {
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
    expect_layer_moves<T>(4130, castle::unlimited);
    expect_layer_moves<T>(4131, 0);
}

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

}  // namespace
