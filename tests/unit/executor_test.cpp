// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/message.hpp"
#include "support/runs.hpp"
#include "support/tolerances.hpp"

// Where work runs is the caller's decision.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

// Runs pieces and counts how often each was run.
void expect_every_piece_once(const castle::Executor& executor) {
    for (Index n = 0; n <= 40; ++n) {
        std::vector<std::atomic<int>> runs(static_cast<std::size_t>(n));
        castle::detail::run(executor, n, [&](Index i) { ++runs[static_cast<std::size_t>(i)]; });
        for (Index i = 0; i < n; ++i) ASSERT_EQ(runs[static_cast<std::size_t>(i)], 1) << i << " of " << n;
    }
}

TEST(Executor, RunsEveryPieceOnce) {
    expect_every_piece_once({});
    expect_every_piece_once(reversed_executor());
    expect_every_piece_once(shuffled_executor(1));
    for (const int threads : {1, 2, 4}) {
        ThreadPool pool(threads);
        expect_every_piece_once(pool.executor());
    }
#ifdef _OPENMP
    for (const int threads : {0, 1, 3}) expect_every_piece_once(castle::openmp_executor(threads));
#endif
}

TEST(Executor, IsTheCallingThreadUnlessGiven) {
    const std::thread::id here = std::this_thread::get_id();
    castle::detail::run({}, 10, [&](Index) { EXPECT_EQ(std::this_thread::get_id(), here); });
}

TEST(Executor, TaskCallsWhatItWasMadeFrom) {
    Index last = -1;
    const auto piece = [&](Index i) { last = i; };
    const castle::Task task = piece;
    const castle::Task copy = task;
    copy(17);
    EXPECT_EQ(last, 17);
}

// The executor of the options is asked by every form that says it uses it.
TEST(Executor, IsAskedByTheBlockedForms) {
    Random random(1);
    const Head<float> head = random_head<float>(random, {.length = 1100, .d = 4, .dv = 3});
    Index asked = 0;
    const castle::Executor counting = [&](Index n, castle::Task task) {
        ++asked;
        for (Index i = 0; i < n; ++i) task(i);
    };
    const Matrix<float> serial = run_parallel(head.input());
    EXPECT_TRUE(same_bits(run_parallel(head.input(), {.executor = counting}), serial));
    EXPECT_GT(asked, 0);

    asked = 0;
    castle::UqKvCache<float> cache(shape_of(head), {.executor = counting});
    EXPECT_TRUE(same_bits(run_extend(cache, head.input(), {1099, 1}), serial));
    EXPECT_GT(asked, 0);

    asked = 0;
    EXPECT_TRUE(same_bits(castle::causal_attention(head.qc, head.kc, head.vc, {.executor = counting}),
                          castle::causal_attention(head.qc, head.kc, head.vc)));
    EXPECT_GT(asked, 0);
}

// In place of that of the options.
TEST(Executor, MayBeGivenWithACall) {
    Random random(4);
    const Head<float> head = random_head<float>(random, {.length = 1100, .d = 4, .dv = 3});
    Matrix<float> d_out(1100, 3), out(1100, 3);
    fill_normal(random, d_out);
    Index of_options = 0, of_call = 0;
    const auto counting = [](Index& asked) {
        return castle::Executor([&asked](Index n, castle::Task task) {
            ++asked;
            for (Index i = 0; i < n; ++i) task(i);
        });
    };
    // Calls run(executor) with one of its own and with none.
    const auto expect_asked = [&](const auto& run) {
        of_options = of_call = 0;
        run(counting(of_call));
        EXPECT_EQ(of_options, 0);
        EXPECT_GT(of_call, 0);
        of_call = 0;
        run(castle::Executor());
        EXPECT_GT(of_options, 0);
        EXPECT_EQ(of_call, 0);
    };
    const castle::Options options{.executor = counting(of_options)};
    castle::UqKvCache<float> cache(shape_of(head), options);
    expect_asked([&](const castle::Executor& executor) { castle::extend(cache, head.input(), out, executor); });
    castle::Workspace<float> workspace(shape_of(head), options);
    castle::Gradient<float> gradient(head.qc.rows(), shape_of(head));
    expect_asked([&](const castle::Executor& executor) { castle::forward(workspace, head.input(), out, executor); });
    expect_asked([&](const castle::Executor& executor) {
        castle::forward(workspace, head.input(), out, reversed_executor());
        castle::backward(workspace, head.input(), d_out, gradient.view(), executor);
    });

    const castle::Layer<float> layer({.d_model = 3, .heads = 2, .d_head = 2}, options);
    castle::LayerCache<float> layer_cache = layer.make_cache();
    castle::LayerWorkspace<float> layer_workspace = layer.make_workspace();
    castle::LayerWeights<float> d_weights = layer.zero_gradient();
    expect_asked([&](const castle::Executor& executor) { layer.extend(layer_cache, d_out, out, executor); });
    expect_asked([&](const castle::Executor& executor) { layer.forward(layer_workspace, d_out, out, executor); });
    expect_asked([&](const castle::Executor& executor) {
        layer.forward(layer_workspace, d_out, out, reversed_executor());
        layer.backward(layer_workspace, d_out, d_out, out, d_weights, executor);
    });
    const std::vector<castle::LayerCache<float>*> batch = {&layer_cache};
    const std::vector<Index> counts = {1100};
    expect_asked([&](const castle::Executor& executor) { layer.extend(batch, counts, d_out, out, executor); });
}

// Half of the work would be done, and nobody could tell which half.
TEST(ExecutorDeathTest, ThatThrowsEndsTheProgram) {
    Random random(3);
    const Head<float> head = random_head<float>(random, {.length = 1100, .d = 4, .dv = 4});
    const castle::Executor throwing = [](Index, castle::Task) { throw std::runtime_error("no threads left"); };
    EXPECT_DEATH(run_parallel(head.input(), {.executor = throwing}), "no threads left");
}

// Nothing else would tell. Builds without assertions do not look.
TEST(ExecutorDeathTest, ThatDoesNotRunEveryPieceOnceIsCaught) {
    const auto nothing = [](Index) {};
    const auto expect_caught = [&](const castle::Executor& executor, Index n) {
        EXPECT_DEBUG_DEATH(castle::detail::run(executor, n, nothing), "the executor ran a piece twice or left one out");
    };
    for (const Index n : {2, 3, 40}) {
        for (const Index wrong : {Index(0), n / 2, n - 1}) {
            SCOPED_TRACE(describe(wrong, " of ", n));
            expect_caught(  // leaves one out
                [&](Index count, castle::Task task) {
                    for (Index i = 0; i < count; ++i) {
                        if (i != wrong) task(i);
                    }
                },
                n);
            expect_caught(  // twice
                [&](Index count, castle::Task task) {
                    for (Index i = 0; i < count; ++i) task(i);
                    task(wrong);
                },
                n);
            expect_caught(  // one in place of another
                [&](Index count, castle::Task task) {
                    for (Index i = 0; i < count; ++i) task(i == wrong ? (wrong + 1) % count : i);
                },
                n);
        }
    }
    expect_caught([](Index, castle::Task) {}, 7);
    const castle::Executor beyond = [](Index n, castle::Task task) {
        for (Index i = 1; i <= n; ++i) task(i);
    };
    EXPECT_DEBUG_DEATH(castle::detail::run(beyond, 7, nothing), "the executor ran a piece that is not there");
}

#ifdef _OPENMP
TEST(Executor, OnOpenMpTakesNoNegativeNumberOfThreads) {
    for (const int threads : {-1, std::numeric_limits<int>::min()}) {
        EXPECT_EQ(message<std::invalid_argument>([&] { castle::openmp_executor(threads); }),
                  describe("castle::openmp_executor: threads is ", threads, " but must be at least 0"));
    }
}

TEST(Executor, OnOpenMpGivesTheBitsOfOneThread) {
    Random random(2);
    const Head<float> head = random_head<float>(random, {.length = 1300, .d = 9, .dv = 7});
    const Outcome<float> serial = run_at_once(head.input());
    for (const int threads : {0, 1, 2, 3, 4}) {
        SCOPED_TRACE(describe(threads, " threads"));
        const Outcome<float> run = run_at_once(head.input(), {.executor = castle::openmp_executor(threads)});
        EXPECT_TRUE(same_bits(run.output, serial.output));
        EXPECT_TRUE(same_bits(run.lookahead_keys, serial.lookahead_keys));
    }
}
#endif

}  // namespace
