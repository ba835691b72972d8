// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <castle/types.hpp>

#include "bad_input.hpp"

// A program that mpirun starts several times: its processes are ranks, which share its work.

/// Why ranks cannot go on together: one of them has failed, or what carries their messages has.
struct RanksFailed : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// What ranks send each other. All ranks call the same functions in the same order. Those that send throw RanksFailed
/// where MPI reports an error, and nothing else.
class Messages {
  public:
    virtual ~Messages() = default;

    virtual int rank() const = 0;
    virtual int size() const = 0;
    /// How many of them are on this machine.
    virtual int size_here() const = 0;

    /// The least of every rank's number.
    virtual std::uint64_t least(std::uint64_t own) = 0;
    virtual void broadcast(void* bytes, int count, int from) = 0;
    /// Every rank brings its elements, counts[r] of rank r at their place among all, and gets those of the others.
    virtual void gather(float* all, const std::vector<int>& counts) = 0;
    virtual void gather(double* all, const std::vector<int>& counts) = 0;
    /// Every rank sends its next out_counts[r] elements to rank r, and gets in_counts[r] from it, in the order of
    /// ranks.
    virtual void exchange(const float* out, const std::vector<int>& out_counts, float* in,
                          const std::vector<int>& in_counts) = 0;
};

/// Null where this process is the only one. Throws BadInput where it is one of several that cannot reach each other. In
/// ranks_mpi.cpp, or in ranks_alone.cpp for builds without MPI.
std::unique_ptr<Messages> connect_ranks();

/// What launchers tell a process in its environment: Open MPI's mpirun in OMPI_COMM_WORLD_SIZE, that of MPICH and of
/// its descendants in PMI_SIZE and PMI_RANK, as Slurm may, and others in PMIX_RANK. To ask MPI instead would take the
/// time to initialise it from every program that runs alone.
struct Launch {
    bool by_mpirun = false;
    bool one_of_several = false;

    static Launch of_this_process() {
        struct Variable {
            const char* name;
            int alone;  // its value in a process that is the only one
        };
        Launch launch;
        for (const auto& [name, alone] :
             {Variable{"OMPI_COMM_WORLD_SIZE", 1}, {"PMI_SIZE", 1}, {"PMI_RANK", 0}, {"PMIX_RANK", 0}}) {
            const char* value = std::getenv(name);
            if (value == nullptr) continue;
            launch.by_mpirun = true;
            if (std::atoi(value) > alone) launch.one_of_several = true;
        }
        return launch;
    }
};

/// The processes of a program, which call the functions below together. Copies are the same ranks.
///
/// A rank may fail wherever it is. The others learn of it in the next function that they call, each of which begins
/// with agree(); no rank waits for one that is gone.
class Ranks {
  public:
    /// This process alone.
    Ranks() = default;
    explicit Ranks(std::shared_ptr<Messages> messages) : messages_(std::move(messages)) {}

    int rank() const { return messages_ ? messages_->rank() : 0; }
    int size() const { return messages_ ? messages_->size() : 1; }
    int size_here() const { return messages_ ? messages_->size_here() : 1; }
    /// Whether this is the rank that prints and writes.
    bool is_first() const { return rank() == 0; }

    struct Share {
        castle::Index first;
        castle::Index count;
    };
    /// What a rank has of `count` things that are dealt to all, in their order.
    Share share(castle::Index count, int rank) const {
        const castle::Index first = count * rank / size();
        return {first, count * (rank + 1) / size() - first};
    }
    Share share(castle::Index count) const { return share(count, rank()); }

    /// Throws RanksFailed, with its reason, if another rank has failed.
    void agree() const { agree_unless(nullptr); }

    /// Tells the others why this one does not go on. Throws RanksFailed only if that cannot be sent.
    void fail(const std::string& reason) const { agree_unless(&reason); }

    /// Throws BadInput on ranks where a fingerprint is not that of rank 0; `what` names what it is of.
    void expect_same(const std::string& what, std::uint64_t fingerprint) const {
        if (!messages_) return;
        agree();
        std::uint64_t of_first = fingerprint;
        messages_->broadcast(&of_first, sizeof of_first, 0);
        if (of_first != fingerprint) throw BadInput(fmt::format("{} is not that of rank 0", what));
        agree();
    }

    /// Numbers of which every rank has its share: afterwards it has all of them.
    void gather(std::vector<double>& all) const {
        if (!messages_) return;
        std::vector<int> counts;
        for (int r = 0; r < size(); ++r) counts.push_back(int(share(castle::Index(all.size()), r).count));
        agree();
        messages_->gather(all.data(), counts);
    }

    /// For messages of one's own, where there are several ranks: after agree(), and with nothing in between that
    /// throws.
    Messages& messages() const { return *messages_; }

  private:
    // With the reason for which this rank fails, if it does.
    void agree_unless(const std::string* reason) const {
        if (!messages_) return;
        const std::uint64_t nobody = std::uint64_t(size());
        const std::uint64_t failed = messages_->least(reason == nullptr ? nobody : std::uint64_t(rank()));
        if (failed == nobody) return;
        std::array<char, 4096> words{};
        if (reason != nullptr) reason->copy(words.data(), words.size() - 1);
        messages_->broadcast(words.data(), int(words.size()), int(failed));
        if (reason == nullptr) throw RanksFailed(fmt::format("rank {} failed: {}", failed, words.data()));
    }

    std::shared_ptr<Messages> messages_;
};

/// What `program` ends with on every rank: what run(ranks) returns, or 2 on all of them if it throws on any. Each then
/// prints one line.
template <class F>
int exit_code_of_ranks(const char* program, const F& run) {
    return exit_code(program, [&] {
        // Lives until the line is printed: mpirun ends all ranks when one of them has ended with 2.
        const Ranks ranks(connect_ranks());
        return exit_code(program, [&] {
            try {
                const int code = run(ranks);
                ranks.agree();
                return code;
            } catch (const RanksFailed&) {
                throw;
            } catch (const std::exception&) {
                ranks.fail(current_reason());
                throw;
            }
        });
    });
}
