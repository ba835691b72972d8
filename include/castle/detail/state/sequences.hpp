// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include <castle/detail/state/sequence_state.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// The states of some sequences, wherever they are: one, or those that a function of the caller's gives by number.
// Refers to what it was made from and does not outlive it.
template <Scalar T>
class Sequences {
  public:
    Sequences(SequenceState<T>& only)
        : object_(std::addressof(only)), state_([](const void* object, Index) -> SequenceState<T>& {
              return *static_cast<SequenceState<T>*>(const_cast<void*>(object));
          }) {}
    template <class F>
    explicit Sequences(const F& f)
        : object_(std::addressof(f)),
          state_([](const void* object, Index i) -> SequenceState<T>& { return (*static_cast<const F*>(object))(i); }) {
    }

    SequenceState<T>& operator[](Index i) const { return state_(object_, i); }

  private:
    const void* object_;
    SequenceState<T>& (*state_)(const void*, Index);
};

// Calls f(first, end) for neighbouring sequences of so many tokens that go through their steps together: as many as
// begin them with no more than `most` rows, or one with more; rows(tokens) is what a sequence begins with.
template <class Rows, class F>
void for_batches(std::span<const Index> counts, Index most, const Rows& rows, const F& f) {
    const Index sequences = Index(counts.size());
    for (Index first = 0; first < sequences;) {
        Index end = first, together = 0;
        for (; end < sequences; ++end) {
            const Index more = rows(counts[std::size_t(end)]);
            if (together > 0 && together + more > most) break;
            together += more;
        }
        f(first, end);
        first = end;
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
