// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/scalar.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Room for N elements in place, which nothing sets: an array of Eigen's 16-bit scalars sets all of them to 0.
template <Scalar T, Index N>
class Uninitialized {
  public:
    T* data() { return reinterpret_cast<T*>(bytes_); }
    const T* data() const { return reinterpret_cast<const T*>(bytes_); }

  private:
    alignas(cache_line) unsigned char bytes_[std::size_t(N) * sizeof(T)];
};

// Asks the system for huge pages behind [memory, memory + bytes) where whole ones fit, as a wish that it may ignore.
inline void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::size_t huge_page = std::size_t(2) << 20;
    std::size_t left = bytes;
    void* first = std::align(huge_page, huge_page, memory, left);
    if (first != nullptr) madvise(first, left / huge_page * huge_page, MADV_HUGEPAGE);
#endif
}

// Elements on cache-line boundaries, zero at first. Owns them; moves, does not copy.
//
// A large buffer stands on huge pages where it can: decoding streams through all of a cache, and with small pages it
// spends a twentieth of its time on looking up where they are.
template <class T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;

    // Of no elements it allocates nothing.
    explicit AlignedBuffer(Index size) : data_(size > 0 ? allocate(size) : nullptr), size_(size) {
        std::fill(data_.get(), data_.get() + size, T(0));
    }

    AlignedBuffer copy() const {
        AlignedBuffer other(size_);
        std::copy_n(data(), size_, other.data());
        return other;
    }

    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    Index size() const { return size_; }

  private:
    static constexpr std::align_val_t alignment{std::size_t(cache_line)};

    struct Free {
        void operator()(T* p) const { ::operator delete(p, alignment); }
    };

    static T* allocate(Index size) {
        if (size > (std::numeric_limits<Index>::max)() / Index(sizeof(T))) throw std::bad_array_new_length();
        const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(T);
        void* memory = ::operator new(bytes, alignment);
        prefer_huge_pages(memory, bytes);
        return static_cast<T*>(memory);
    }

    std::unique_ptr<T[], Free> data_;
    Index size_ = 0;
};

// A container that a move to itself leaves as it is; a std::vector may be empty after that.
template <class Container>
struct SelfMovable : Container {
    SelfMovable(Container container) noexcept : Container(std::move(container)) {}
    SelfMovable(SelfMovable&&) = default;
    SelfMovable& operator=(SelfMovable&& other) noexcept {
        if (this != &other) Container::operator=(std::move(other));
        return *this;
    }
    ~SelfMovable() = default;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
