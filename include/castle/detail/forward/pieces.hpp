// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Numbers the work of some sequences' heads consecutively: each head of sequence i has count(i) pieces. Each sequence
// notes the number of its first piece, until the next numbering.
template <Scalar T>
class Pieces {
  public:
    template <class Count>
    Pieces(Index first, Index end, Index heads, const Sequences<T>& sequences, const Count& count)
        : first_(first), end_(end), heads_(heads), sequences_(sequences), of_each_(count(first)) {
        for (Index i = first; i < end; ++i) {
            const Index own = count(i);
            if (own != of_each_) of_each_ = 0;
            sequences[i].work().first_piece = total_;
            total_ += own * heads;
        }
    }

    // run_piece(i, h, k) for the k-th piece of head h of sequence i, for all of them.
    template <class F>
    void run(const Executor& executor, const F& run_piece) const {
        detail::run(executor, total_, [&](Index piece) {
            const Index i = of_each_ > 0 ? first_ + piece / (of_each_ * heads_) : sequence_of(piece);
            const Index own = piece - first_piece(i);
            const Index of_head = of_each_ > 0 ? of_each_ : (pieces_end(i) - first_piece(i)) / heads_;
            run_piece(i, own / of_head, own % of_head);
        });
    }

  private:
    Index first_piece(Index i) const { return sequences_[i].work().first_piece; }
    Index pieces_end(Index i) const { return i + 1 < end_ ? first_piece(i + 1) : total_; }

    // The last sequence that begins at this piece or before it. One without pieces begins where the next one does.
    Index sequence_of(Index piece) const {
        Index found = first_, end = end_;
        while (end - found > 1) {
            const Index middle = found + (end - found) / 2;
            (first_piece(middle) <= piece ? found : end) = middle;
        }
        return found;
    }

    Index first_;
    Index end_;
    Index heads_;
    Sequences<T> sequences_;
    Index of_each_;  // of each head, if all have as many, or 0
    Index total_ = 0;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
