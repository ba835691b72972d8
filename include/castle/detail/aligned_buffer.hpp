// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>

#include <castle/types.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Numbers on cache-line boundaries, zero at first. Owns them; moves, does not copy.
template <Scalar T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;

    explicit AlignedBuffer(Index size) : data_(allocate(size)), size_(size) {
        std::fill(data_.get(), data_.get() + size, T(0));
    }

    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    Index size() const { return size_; }

  private:
    static constexpr std::align_val_t alignment{64};

    struct Free {
        void operator()(T* p) const { ::operator delete(p, alignment); }
    };

    static T* allocate(Index size) {
        if (size > std::numeric_limits<Index>::max() / Index(sizeof(T))) throw std::bad_array_new_length();
        return static_cast<T*>(::operator new(static_cast<std::size_t>(size) * sizeof(T), alignment));
    }

    std::unique_ptr<T[], Free> data_;
    Index size_ = 0;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
