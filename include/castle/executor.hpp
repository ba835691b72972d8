// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <concepts>
#include <cstdint>
#include <functional>
#include <memory>
#include <type_traits>

#include <castle/detail/check/message.hpp>
#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {

/// A reference to the work of one call: `task(i)` does piece `i`. Pieces are independent of each other, never throw
/// and allocate nothing. Refers to what it was made from and does not outlive the call of the executor.
class Task {
  public:
    template <class F>
    requires(!std::same_as<std::remove_cvref_t<F>, Task> && std::is_invocable_v<const F&, Index>)
        // NOLINTNEXTLINE(bugprone-forwarding-reference-overload): constrained
        Task(const F& f)
        : object_(std::addressof(f)), call_([](const void* object, Index i) { (*static_cast<const F*>(object))(i); }) {}

    void operator()(Index i) const { call_(object_, i); }

  private:
    const void* object_;
    void (*call_)(const void*, Index);
};

/// Where work runs: a callable `executor(n, task)` that runs `task(i)` once for every `i` in `[0, n)`, in any order
/// and on any threads, and returns when all of them are done. The empty executor runs everything in the calling thread.
///
/// A cache or layer keeps its executor for life and calls it a few times in each call of its own; calls are never
/// nested, but come from several threads at once where the caches are used by several. An executor must not throw: half
/// of the work would be done, so the program ends with std::terminate. Nor may it run a piece twice or leave one out,
/// which gives other results; builds with assertions (without NDEBUG) notice that and stop. Its threads need the
/// caller's rounding mode and, like any thread that calls the library, a stack of 128 KiB, or of 64 KiB where all is
/// float or of 16 bits: measured with gcc and clang, optimising for x86-64, a backward pass in double uses up to 112
/// KiB and in float 64 KiB, with AVX-512; with AVX2 91 KiB and 51 KiB. Results are then bitwise identical whatever the
/// executor and its number of threads.
///
/// Threads pay where there are several pieces, each of which is worth more than waking a thread. In a call on a head
/// the pieces are spans of 512 of its keys, in a layer those of all its heads and panels of 64 columns of its weights,
/// in a batch those of all its caches. A single token onto one head's cache of up to 512 tokens is one piece: it gains
/// nothing.
using Executor = std::function<void(Index n, Task task)>;

#ifdef _OPENMP
/// An executor on OpenMP with `threads` threads, or OpenMP's own choice where it is 0. There only in programs that are
/// built with OpenMP. Throws std::invalid_argument if `threads` is negative.
///
/// OpenMP's threads spin while they wait for the next call, unless the environment variable OMP_WAIT_POLICY is
/// `passive` when the program starts. Where other work keeps the cores busy, set it: a call of 0.4 ms was seen to take
/// 48 ms. A child process after `fork` must not use an executor that its parent has used, as OpenMP's threads are not
/// in it and it would wait for them for ever. The environment variable OMP_STACKSIZE sets the stack of its threads.
inline Executor openmp_executor(int threads = 0) {
    if (threads < 0) detail::fail("openmp_executor", "threads is ", Index(threads), " but must be at least 0");
    return [threads](Index n, Task task) {
        if (threads > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
            for (Index i = 0; i < n; ++i) task(i);
        } else {
#pragma omp parallel for schedule(dynamic, 1)
            for (Index i = 0; i < n; ++i) task(i);
        }
    };
}
#endif

namespace detail {

#ifndef EIGEN_NO_DEBUG
// Which pieces an executor has run: how many, and a sum over them that no other pieces are likely to have.
class RunPieces {
  public:
    void add(Index piece) {
        count_.fetch_add(1, std::memory_order_relaxed);
        sum_.fetch_add(scrambled(piece), std::memory_order_relaxed);
    }
    // Whether these are the pieces of [0, n), once each.
    bool are_all_of(Index n) const {
        std::uint64_t sum = 0;
        for (Index i = 0; i < n; ++i) sum += scrambled(i);
        return count_ == n && sum_ == sum;
    }

  private:
    // The mixing function of splitmix64, one to one.
    static std::uint64_t scrambled(Index piece) {
        std::uint64_t x = std::uint64_t(piece) + 0x9e3779b97f4a7c15U;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
        return x ^ (x >> 31);
    }

    std::atomic<Index> count_ = 0;
    std::atomic<std::uint64_t> sum_ = 0;
};
#endif

template <class F>
void run(const Executor& executor, Index n, const F& piece) noexcept {
    if (executor && n > 1) {
#ifndef EIGEN_NO_DEBUG
        RunPieces done;
        const auto counted = [&](Index i) {
            eigen_assert(i >= 0 && i < n && "the executor ran a piece that is not there");
            piece(i);
            done.add(i);
        };
        executor(n, Task(counted));
        eigen_assert(done.are_all_of(n) && "the executor ran a piece twice or left one out");
#else
        executor(n, Task(piece));
#endif
    } else {
        for (Index i = 0; i < n; ++i) piece(i);
    }
}

// For what is done once a row, and not once a row and key: with a single row it is not worth a barrier.
inline const Executor& executor_for_rows(const Executor& executor, Index rows) {
    static const Executor serial;
    return rows == 1 ? serial : executor;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
