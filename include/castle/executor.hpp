// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <type_traits>

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
/// of the work would be done, so the program ends with std::terminate. Its threads need the caller's rounding mode.
/// Results then have the same bits whatever the executor and its number of threads.
using Executor = std::function<void(Index n, Task task)>;

#ifdef _OPENMP
/// An executor on OpenMP with `threads` threads, or OpenMP's own choice where it is 0. There only in programs that
/// are built with OpenMP.
inline Executor openmp_executor(int threads = 0) {
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

template <class F>
void run(const Executor& executor, Index n, const F& piece) noexcept {
    if (executor && n > 1) {
        executor(n, Task(piece));
    } else {
        for (Index i = 0; i < n; ++i) piece(i);
    }
}

// For what is done once a row, and not once a row and key: with a single row it is not worth a meeting of threads.
inline const Executor& executor_for_rows(const Executor& executor, Index rows) {
    static const Executor serial;
    return rows == 1 ? serial : executor;
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
