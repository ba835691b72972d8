// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>

#include <castle/detail/simd/aligned_buffer.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A part of a slab of memory, held by one owner or by several. Who holds it alone may write to it.
template <class T>
class Panel {
  public:
    // Memory for panels that lie one after the other, and how many hold each of them.
    class Slab {
      public:
        Slab(Index panels, Index elements)
            : panels_(panels),
              elements_(elements),
              memory_(panels * elements),
              holders_(new std::atomic<Index>[std::size_t(panels)]) {
            for (Index i = 0; i < panels; ++i) holders_[std::size_t(i)] = 0;
        }

      private:
        friend Panel;

        Index panels_;
        Index elements_;
        AlignedBuffer<T> memory_;
        std::unique_ptr<std::atomic<Index>[]> holders_;
    };

    Panel() = default;
    // The i-th of a slab.
    Panel(std::shared_ptr<Slab> slab, Index i)
        : slab_(std::move(slab)),
          data_(slab_->memory_.data() + i * slab_->elements_),
          holders_(&slab_->holders_[std::size_t(i)]) {
        holders_->fetch_add(1, std::memory_order_relaxed);
    }
    Panel(Panel&& other) noexcept
        : slab_(std::move(other.slab_)),
          data_(std::exchange(other.data_, nullptr)),
          holders_(std::exchange(other.holders_, nullptr)) {}
    Panel& operator=(Panel&& other) noexcept {
        Panel old(std::move(*this));
        slab_ = std::move(other.slab_);
        data_ = std::exchange(other.data_, nullptr);
        holders_ = std::exchange(other.holders_, nullptr);
        return *this;
    }
    // What this holder has read, it has read before the next one that is alone writes.
    ~Panel() {
        if (holders_ != nullptr) holders_->fetch_sub(1, std::memory_order_release);
    }

    // The same panel for one more holder.
    Panel share() const {
        Panel other;
        if (holders_ == nullptr) return other;
        other.slab_ = slab_;
        other.data_ = data_;
        other.holders_ = holders_;
        holders_->fetch_add(1, std::memory_order_relaxed);
        return other;
    }

    // The panel after it in its slab, zero, if there is one that nobody holds.
    Panel take_next() const {
        Panel next;
        if (holders_ == nullptr || holders_ + 1 == slab_->holders_.get() + slab_->panels_) return next;
        Index nobody = 0;
        // What its last holder has done with it is done.
        if (!holders_[1].compare_exchange_strong(nobody, 1, std::memory_order_acquire, std::memory_order_relaxed))
            return next;
        next.slab_ = slab_;
        next.data_ = data_ + slab_->elements_;
        next.holders_ = holders_ + 1;
        std::fill_n(next.data_, slab_->elements_, T(0));
        return next;
    }

    explicit operator bool() const { return data_ != nullptr; }
    T* data() const { return data_; }
    bool is_shared() const { return holders_ != nullptr && holders_->load(std::memory_order_acquire) > 1; }

  private:
    std::shared_ptr<Slab> slab_;
    T* data_ = nullptr;
    std::atomic<Index>* holders_ = nullptr;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
