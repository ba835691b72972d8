// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <vector>

#include <castle/executor.hpp>

#include "support/generators.hpp"

// Executors that bring out what depends on where and when a piece runs.
namespace support {

/// Threads that wait for work. Pieces go to whoever asks first; the calling thread works too.
class ThreadPool {
  public:
    explicit ThreadPool(int threads) {
        for (int i = 1; i < threads; ++i) {
            workers_.emplace_back([this] { serve(); });
        }
    }
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;
    ~ThreadPool() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        changed_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    /// Refers to the pool, which has to outlive it.
    castle::Executor executor() {
        return [this](Index n, castle::Task task) { run(n, task); };
    }

    /// Pieces run so far.
    Index pieces() const { return pieces_; }

  private:
    void run(Index n, castle::Task task) {
        std::unique_lock lock(mutex_);
        task_ = task;
        next_ = 0;
        end_ = n;
        unfinished_ = n;
        pieces_ += n;
        changed_.notify_all();
        work(lock);
        changed_.wait(lock, [this] { return unfinished_ == 0; });
        task_.reset();
    }

    void serve() {
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return stopping_ || next_ < end_; });
            if (stopping_) return;
            work(lock);
        }
    }

    void work(std::unique_lock<std::mutex>& lock) {
        while (next_ < end_) {
            const Index i = next_++;
            const castle::Task task = *task_;
            lock.unlock();
            task(i);
            lock.lock();
            if (--unfinished_ == 0) changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::optional<castle::Task> task_;
    Index next_ = 0;
    Index end_ = 0;
    Index unfinished_ = 0;
    Index pieces_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> workers_;
};

/// One thread, last piece first.
inline castle::Executor reversed_executor() {
    return [](Index n, castle::Task task) {
        for (Index i = n; i-- > 0;) task(i);
    };
}

/// One thread, a new random order in every call.
inline castle::Executor shuffled_executor(std::uint64_t seed) {
    return [random = Random(seed)](Index n, castle::Task task) mutable {
        std::vector<Index> order(static_cast<std::size_t>(n));
        std::iota(order.begin(), order.end(), Index(0));
        for (Index i = n - 1; i > 0; --i) {
            std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.integer(0, i))]);
        }
        for (const Index i : order) task(i);
    };
}

}  // namespace support
