// SPDX-License-Identifier: Apache-2.0

// With Eigen and nothing else. CASTLE in the form of Theorem 2: blocks of queries in time order, the lookahead keys `U`
// kept summed over the blocks that are finished, O(L^2 d) time. Every block attends to all keys up to its own.
#include <algorithm>

#include "between.hpp"
#include "peers.hpp"

namespace castle_bench::peers {
namespace {

void castle_attention(const Head& head, Out out) {
    constexpr Index block_length = 32;  // of 32, 64, 128 and 256 the fastest for CASTLE
    Eigen::setNbThreads(1);
    const auto qc = head.causal.q.map(), kc = head.causal.k.map(), vc = head.causal.v.map();
    const auto qu = head.lookahead.q.map(), ku = head.lookahead.k.map(), vu = head.lookahead.v.map();
    const Index length = qc.rows();
    const float scale = scale_of(head.causal.q);

    Matrix u = Matrix::Zero(length, qc.cols());
    Matrix gates(block_length, length), lookahead(block_length, length), weights(block_length, length);
    for (Index first = 0; first < length; first += block_length) {
        const Index m = std::min(block_length, length - first), keys = first + m;
        const Matrix q = scale * qc.middleRows(first, m);

        auto g = gates.topLeftCorner(m, keys);
        g.noalias() = scale * ku.middleRows(first, m) * qu.topRows(keys).transpose();
        to_gates(g, first);

        // What the finished blocks and what this one contribute to S^U.
        const Matrix products = (q * vu.middleRows(first, m).transpose()).triangularView<Eigen::Lower>();
        auto s = lookahead.topLeftCorner(m, keys);
        s.noalias() = q * u.topRows(keys).transpose();
        s.noalias() += products * g;

        auto p = weights.topLeftCorner(m, keys);
        p.noalias() = q * kc.topRows(keys).transpose();
        subtract_silu(p, s, first);
        softmax(p, first);
        zero_later(p, first);
        out.map().middleRows(first, m).noalias() = p * vc.topRows(keys);

        u.topRows(keys).noalias() += g.transpose() * vu.middleRows(first, m);
    }
}

void causal_attention(const Qkv& head, Out out) {
    constexpr Index block_length = 64;  // the same for standard attention
    Eigen::setNbThreads(1);
    const Index length = head.q.rows();
    const float scale = scale_of(head.q);
    Matrix weights(block_length, length);
    for (Index first = 0; first < length; first += block_length) {
        const Index m = std::min(block_length, length - first), keys = first + m;
        auto p = weights.topLeftCorner(m, keys);
        p.noalias() = scale * head.q.map().middleRows(first, m) * head.k.map().topRows(keys).transpose();
        softmax(p, first);
        zero_later(p, first);
        out.map().middleRows(first, m).noalias() = p * head.v.map().topRows(keys);
    }
}

std::string library() {
    return "Eigen " + std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
           std::to_string(EIGEN_MINOR_VERSION);
}

}  // namespace

const Peer eigen = {"eigen", library, castle_attention, causal_attention};

}  // namespace castle_bench::peers
