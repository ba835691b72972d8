// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <mpi.h>

#include <castle/cache.hpp>
#include <castle/extend.hpp>
#include <castle/layer.hpp>
#include <castle/mpi/sharded_cache.hpp>
#include <castle/mpi/split_layer.hpp>

#include "../decoding.hpp"
#include "../machine.hpp"
#include "../support.hpp"
#include "counted.hpp"

// What a sharded cache takes on the ranks of one machine, beside a cache without MPI, in one run: to be started with
// mpirun -n 2 or more. Writes lines of "name,ranks,value", where no ranks mean no MPI; seconds are the best of several
// rounds, in which everything takes its turn. With --bytes it only says what is sent and held, with --brief it only
// shows that everything runs.
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

// The largest of what all ranks bring.
double most_of_all(double own) {
    double most = 0;
    meet();
    MPI_Allreduce(&own, &most, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return most;
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
    return most_of_all(own);
}

// 0 for no MPI, 1, 2, 4, ... up to all ranks.
std::vector<int> numbers_of_ranks() {
    std::vector<int> numbers{0};
    for (int n = 1; n <= ranks(); n *= 2) numbers.push_back(n);
    return numbers;
}

std::string window_words(Index window) {
    return window == castle::unlimited ? "" : " window " + std::to_string(window);
}

struct Case {
    int ranks;
    std::optional<Communicator> on;
    std::function<void()> prepare, call;
    std::function<Index()> bytes = {};  // that it holds
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

// A case without MPI and one for each number of ranks, begun with begin(case): what it prepares and runs, on ranks that
// take part.
template <class Begin>
std::vector<Case> cases_of(const Begin& begin) {
    std::vector<Case> cases;
    for (const int n : numbers_of_ranks()) {
        cases.push_back({.ranks = n, .on = n > 0 ? first_ranks(n) : std::nullopt, .prepare = [] {}, .call = {}});
        if (cases.back().takes_part()) begin(cases.back());
    }
    return cases;
}

// Prefill of one head of size 64.
void prefill(Index length, Index window, int rounds) {
    const castle::Shape shape = heads_of(64);
    const castle::Options options{.lookahead_window = window};
    const RandomInput input(length, shape);
    Matrix out(length, 64);
    const auto begin = [&](Case& c, auto cache) {
        cache->reserve(length);
        c.prepare = [cache] { cache->clear(); };
        c.call = [cache, &input, &out] { extend(*cache, input.input(), out); };
    };
    std::vector<Case> cases = cases_of([&](Case& c) {
        if (c.is_alone()) {
            begin(c, std::make_shared<UqKvCache<float>>(shape, options));
        } else {
            begin(c, std::make_shared<ShardedCache<float>>(shape, options, *c.on));
        }
    });
    run("prefill L " + std::to_string(length) + window_words(window), cases, rounds, 1);
}

// A block of single tokens onto caches of t tokens, seconds a token, and what a rank sends for one.
void decode(Index t, Index heads, Index window, int rounds) {
    const castle::Shape shape = heads_of(64, heads, heads);
    const castle::Options options{.lookahead_window = window};
    const NewTokens tokens(shape);
    Matrix out(1, heads * 64);
    const auto begin = [&](Case& c, auto cache) {
        fill(*cache, t);
        c.prepare = [cache, t] { castle::detail::CacheAccess::state(*cache).set_size(t); };
        c.call = [cache, &tokens, &out] {
            for (Index i = 0; i < block_size; ++i) extend(*cache, tokens.token(i), out);
        };
        c.bytes = [cache] { return cache->bytes().total(); };
    };
    std::vector<Case> cases = cases_of([&](Case& c) {
        if (c.is_alone()) {
            begin(c, std::make_shared<UqKvCache<float>>(shape, options, 0));
        } else {
            begin(c, std::make_shared<ShardedCache<float>>(shape, options, *c.on, 0));
        }
    });
    const std::string name = "decode t " + std::to_string(t) + " heads " + std::to_string(heads) + window_words(window);
    run(name, cases, rounds, number(block_size));
    for (Case& c : cases) {
        double sent_bytes = 0, held = 0;
        if (c.takes_part()) {
            c.prepare();
            const Sent before = sent;
            c.call();
            sent_bytes = number(sent.states + sent.outputs - before.states - before.outputs) / number(block_size);
            held = number(c.bytes());
        }
        report("bytes sent " + name, c.ranks, most_of_all(sent_bytes));
        report("bytes held " + name, c.ranks, most_of_all(held));
    }
}

// A layer of 16 heads: a prompt of 512 tokens, a single token after it, both passes of training.
void layer(int rounds, bool is_brief) {
    using castle::mpi::SplitLayer;
    const castle::LayerConfig config{.d_model = is_brief ? 128 : 1024, .heads = 16, .d_head = is_brief ? 8 : 64};
    const castle::Options options{.lookahead_window = 128};
    const Index rows = 512;
    const Matrix x = Matrix::Random(rows, config.d_model);
    Matrix y(rows, config.d_model), d_x(rows, config.d_model);
    const auto of_both = [&](const std::string& name, double per, const auto& begin) {
        std::vector<Case> cases = cases_of([&](Case& c) {
            if (c.is_alone()) {
                begin(c, std::make_shared<castle::Layer<float>>(config, options));
            } else {
                begin(c, std::make_shared<SplitLayer<float>>(config, options, *c.on));
            }
        });
        run(name, cases, rounds, per);
    };
    of_both("layer prompt", 1, [&](Case& c, auto made) { c.call = [made, &x, &y] { made->forward(x, y); }; });
    of_both("layer token", 32, [&](Case& c, auto made) {
        auto cache = std::make_shared<decltype(made->make_cache())>(made->make_cache());
        cache->reserve(rows + 32);
        c.prepare = [made, cache, &x] {
            cache->clear();
            made->extend(*cache, x);
        };
        c.call = [made, cache, &x, &y] {
            for (Index i = 0; i < 32; ++i) {
                made->extend(*cache, castle::ConstMatrixView<float>(x).middle_rows(i, 1),
                             castle::MatrixView<float>(y).middle_rows(i, 1));
            }
        };
    });
    of_both("layer training", 1, [&](Case& c, auto made) {
        auto workspace = std::make_shared<decltype(made->make_workspace())>(made->make_workspace());
        auto gradient = std::make_shared<castle::LayerWeights<float>>(made->zero_gradient());
        c.call = [made, workspace, gradient, &x, &y, &d_x] {
            made->forward(*workspace, x, y);
            made->backward(*workspace, x, y, d_x, *gradient);
        };
    });
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
    const std::string option = argc > 1 ? argv[1] : "";
    const bool brief = option == "--brief", only_bytes = option == "--bytes";
    const int rounds = brief || only_bytes ? 1 : 7;
    const Index t = brief ? 2048 : 65536;
    if (!only_bytes) {
        const double core = rank() == 0 ? peak() : 0, memory = rank() == 0 ? bandwidth() : 0;
        meet();
        report("peak", 0, core);
        report("bandwidth", 0, memory);
        report("latency", 2, one_way(8));
        const Index large = Index(1) << 20;
        report("link", 2, number(large) / one_way(large));
        for (const Index length : brief ? std::vector<Index>{1024} : std::vector<Index>{2048, 4096, 8192, 16384}) {
            prefill(length, castle::unlimited, rounds);
            prefill(length, 128, rounds);
        }
    }
    // Tokens wait for memory, which others use as well: it takes more rounds to meet with a quiet one.
    decode(t, 8, castle::unlimited, rounds == 1 ? 1 : 21);
    decode(t, 8, 128, rounds == 1 ? 1 : 21);
    if (!only_bytes) layer(rounds, brief);
    MPI_Finalize();
    return 0;
}
