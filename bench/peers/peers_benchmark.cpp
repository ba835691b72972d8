// SPDX-License-Identifier: Apache-2.0

// How fast is castle beside what a C++ program would call without it? One head of size 64 on one thread, the same input
// for all. FLOP/s count useful operations, see support.hpp: the same number for every peer, so that rates compare as
// times do. A peer whose output is not castle's is not timed.
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <castle/attention.hpp>
#include <castle/mask.hpp>

#include "masks.hpp"
#include "peers.hpp"
#include "support.hpp"

namespace {

using castle_bench::Index;
using castle_bench::Matrix;
using castle_bench::peers::Head;
using castle_bench::peers::Out;
using castle_bench::peers::Peer;
using castle_bench::peers::Qkv;
using castle_bench::peers::Seen;
namespace masks = castle::masks;

constexpr Index d = 64;
constexpr float tolerance = 1e-4F;

const Peer castle_itself = {"castle", [] { return std::string("castle"); },
                            [](const Head& head, Out out) { castle::parallel(head, out); },
                            [](const Qkv& head, Out out) { castle_bench::standard_attention({.causal = head}, out); },
                            [](const Qkv& head, const Seen& seen, Out out) {
                                castle::parallel(Head{.causal = head}, out, {.lookahead_window = 0}, seen.mask);
                            }};

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

// One attention by one peer; the mask is there for that which takes one.
using Attention = void (*)(const Peer&, const Head&, const Seen*, Out);
void castle_attention(const Peer& peer, const Head& head, const Seen*, Out out) { peer.castle_attention(head, out); }
void causal_attention(const Peer& peer, const Head& head, const Seen*, Out out) {
    peer.causal_attention(head.causal, out);
}
void masked_attention(const Peer& peer, const Head& head, const Seen* seen, Out out) {
    peer.masked_attention(head.causal, *seen, out);
}

constexpr Index masked_length = 4096;

Seen seen(const castle::Mask& mask) {
    constexpr float none = -std::numeric_limits<float>::infinity();
    Matrix bias(masked_length, masked_length);
    for (Index t = 0; t < masked_length; ++t) {
        for (Index s = 0; s < masked_length; ++s) bias(t, s) = mask.sees(t, s, masked_length) ? 0 : none;
    }
    return {.mask = mask, .bias = std::move(bias)};
}
// Each takes 64 MiB, and is made when it is asked for.
const Seen& seen_by(const std::string& name) {
    static std::map<std::string, Seen> all;
    const auto found = all.find(name);
    if (found != all.end()) return found->second;
    const castle::Mask mask = name == "window512"   ? masks::sliding_window(512)
                              : name == "documents" ? masks::documents(castle_bench::sixteen_documents(masked_length))
                              : name == "half_of_panels" ? castle_bench::half_of_panels(masked_length)
                                                         : castle_bench::random_bits(masked_length);
    return all.emplace(name, seen(mask)).first->second;
}

const castle_bench::RandomInput& input_of(Index length) {
    static std::map<Index, castle_bench::RandomInput> inputs;
    return inputs.try_emplace(length, length, castle_bench::heads_of(d)).first->second;
}

// The largest difference from castle's output relative to castle's largest element. Once for each question, for a
// benchmark is entered several times.
float difference(Attention attention, const Peer& peer, const Seen* seen, Index length) {
    static std::map<std::tuple<Attention, const Peer*, const Seen*, Index>, float> known;
    const auto [found, is_new] = known.try_emplace({attention, &peer, seen, length});
    if (is_new) {
        Matrix expected(length, d), out(length, d);
        attention(castle_itself, input_of(length).input(), seen, expected);
        attention(peer, input_of(length).input(), seen, out);
        found->second = (out - expected).cwiseAbs().maxCoeff<Eigen::PropagateNaN>() / expected.cwiseAbs().maxCoeff();
    }
    return found->second;
}

void measure(benchmark::State& state, Attention attention, const Peer& peer, const Seen* seen, double flops) {
    const Index length = state.range(0);
    const float found = difference(attention, peer, seen, length);
    if (!(found < tolerance)) {
        state.SkipWithError(("differs from castle by " + std::to_string(found) + " of the largest output").c_str());
        return;
    }
    const Head head = input_of(length).input();
    Matrix out(length, d);
    for (auto _ : state) {
        attention(peer, head, seen, out);
        benchmark::DoNotOptimize(out.data());
        benchmark::ClobberMemory();
    }
    if (flops > 0) castle_bench::count_flops(state, flops);
    state.counters["difference"] = found;
}

// A mask is given by its name.
void add(const std::string& name, Attention attention, const Peer& peer, Index length, double flops,
         const std::string& mask = {}) {
    const auto run = [=, &peer](benchmark::State& state) {
        measure(state, attention, peer, mask.empty() ? nullptr : &seen_by(mask), flops);
    };
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
    for (const char* mask : {"window512", "documents", "half_of_panels", "random_bits"}) {
        for (const Peer* peer : peers) {
            if (peer->masked_attention == nullptr) continue;
            add(std::string("masked_") + mask, masked_attention, *peer, masked_length, 0, mask);
        }
    }
    return true;
}();

}  // namespace
