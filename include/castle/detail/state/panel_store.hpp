// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include <castle/detail/state/panel.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Panels of equal size, zero at first, which stay where they are unless they are shared. Those that come together lie
// one after the other, so that reading them in order is one stream.
//
// At full size, which is as many as are needed together, the store is a ring: panel p is slot p mod size(). While there
// is room for fewer, that is p itself, so that neither growing nor sharing the first ones moves any.
template <class T>
class PanelStore {
  public:
    using Panels = std::vector<Panel<T>>;

    explicit PanelStore(Index panel_elements) : panel_elements_(panel_elements) {}

    Index size() const { return Index(panels_.size()); }
    // Elements of all panels, of those that other stores hold too, and of a store of so many panels.
    Index elements() const { return elements_for(size()); }
    Index elements_for(Index panels) const { return (std::max)(panels, size()) * panel_elements_; }
    Index shared_elements() const {
        return panel_elements_ * Index(std::count_if(panels_.begin(), panels_.end(),
                                                     [](const Panel<T>& panel) { return panel.is_shared(); }));
    }

    // The place of panel p.
    Index slot(Index p) const { return p < size() ? p : p % size(); }

    T* operator[](Index p) { return panels_[std::size_t(slot(p))].data(); }
    const T* operator[](Index p) const { return panels_[std::size_t(slot(p))].data(); }
    bool is_shared(Index p) const { return panels_[std::size_t(slot(p))].is_shared(); }

    // To grow: the panels that are missing to `panels`, if any, to be added. This may throw, and changes nothing that
    // can be seen; adding does not throw.
    Panels missing(Index panels) {
        if (panels <= size()) return {};
        Panels fresh = taken_again(panels - size());
        Panels made = make_panels(panels - size() - Index(fresh.size()), panel_elements_);
        fresh.reserve(fresh.size() + made.size());
        for (Panel<T>& panel : made) fresh.push_back(std::move(panel));
        const std::size_t needed = panels_.size() + fresh.size();
        if (needed > panels_.capacity()) panels_.reserve((std::max)(needed, 2 * panels_.capacity()));
        return fresh;
    }
    void add(Panels fresh) {
        for (Panel<T>& panel : fresh) panels_.push_back(std::move(panel));
    }

    // The first `panels` panels, or all, for one more store.
    PanelStore share(Index panels) const {
        PanelStore other(panel_elements_);
        const Index count = (std::min)(panels, size());
        other.panels_.reserve(std::size_t(count));
        for (Index p = 0; p < count; ++p) other.panels_.push_back(panels_[std::size_t(p)].share());
        return other;
    }

    // Before writing to the panels [first, end): those that are shared are copied. Where it throws, all are as they
    // were.
    void own(Index first, Index end) {
        end = (std::min)(end, first + size());
        const auto place = [&](Index p) -> Panel<T>& { return panels_[std::size_t(slot(p))]; };
        Index shared = 0;
        for (Index p = first; p < end; ++p) shared += place(p).is_shared() ? 1 : 0;
        if (shared == 0) return;
        Panels fresh = make_lone_panels(shared, panel_elements_);
        for (Index p = first; p < end; ++p) {
            if (!place(p).is_shared() || fresh.empty()) continue;
            std::copy_n(place(p).data(), panel_elements_, fresh.back().data());
            place(p) = std::move(fresh.back());
            fresh.pop_back();
        }
    }

    // So many panels of so many elements, each in memory of its own, which goes when its holders do: what forks have
    // for themselves comes and goes panel by panel.
    static Panels make_lone_panels(Index count, Index elements) {
        Panels fresh;
        if (count == 0) return fresh;
        fresh.reserve(std::size_t(count));
        for (Index i = 0; i < count; ++i) {
            fresh.emplace_back(std::make_shared<typename Panel<T>::Slab>(1, elements), 0);
        }
        return fresh;
    }

  private:
    // As many as there are, at most `count`, of those that nobody holds any more, yet which are still there because
    // this store holds others of their slab: the caches that had reserved them are gone.
    Panels taken_again(Index count) const {
        Panels taken;
        for (auto held = panels_.rbegin(); held != panels_.rend(); ++held) {
            const Panel<T>* before = &*held;
            while (Index(taken.size()) < count) {
                Panel<T> next = before->take_next();
                if (!next) break;
                taken.push_back(std::move(next));
                before = &taken.back();
            }
        }
        return taken;
    }
    // So many new ones, one after the other.
    static Panels make_panels(Index count, Index elements) {
        Panels fresh;
        if (count == 0) return fresh;
        if (count > (std::numeric_limits<Index>::max)() / elements) throw std::bad_array_new_length();
        const auto slab = std::make_shared<typename Panel<T>::Slab>(count, elements);
        fresh.reserve(std::size_t(count));
        for (Index i = 0; i < count; ++i) fresh.emplace_back(slab, i);
        return fresh;
    }

    Index panel_elements_;
    Panels panels_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
