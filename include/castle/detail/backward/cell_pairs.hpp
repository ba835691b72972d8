// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/forward/panel_scores.hpp>
#include <castle/detail/score/absorption.hpp>
#include <castle/detail/score/mask_words.hpp>
#include <castle/detail/simd/tile.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Which pairs of a cell's tokens and keys a product takes: all, those within a range for each row of its second factor,
// or those of the words of the tokens. Where words leave a pair out the second factor is 0.
struct KeptPairs {
    const SmallRange* ranges = nullptr;
    const std::uint64_t* words = nullptr;
    bool transposed = false;  // rows of the second factor are keys
};

// Which tokens of a block and which keys of a cell, some columns of a panel, have to do with each other: who sees whom,
// and who absorbs whom. Without a mask positions say so, as ranges; under a mask words do, from the cell's first column
// on.
template <Scalar T>
class CellPairs {
  public:
    CellPairs(const BlockRows<T>& rows, const AbsorbedTokens& tokens, Index window, Index p)
        : rows_(rows), tokens_(tokens), window_(window), p_(p) {}

    Index column() const { return column_; }  // of the panel, where the cell begins
    Index key() const { return key_; }        // and which key that is
    // Whether the keys are those of the block, not all of which every token sees, or come after it.
    bool is_diagonal() const { return key_ >= rows_.origin; }
    // Whether keys absorb tokens; under a mask where `some` do, gates of the others are to be closed.
    Cover absorbing() const { return absorbing_; }
    // The same without a mask.
    Absorbed absorbed() const { return absorbed_; }
    const BlockWords& absorbed_words() const { return absorbed_words_; }
    bool is_masked() const { return is_masked_; }
    // Whether there are pairs that do not see each other.
    bool is_partly_seen() const { return is_masked_ ? !sees_all_ : is_diagonal(); }
    const std::uint64_t* seen_words() const { return seen_words_.data(); }

    // The cell from column c on, without a mask. Only cells of one block of keys have pairs that are left out.
    void begin(Index c, Absorbed absorbed) {
        set_column(c);
        absorbed_ = absorbed;
        absorbing_ = absorbed == Absorbed::none ? Cover::none : absorbed == Absorbed::some ? Cover::some : Cover::all;
        if (!is_diagonal() && absorbed != Absorbed::some) return;
        for (Index i = 0; i < rows_.count(); ++i) {
            visible_[i] = visible_keys(i, block_size);
            absorbing_keys_[i] = absorbing_keys(i, block_size);
        }
        for (Index s = 0; s < block_size; ++s) {
            seeing_[s] = seeing_tokens(s);
            taken_[s] = absorbed_tokens(s);
        }
    }

    // The same of Cols keys under a mask, from the panel's words; whether any token sees any of them.
    template <Index Cols>
    bool begin(Index c, const BlockWords& seen, const BlockWords& absorbed) {
        set_column(c);
        is_masked_ = true;
        const std::uint64_t columns = range_word(c, c + Cols, 0);
        for (Index i = 0; i < rows_.count(); ++i) {
            seen_words_[std::size_t(i)] = (seen[std::size_t(i)] & columns) >> c;
            absorbed_words_[std::size_t(i)] = (absorbed[std::size_t(i)] & columns) >> c;
        }
        sees_all_ = true;
        std::uint64_t any_seen = 0, any_absorbed = 0;
        for (Index i = 0; i < rows_.count(); ++i) {
            sees_all_ = sees_all_ && seen_words_[std::size_t(i)] == columns >> c;
            any_seen |= seen_words_[std::size_t(i)];
            any_absorbed |= absorbed_words_[std::size_t(i)];
        }
        absorbing_ = any_absorbed != 0 ? Cover::some : Cover::none;
        return any_seen != 0;
    }

    // What goes from tokens to keys and back: between those that see each other, and those of which one absorbs the
    // other.
    KeptPairs visible() const { return of(is_diagonal(), visible_, seen_or_all(), false); }
    KeptPairs seeing() const { return of(is_diagonal(), seeing_, seen_or_all(), true); }
    KeptPairs absorbing_pairs() const {
        return of(is_partly_absorbed(), absorbing_keys_, absorbed_words_.data(), false);
    }
    KeptPairs taken() const { return of(is_partly_absorbed(), taken_, absorbed_words_.data(), true); }

    // For each of n keys a word over tokens, of pairs that are kept by words.
    std::array<std::uint64_t, std::size_t(panel_size)> by_key(const KeptPairs& kept, Index n) const {
        return transposed_words(kept.words, rows_.count(), n);
    }

    // 0 in place of what a row of token i has of keys that it does not see, or that do not absorb it.
    template <Index Cols>
    void clear_unseen(Index i, Compute<T>* row) const {
        if (is_masked_) {
            if (!sees_all_) keep_columns<Cols>(seen_words_[std::size_t(i)], Compute<T>(0), row);
        } else if (is_diagonal()) {
            clear_outside(row, visible_keys(i, Cols), Cols);
        }
    }
    template <Index Cols>
    void clear_unabsorbed(Index j, Compute<T>* row) const {
        if (is_masked_) {
            keep_columns<Cols>(absorbed_words_[std::size_t(j)], Compute<T>(0), row);
        } else if (is_partly_absorbed()) {
            clear_outside(row, absorbing_keys(j, Cols), Cols);
        }
    }

  private:
    void set_column(Index c) {
        column_ = c;
        key_ = p_ * panel_size + c;
    }

    bool is_partly_absorbed() const { return absorbed_ == Absorbed::some; }
    const std::uint64_t* seen_or_all() const { return sees_all_ ? nullptr : seen_words_.data(); }
    KeptPairs of(bool has_ranges, const SmallRange* ranges, const std::uint64_t* words, bool transposed) const {
        return {.ranges = !is_masked_ && has_ranges ? ranges : nullptr,
                .words = is_masked_ ? words : nullptr,
                .transposed = transposed};
    }

    ColumnRange visible_keys(Index i, Index count) const {
        return {0, std::clamp<Index>(rows_.origin + i + 1 - key_, 0, count)};
    }
    ColumnRange seeing_tokens(Index s) const {
        return {std::clamp<Index>(key_ + s - rows_.origin, 0, block_size), block_size};
    }
    ColumnRange absorbing_keys(Index j, Index count) const {
        const ColumnRange columns = tokens_.columns(j, p_);
        return {std::clamp<Index>(columns.begin - column_, 0, count),
                std::clamp<Index>(columns.end - column_, 0, count)};
    }
    ColumnRange absorbed_tokens(Index s) const {
        const Index first = key_ + s + 1 - rows_.origin;
        const Index begin = std::clamp<Index>(first, 0, block_size);
        const Index end = window_ < block_size - begin + rows_.origin ? first + window_ : block_size;
        return {begin, std::clamp<Index>(end, begin, block_size)};
    }

    static void clear_outside(Compute<T>* row, ColumnRange range, Index count) {
        std::fill(row, row + range.begin, Compute<T>(0));
        std::fill(row + range.end, row + count, Compute<T>(0));
    }

    const BlockRows<T>& rows_;
    const AbsorbedTokens& tokens_;
    Index window_;
    Index p_;
    Index column_ = 0;
    Index key_ = 0;
    Absorbed absorbed_ = Absorbed::none;
    Cover absorbing_ = Cover::none;
    bool is_masked_ = false;
    bool sees_all_ = false;
    BlockWords seen_words_;           // keys that a token sees
    BlockWords absorbed_words_;       // and that absorb it
    SmallRange visible_[block_size];  // the same as ranges
    SmallRange absorbing_keys_[block_size];
    SmallRange seeing_[block_size];  // tokens that see a key
    SmallRange taken_[block_size];   // and that it absorbs
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
