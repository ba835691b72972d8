// SPDX-License-Identifier: Apache-2.0
#include "support/allocations.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <vector>

#include <gtest/gtest.h>

#include <castle/castle.hpp>

#include "support/executors.hpp"
#include "support/generators.hpp"
#include "support/runs.hpp"
#include "support/scalars.hpp"
#include "support/tolerances.hpp"

// What is rolled back might as well never have been there.
namespace {

using castle::Index;
using castle::Matrix;
using namespace support;

template <class T>
class Rollback : public ::testing::Test {};
TYPED_TEST_SUITE(Rollback, support::Scalars);

constexpr Index d = 7, dv = 5;

// Tokens that poison everything they are allowed to reach.
template <class T>
Head<T> poison(Index length) {
    Head<T> head({length, d, dv});
    for (Matrix<T>* m : head.all()) m->setConstant(std::numeric_limits<T>::quiet_NaN());
    return head;
}

// A cache that follows a head's tokens, with detours.
template <class T>
class Follower {
  public:
    Follower(const Head<T>& head, const castle::Options& options, Index rollback)
        : head_(head), whole_(run_at_once(head.input(), options)), cache_({.d = d, .dv = dv}, options, rollback) {}

    Index size() const { return cache_.size(); }
    Index left() const { return head_.qc.rows() - size(); }
    castle::UqKvCache<T>& cache() { return cache_; }

    void advance(Index tokens) {
        const Index first = size();
        const Matrix<T> out = written<T>(tokens, dv, [&](castle::MatrixView<T> view) {
            castle::extend(cache_, head_.input().tokens(first, tokens), view);
        });
        EXPECT_TRUE(same_bits(out, Matrix<T>(whole_.output.middleRows(first, tokens))))
            << tokens << " tokens onto " << first;
    }
    void detour(const std::vector<Index>& chunks) {
        for (const Index chunk : chunks) castle::extend(cache_, poison<T>(chunk).input());
    }
    void expect_keys_of_a_fresh_cache() {
        castle::UqKvCache<T> fresh({.d = d, .dv = dv}, cache_.options());
        castle::extend(fresh, head_.first_tokens(size()));
        EXPECT_TRUE(same_bits(cache_.lookahead_keys(), fresh.lookahead_keys())) << size() << " tokens";
    }

  private:
    const Head<T>& head_;
    Outcome<T> whole_;
    castle::UqKvCache<T> cache_;
};

TYPED_TEST(Rollback, LeavesNoTraceInAnyOrderOfCalls) {
    using T = TypeParam;
    for (std::uint64_t seed = 3000; seed < 3040; ++seed) {
        Random random(seed);
        const Index window = random.pick(std::array<Index, 8>{0, 1, 20, 32, 33, 64, 130, castle::unlimited});
        const Index rollback = random.pick(std::array<Index, 6>{0, 1, 32, 64, 65, 200});
        SCOPED_TRACE(describe("seed ", seed, ", window ", window, ", rollback ", rollback));
        const Head<T> head = random_head<T>(random, {500, d, dv});
        ThreadPool pool(3);
        castle::Options options{.lookahead_window = window};
        if (seed % 3 == 0) options.executor = pool.executor();
        Follower<T> follower(head, options, rollback);
        Index longest = 0;
        while (follower.left() > 0) {
            const Index most = random.pick(std::array<Index, 4>{1, 10, 70, 200});
            follower.advance(random.integer(1, std::min(most, follower.left())));
            const Index detour = random.integer(0, std::min(rollback, random.pick(std::array<Index, 3>{3, 40, 200})));
            const Index before = follower.size();
            follower.detour(random_split(random, detour));
            // Of the right tokens some as well, at times.
            const Index deepest = follower.cache().max_rollback();
            longest = std::max(longest, follower.size());
            EXPECT_LE(follower.size() - deepest, std::max(longest - rollback, Index(0)));
            const Index more = random.integer(0, 3) == 0 ? random.integer(0, deepest - detour) : 0;
            follower.cache().rollback(detour + more);
            EXPECT_EQ(follower.size(), before - more);
            if (random.integer(0, 4) == 0) follower.expect_keys_of_a_fresh_cache();
        }
        follower.expect_keys_of_a_fresh_cache();
    }
}

TYPED_TEST(Rollback, ReachesEveryDepthFromEveryPositionWithinABlock) {
    using T = TypeParam;
    Random random(3050);
    const Head<T> head = random_head<T>(random, {170, d, dv});
    for (const Index window : {Index(40), castle::unlimited}) {
        for (Index size = 96; size <= 128; size += 8) {
            for (Index depth = 0; depth <= 64; depth += 3) {
                SCOPED_TRACE(describe("window ", window, ", ", depth, " of ", size, " tokens"));
                Follower<T> follower(head, {.lookahead_window = window}, 64);
                follower.advance(size - depth);
                follower.detour({depth});
                follower.cache().rollback(depth);
                follower.expect_keys_of_a_fresh_cache();
                follower.advance(follower.left());
            }
        }
    }
}

TYPED_TEST(Rollback, InStepsIsThatAtOnce) {
    using T = TypeParam;
    Random random(3060);
    const Head<T> head = random_head<T>(random, {300, d, dv});
    Follower<T> follower(head, {}, 128);
    follower.advance(290);
    EXPECT_EQ(follower.cache().max_rollback(), 290 % 32 + 128);
    for (const Index step : {1, 1, 0, 40, 33, 32, 23}) {
        const Index deepest = follower.cache().max_rollback();
        follower.cache().rollback(step);
        EXPECT_EQ(follower.cache().max_rollback(), deepest - step)
            << "what was rolled back cannot be rolled back again";
        follower.expect_keys_of_a_fresh_cache();
    }
    follower.advance(follower.left());
    EXPECT_GE(follower.cache().max_rollback(), 128);
}

TYPED_TEST(Rollback, ThatIsTooDeepChangesNothing) {
    using T = TypeParam;
    Random random(3070);
    const Head<T> head = random_head<T>(random, {200, d, dv});
    Follower<T> follower(head, {}, 32);
    EXPECT_EQ(follower.cache().max_rollback(), 0);
    follower.advance(150);
    EXPECT_EQ(follower.cache().max_rollback(), 150 % 32 + 32);
    for (const Index tokens : {Index(55), Index(150), Index(151), Index(-1), std::numeric_limits<Index>::max()}) {
        EXPECT_THROW(follower.cache().rollback(tokens), std::invalid_argument) << tokens;
        EXPECT_EQ(follower.size(), 150);
    }
    follower.advance(50);

    follower.cache().clear();
    EXPECT_EQ(follower.cache().max_rollback(), 0);
    follower.advance(200);
    EXPECT_THROW(castle::UqKvCache<T>({.d = d, .dv = dv}, {}, -1), std::invalid_argument);
    EXPECT_THROW(castle::UqKvCache<T>({.d = d, .dv = dv}, {}, (Index(1) << 24) + 1), std::invalid_argument);
}

TYPED_TEST(Rollback, OfStandardAttentionReachesTheFirstToken) {
    using T = TypeParam;
    Random random(3080);
    const Head<T> head = random_head<T>(random, {150, d, dv});
    const Matrix<T> whole = castle::causal_attention(head.qc, head.kc, head.vc);
    castle::UqKvCache<T> cache({.d = d, .dv = dv}, {.lookahead_window = 0});
    for (const Index kept : {0, 1, 63, 64, 100}) {
        castle::extend(cache, head.causal_input());
        EXPECT_EQ(cache.max_rollback(), 150);
        cache.rollback(150 - kept);
        EXPECT_TRUE(same_bits(castle::extend(cache, head.causal_input().tokens(kept, 150 - kept)),
                              Matrix<T>(whole.bottomRows(150 - kept))));
        cache.rollback(150);
    }
}

TYPED_TEST(Rollback, OfALayerIsThatOfItsHeads) {
    using T = TypeParam;
    const castle::LayerConfig config{.d_model = 20, .heads = 3, .d_head = 6, .rotary = castle::Rotary{}};
    Random random(3090);
    Matrix<T> x(200, 20), nothing = Matrix<T>::Constant(70, 20, std::numeric_limits<T>::quiet_NaN());
    fill_normal(random, x);
    const auto expect_no_trace = [&](const auto& layer) {
        const Matrix<T> whole = layer.forward(x);
        castle::LayerCache<T> cache = layer.make_cache();
        layer.extend(cache, x.topRows(120));
        for (const Index tokens : {1, 8, 30, 64}) {
            layer.extend(cache, nothing.topRows(tokens));
            cache.rollback(tokens);
            EXPECT_EQ(cache.size(), 120);
        }
        EXPECT_TRUE(same_bits(layer.extend(cache, x.bottomRows(80)), Matrix<T>(whole.bottomRows(80))));
        EXPECT_THROW(cache.rollback(cache.max_rollback() + 1), std::invalid_argument);
        EXPECT_THROW(layer.make_cache(-1), std::invalid_argument);
    };
    const castle::LayerConfig grouped{
        .d_model = 20, .heads = 4, .kv_heads = 2, .d_head = 6, .rotary = castle::Rotary{}};
    for (const castle::LayerConfig& each : {config, grouped}) {
        for (const Index window : {Index(0), Index(50), castle::unlimited}) {
            SCOPED_TRACE(describe(each.kv_heads, " key-value heads, window ", window));
            expect_no_trace(castle::Layer<T>(each, {.lookahead_window = window}));
        }
    }
}

TYPED_TEST(Rollback, AllocatesNothing) {
    using T = TypeParam;
    Random random(3100);
    const Head<T> head = random_head<T>(random, {300, d, dv});
    castle::UqKvCache<T> cache({.d = d, .dv = dv});
    cache.reserve(300);
    Matrix<T> out(1, dv);
    const Allocations::Count count;
    for (Index t = 0; t < 300; ++t) castle::extend(cache, head.input().tokens(t, 1), out);
    cache.rollback(70);
    EXPECT_EQ(count.allocations(), 0);
}

}  // namespace
