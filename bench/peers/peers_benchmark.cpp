// SPDX-License-Identifier: Apache-2.0

// How fast is castle beside what a C++ program would call without it? One head of size 64 on one thread, the same input
// for all. FLOP/s count useful operations, see support.hpp: the same number for every peer, so that rates compare as
// times do. A peer whose output is not castle's is not timed.
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include <castle/attention.hpp>

#include "peers.hpp"
#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;
using castle_bench::peers::Head;
using castle_bench::peers::Out;
using castle_bench::peers::Peer;
using castle_bench::peers::Qkv;

constexpr Index d = 64;
constexpr float tolerance = 1e-4F;

const Peer castle_itself = {"castle", [] { return std::string("castle"); },
                            [](const Head& head, Out out) { castle::parallel(head, out); },
                            [](const Qkv& head, Out out) { castle_bench::standard_attention({.causal = head}, out); }};

std::vector<const Peer*> all_peers() {
    return {
        &castle_itself,
        &castle_bench::peers::eigen,
#ifdef CASTLE_PEER_OPENBLAS
        &castle_bench::peers::openblas,
#endif
#ifdef CASTLE_PEER_ONEDNN
        &castle_bench::peers::onednn,
#endif
#ifdef CASTLE_PEER_TORCH
        &castle_bench::peers::torch,
#endif
    };
}

// One attention by one peer.
using Attention = void (*)(const Peer&, const Head&, Out);
void castle_attention(const Peer& peer, const Head& head, Out out) { peer.castle_attention(head, out); }
void causal_attention(const Peer& peer, const Head& head, Out out) { peer.causal_attention(head.causal, out); }

const castle_bench::RandomInput& input_of(Index length) {
    static std::map<Index, castle_bench::RandomInput> inputs;
    return inputs.try_emplace(length, length, castle_bench::heads_of(d)).first->second;
}

// The largest difference from castle's output relative to castle's largest element. Once for each question, for a
// benchmark is entered several times.
float difference(Attention attention, const Peer& peer, Index length) {
    static std::map<std::tuple<Attention, const Peer*, Index>, float> known;
    const auto [found, is_new] = known.try_emplace({attention, &peer, length});
    if (is_new) {
        Matrix expected(length, d), out(length, d);
        attention(castle_itself, input_of(length).input(), expected);
        attention(peer, input_of(length).input(), out);
        found->second = (out - expected).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() / expected.cwiseAbs().maxCoeff();
    }
    return found->second;
}

void measure(benchmark::State& state, Attention attention, const Peer& peer, double flops) {
    const Index length = state.range(0);
    const float found = difference(attention, peer, length);
    if (!(found < tolerance)) {
        state.SkipWithError(("differs from castle by " + std::to_string(found) + " of the largest output").c_str());
        return;
    }
    const Head head = input_of(length).input();
    Matrix out(length, d);
    for (auto _ : state) {
        attention(peer, head, out);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    castle_bench::count_flops(state, flops);
    state.counters["difference"] = found;
}

void add(const std::string& name, Attention attention, const Peer& peer, Index length, double flops) {
    const auto run = [=, &peer](benchmark::State& state) { measure(state, attention, peer, flops); };
    benchmark::RegisterBenchmark((name + "/peer:" + peer.name).c_str(), run)
        ->ArgName("L")
        ->Arg(length)
        ->Unit(benchmark::kMillisecond)
        ->Apply(castle_bench::report_best);
}

// Before main, as the macros would. Those that compete stand next to each other.
const bool added = [] {
    const std::vector<const Peer*> peers = all_peers();
    for (const Peer* peer : peers) benchmark::AddCustomContext(std::string("peer ") + peer->name, peer->library());
    const std::vector<Index> lengths = {256, 512, 1024, 2048};
    for (const Index length : lengths) {
        for (const Peer* peer : peers) {
            add("castle", castle_attention, *peer, length, castle_bench::castle_flops(length, d, castle::unlimited));
        }
    }
    for (const Index length : lengths) {
        for (const Peer* peer : peers) {
            add("causal", causal_attention, *peer, length, castle_bench::causal_flops(length, d));
        }
    }
    return true;
}();

}  // namespace
