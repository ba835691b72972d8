// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include <castle/detail/aligned_buffer.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Panels of equal size, zero at first, which never move once they are there. Those that come together lie one after
// the other, so that reading them in order is one stream.
template <Scalar T>
class PanelStore {
  public:
    explicit PanelStore(Index panel_numbers) : panel_numbers_(panel_numbers) {}

    Index size() const { return Index(panels_.size()); }
    Index numbers() const { return size() * panel_numbers_; }

    T* operator[](Index p) { return panels_[std::size_t(p)]; }
    const T* operator[](Index p) const { return panels_[std::size_t(p)]; }

    // To grow: memory for the panels that are missing to `panels`, if any, to be added. This may throw, and changes
    // nothing that can be seen; adding does not throw.
    AlignedBuffer<T> missing(Index panels) {
        const Index count = panels - size();
        if (count <= 0) return {};
        if (count > std::numeric_limits<Index>::max() / panel_numbers_) throw std::bad_array_new_length();
        AlignedBuffer<T> slab(count * panel_numbers_);
        make_room(slabs_, slabs_.size() + 1);
        make_room(panels_, std::size_t(panels));
        return slab;
    }
    void add(AlignedBuffer<T> slab) {
        if (slab.size() == 0) return;
        for (Index i = 0; i < slab.size(); i += panel_numbers_) panels_.push_back(slab.data() + i);
        slabs_.push_back(std::move(slab));
    }

  private:
    template <class E>
    static void make_room(std::vector<E>& elements, std::size_t size) {
        if (size > elements.capacity()) elements.reserve(std::max(size, 2 * elements.capacity()));
    }

    Index panel_numbers_;
    std::vector<T*> panels_;
    std::vector<AlignedBuffer<T>> slabs_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
