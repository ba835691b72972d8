// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <gtest/gtest.h>
#include <mpi.h>

#include <castle/castle.hpp>
#include <castle/mpi/sharded_cache.hpp>

#include "mpi/counted.hpp"
#include "support/generators.hpp"

// What docs/machines.md says about messages, counted.
namespace {

using castle::Index;
using castle::Matrix;
using castle_bench::Sent;
using castle_bench::sent;
using namespace support;

const castle::mpi::Communicator& all_ranks() {
    static const castle::mpi::Communicator all(MPI_COMM_WORLD);
    return all;
}

// The spans of this rank among the first `spans`.
Index own_spans(Index spans) {
    Index own = 0;
    for (Index s = all_ranks().rank(); s < spans; s += all_ranks().size()) ++own;
    return own;
}
// The rows of this rank among so many, which are dealt in equal parts.
Index own_rows(Index rows) {
    const Index rank = all_ranks().rank(), ranks = all_ranks().size();
    return rows * (rank + 1) / ranks - rows * rank / ranks;
}

// A state is dv elements, a sum in as many parts as a packet has lanes, and the largest score.
template <class T>
Index state_bytes(const castle::Shape& shape) {
    constexpr Index lanes = castle::detail::SpanStates<T>::lanes;
    return ((shape.dv + lanes - 1) / lanes * lanes + lanes + 1) * Index(sizeof(T));
}

Sent since(const Sent& before) {
    return {.states = sent.states - before.states,
            .outputs = sent.outputs - before.outputs,
            .calls = sent.calls - before.calls};
}

TEST(SentBytes, OfATokenAreThoseOfTheModel) {
    const castle::Shape shape{.d = 16, .dv = 24, .heads = 8, .kv_heads = 4};
    const Index ranks = all_ranks().size();
    Random random(1);
    const Index before = 2040;
    const Head<float> head = random_heads<float>(random, before + 20, shape);
    castle::mpi::ShardedCache<float> cache(shape, {}, all_ranks());
    castle::mpi::extend(cache, head.first_tokens(before));
    Matrix<float> out(1, shape.heads * shape.dv);
    for (Index t = before; t < before + 20; ++t) {
        const Sent start = sent;
        castle::mpi::extend(cache, head.input().tokens(t, 1), out);
        const Sent counted = since(start);
        const Index others = ranks > 1 ? shape.heads - own_rows(shape.heads) : 0;
        EXPECT_EQ(counted.states, own_spans(t / 512 + 1) * others * state_bytes<float>(shape)) << "token " << t;
        EXPECT_EQ(counted.outputs, own_rows(shape.heads) * shape.dv * Index(sizeof(float)) * (ranks - 1));
        EXPECT_EQ(counted.calls, ranks > 1 ? 3 : 0) << "agreement, states, outputs";
    }
}

TEST(SentBytes, OfAPromptAreThoseOfTheModel) {
    const castle::Shape shape{.d = 8, .dv = 8, .heads = 2, .kv_heads = 2};
    const Index ranks = all_ranks().size(), length = 1300;
    Random random(2);
    const Head<float> head = random_heads<float>(random, length, shape);
    castle::mpi::ShardedCache<float> cache(shape, {}, all_ranks());
    Matrix<float> out(length, shape.heads * shape.dv);
    const Sent start = sent;
    castle::mpi::extend(cache, head.input(), out);
    const Sent counted = since(start);
    Sent model;
    for (Index first = 0; ranks > 1 && first < length; first += 128) {
        const Index end = std::min(first + 128, length), rows = (end - first) * shape.heads;
        model.states += own_spans((end + 511) / 512) * (rows - own_rows(rows)) * state_bytes<float>(shape);
        model.outputs += own_rows(rows) * shape.dv * Index(sizeof(float)) * (ranks - 1);
        model.calls += 2;
    }
    EXPECT_EQ(counted.states, model.states);
    EXPECT_EQ(counted.outputs, model.outputs);
    EXPECT_EQ(counted.calls, ranks > 1 ? model.calls + 1 : 0);
}

}  // namespace
