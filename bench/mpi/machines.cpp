// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <mpi.h>

#include <castle/cache.hpp>
#include <castle/extend.hpp>
#include <castle/mpi/sharded_cache.hpp>

#include "../decoding.hpp"
#include "../machine.hpp"
#include "../support.hpp"
#include "counted.hpp"

// What a sharded cache takes on the ranks of one machine, beside a cache without MPI, in one run: to be started with
// mpirun -n 2 or more. Writes lines of "name,ranks,value", where no ranks mean no MPI; seconds are the best of several
// rounds, in which everything takes its turn.
namespace {

using namespace castle_bench;
using castle::UqKvCache;
using castle::mpi::Communicator;
using castle::mpi::ShardedCache;

int rank() {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}
int ranks() {
    int ranks = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    return ranks;
}

// All ranks wait for the last one, without work that would disturb the others.
void meet() {
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    for (int done = 0; done == 0;) {
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        if (done == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
}

void report(const std::string& name, int of_ranks, double value) {
    if (rank() == 0) std::printf("%s,%d,%.9g\n", name.c_str(), of_ranks, value);
    std::fflush(stdout);
}

// The first ranks, if this is one of them.
std::optional<Communicator> first_ranks(int count) {
    MPI_Comm some = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, rank() < count ? 0 : MPI_UNDEFINED, rank(), &some);
    if (some == MPI_COMM_NULL) return std::nullopt;
    std::optional<Communicator> first(some);
    MPI_Comm_free(&some);
    return first;
}

// Seconds of call() on the ranks of `on`, or on rank 0 alone.
double seconds(const std::optional<Communicator>& on, bool alone, const std::function<void()>& call) {
    double own = 0;
    meet();
    if (alone ? rank() == 0 : on.has_value()) {
        if (!alone) MPI_Barrier(on->handle());
        const auto start = std::chrono::steady_clock::now();
        call();
        own = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    double last = 0;
    meet();
    MPI_Allreduce(&own, &last, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return last;
}

// 0 for no MPI, 1, 2, 4, ... up to all ranks.
std::vector<int> numbers_of_ranks() {
    std::vector<int> numbers{0};
    for (int n = 1; n <= ranks(); n *= 2) numbers.push_back(n);
    return numbers;
}

struct Case {
    int ranks;
    std::optional<Communicator> on;
    std::function<void()> prepare, call;
    double best = std::numeric_limits<double>::infinity();

    bool is_alone() const { return ranks == 0; }
    bool takes_part() const { return is_alone() ? rank() == 0 : on.has_value(); }
};

void run(const std::string& name, std::vector<Case>& cases, int rounds, double per) {
    for (int round = 0; round < rounds; ++round) {
        for (Case& c : cases) {
            if (c.takes_part()) c.prepare();
            c.best = std::min(c.best, seconds(c.on, c.is_alone(), c.call));
        }
    }
    for (const Case& c : cases) report(name, c.ranks, c.best / per);
}

// Prefill of one head of size 64.
void prefill(Index length, int rounds) {
    const castle::Shape shape = heads_of(64);
    const RandomInput input(length, shape);
    Matrix out(length, 64);
    std::vector<Case> cases;
    std::vector<std::optional<ShardedCache<float>>> sharded(numbers_of_ranks().size());
    std::optional<UqKvCache<float>> one;
    for (std::size_t i = 0; i < sharded.size(); ++i) {
        const int n = numbers_of_ranks()[i];
        cases.push_back({.ranks = n, .on = n > 0 ? first_ranks(n) : std::nullopt, .prepare = {}, .call = {}});
        Case& c = cases.back();
        if (!c.takes_part()) continue;
        if (n == 0) {
            one.emplace(shape);
            one->reserve(length);
            c.prepare = [&] { one->clear(); };
            c.call = [&] { castle::extend(*one, input.input(), out); };
        } else {
            sharded[i].emplace(shape, castle::Options(), *c.on);
            sharded[i]->reserve(length);
            c.prepare = [&cache = *sharded[i]] { cache.clear(); };
            c.call = [&cache = *sharded[i], &input, &out] { castle::mpi::extend(cache, input.input(), out); };
        }
    }
    run("prefill L " + std::to_string(length), cases, rounds, 1);
}

// A block of single tokens onto caches of t tokens, seconds a token, and what a rank sends for one.
void decode(Index t, Index heads, Index window, int rounds) {
    const castle::Shape shape = heads_of(64, heads, heads);
    const castle::Options options{.lookahead_window = window};
    const NewTokens tokens(shape);
    Matrix out(1, heads * 64);
    std::vector<Case> cases;
    std::vector<std::optional<ShardedCache<float>>> sharded(numbers_of_ranks().size());
    std::optional<UqKvCache<float>> one;
    const auto block = [&](auto& cache) {
        for (Index i = 0; i < block_size; ++i) extend(cache, tokens.token(i), out);
    };
    const std::string name = "decode t " + std::to_string(t) + " heads " + std::to_string(heads) + " window " +
                             (window == castle::unlimited ? "none" : std::to_string(window));
    const auto go_back = [t](auto& cache) { castle::detail::CacheAccess::state(cache).set_size(t); };
    for (std::size_t i = 0; i < sharded.size(); ++i) {
        const int n = numbers_of_ranks()[i];
        cases.push_back({.ranks = n, .on = n > 0 ? first_ranks(n) : std::nullopt, .prepare = {}, .call = {}});
        Case& c = cases.back();
        if (!c.takes_part()) continue;
        if (n == 0) {
            one.emplace(shape, options, 0);
            fill(*one, t);
            c.prepare = [&] { go_back(*one); };
            c.call = [&] { block(*one); };
        } else {
            sharded[i].emplace(shape, options, *c.on, 0);
            fill(*sharded[i], t);
            c.prepare = [&, i] { go_back(*sharded[i]); };
            c.call = [&, i] { block(*sharded[i]); };
        }
    }
    run(name, cases, rounds, number(block_size));
    for (Case& c : cases) {
        Sent before = sent;
        if (c.takes_part() && !c.is_alone()) {
            c.prepare();
            before = sent;
            c.call();
        }
        const double own = number(sent.states + sent.outputs - before.states - before.outputs) / number(block_size);
        double most = 0;
        MPI_Allreduce(&own, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        report("bytes " + name, c.ranks, most);
        double bytes = 0, largest = 0;
        if (c.takes_part()) {
            const auto i = static_cast<std::size_t>(&c - cases.data());
            bytes = number(c.is_alone() ? one->bytes().total() : sharded[i]->bytes().total());
        }
        MPI_Allreduce(&bytes, &largest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
        report("memory " + name, c.ranks, largest);
    }
}

// Seconds of one way between two ranks.
double one_way(Index bytes) {
    std::vector<char> message(static_cast<std::size_t>(bytes));
    double best = std::numeric_limits<double>::infinity();
    for (int round = 0; round < 200; ++round) {
        MPI_Barrier(MPI_COMM_WORLD);
        const auto start = std::chrono::steady_clock::now();
        constexpr int trips = 10;
        for (int trip = 0; trip < trips; ++trip) {
            for (const int from : {0, 1}) {
                if (rank() == from) MPI_Send(message.data(), int(bytes), MPI_BYTE, 1 - from, 0, MPI_COMM_WORLD);
                if (rank() == 1 - from) {
                    MPI_Recv(message.data(), int(bytes), MPI_BYTE, from, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                }
            }
        }
        const double own = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::min(best, own / (2 * trips));
    }
    return best;
}

}  // namespace

int main(int argc, char** argv) {
    MPI_Init(&argc, &argv);
    if (ranks() < 2) {
        std::fprintf(stderr, "machines: start it with mpirun -n 2 or more\n");
        MPI_Finalize();
        return 2;
    }
    const bool brief = argc > 1 && std::string(argv[1]) == "--brief";
    const double core = rank() == 0 ? peak() : 0, memory = rank() == 0 ? bandwidth() : 0;
    meet();
    report("peak", 0, core);
    report("bandwidth", 0, memory);
    report("latency", 2, one_way(8));
    const Index large = Index(1) << 20;
    report("link", 2, number(large) / one_way(large));
    const int rounds = brief ? 1 : 7;
    for (const Index length : brief ? std::vector<Index>{1024} : std::vector<Index>{2048, 4096, 8192, 16384}) {
        prefill(length, rounds);
    }
    const Index t = brief ? 2048 : 65536;
    decode(t, 8, 128, rounds);
    if (!brief) decode(t, 8, castle::unlimited, rounds);
    MPI_Finalize();
    return 0;
}
