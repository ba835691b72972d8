// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include "support/eigen_allocations.hpp"

// Replaces the global operator new and delete by ones that count, and that fail on demand. For one translation unit of
// a program, that of the tests which need it.
namespace support {

class Allocations {
    // Takes hold of Eigen's allocations.
    class Hold {
      public:
        Hold() {
            on_eigen_allocation = [] { take(0); };
            Eigen::internal::set_is_malloc_allowed(false);
        }
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;
        ~Hold() { Eigen::internal::set_is_malloc_allowed(true); }
    };

  public:
    /// Allocations so far, of the whole program; those of Eigen only within a Count or a Failure.
    static long count() { return count_; }
    /// The bytes that they asked for; without Eigen's.
    static long long bytes() { return bytes_; }
    /// Those of them that have not been given back.
    static long long live_bytes() { return live_bytes_; }

    /// Counts the allocations during its life.
    class Count {
      public:
        long allocations() const { return count() - before_; }

      private:
        Hold hold_;
        long before_ = count();
    };

    /// While it lives, the first `successes` allocations go well and all later ones throw std::bad_alloc.
    class Failure {
      public:
        explicit Failure(long successes) { left_ = successes; }
        Failure(const Failure&) = delete;
        Failure& operator=(const Failure&) = delete;
        ~Failure() { left_ = no_failure; }

      private:
        Hold hold_;
    };

    static void* allocate(std::size_t size, std::size_t alignment) {
        take(size);
        // The size stands in front; aligned_alloc wants a multiple of the alignment.
        const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
        void* p = rounded < size ? nullptr : std::aligned_alloc(alignment, front(alignment) + rounded);
        if (p == nullptr) throw std::bad_alloc();
        live_bytes_ += static_cast<long long>(size);
        char* memory = static_cast<char*>(p) + front(alignment);
        std::memcpy(memory - sizeof size, &size, sizeof size);
        return memory;
    }

    // Where gcc inlines this into a delete expression but not the matching new, it takes the two for a mismatch.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
    static void release(void* p, std::size_t alignment) noexcept {
        if (p == nullptr) return;
        char* memory = static_cast<char*>(p);
        std::size_t size = 0;
        std::memcpy(&size, memory - sizeof size, sizeof size);
        live_bytes_ -= static_cast<long long>(size);
        std::free(memory - front(alignment));
    }
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

  private:
    static std::size_t front(std::size_t alignment) { return std::max(alignment, alignof(std::max_align_t)); }

    static void take(std::size_t size) {
        ++count_;
        bytes_ += static_cast<long long>(size);
        if (left_ != no_failure) {
            if (left_ == 0) throw std::bad_alloc();
            --left_;
        }
    }

    static constexpr long no_failure = -1;
    static inline std::atomic<long> count_ = 0;
    static inline std::atomic<long long> bytes_ = 0;
    static inline std::atomic<long long> live_bytes_ = 0;
    static inline std::atomic<long> left_ = no_failure;
};

}  // namespace support

// The array and nothrow forms of the standard library call these.
void* operator new(std::size_t size) { return support::Allocations::allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return support::Allocations::allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { support::Allocations::release(p, alignof(std::max_align_t)); }
void operator delete(void* p, std::size_t) noexcept { support::Allocations::release(p, alignof(std::max_align_t)); }
void operator delete(void* p, std::align_val_t alignment) noexcept {
    support::Allocations::release(p, static_cast<std::size_t>(alignment));
}
void operator delete(void* p, std::size_t, std::align_val_t alignment) noexcept {
    support::Allocations::release(p, static_cast<std::size_t>(alignment));
}
