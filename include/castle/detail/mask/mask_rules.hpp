// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/mask/mask_rule.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

class FullRule final : public RowRule<FullRule> {
  public:
    std::uint64_t of_row(Index, Index p, Index keys) const { return range_word(0, keys, p); }
    KeyRange reach(Index, Index) const override { return {0, every_key}; }
    bool sees_itself() const override { return true; }
};

// The last `window` tokens and the first `kept`, but no later ones.
class WindowRule final : public RowRule<WindowRule> {
  public:
    WindowRule(Index window, Index kept) : window_(window), kept_(kept) {}

    std::uint64_t of_row(Index row, Index p, Index) const {
        return range_word(oldest(row), row + 1, p) | range_word(0, (std::min)(kept_, row + 1), p);
    }
    KeyRange reach(Index first, Index end) const override { return {kept_ > 0 ? 0 : oldest(first), end}; }
    bool sees_itself() const override { return true; }

  private:
    Index oldest(Index row) const { return window_ > row ? 0 : row - window_ + 1; }

    Index window_;
    Index kept_;
};

class PrefixRule final : public RowRule<PrefixRule> {
  public:
    explicit PrefixRule(Index tokens) : tokens_(tokens) {}

    std::uint64_t of_row(Index row, Index p, Index) const { return range_word(0, end_of(row), p); }
    KeyRange reach(Index first, Index end) const override { return {0, (std::max)(end_of(first), end)}; }
    bool sees_itself() const override { return true; }

  private:
    Index end_of(Index row) const { return row < tokens_ ? tokens_ : row + 1; }

    Index tokens_;
};

// What a mask of modalities adds to the causal one: later keys for the rows of some tokens.
class ModalityRule final : public RowRule<ModalityRule> {
  public:
    ModalityRule(std::vector<bool> visual, bool sees_visual, bool sees_text)
        : visual_(std::move(visual)),
          later_(std::size_t(ceil_div(Index(visual_.size()), panel_size))),
          last_visual_(-1),
          end_of_later_(0) {
        for (Index key = 0; key < Index(visual_.size()); ++key) {
            if (visual_[std::size_t(key)]) last_visual_ = key;
            if (!(visual_[std::size_t(key)] ? sees_visual : sees_text)) continue;
            later_[std::size_t(key / panel_size)] |= std::uint64_t(1) << (key % panel_size);
            end_of_later_ = key + 1;
        }
    }

    std::uint64_t of_row(Index row, Index p, Index) const {
        const std::uint64_t causal = range_word(0, row + 1, p);
        return is_visual(row) && p < Index(later_.size()) ? causal | later_[std::size_t(p)] : causal;
    }
    KeyRange reach(Index first, Index end) const override {
        return {0, first <= last_visual_ ? (std::max)(end_of_later_, end) : end};
    }
    bool sees_itself() const override { return true; }

  private:
    bool is_visual(Index row) const { return row < Index(visual_.size()) && visual_[std::size_t(row)]; }

    std::vector<bool> visual_;
    std::vector<std::uint64_t> later_;
    Index last_visual_;
    Index end_of_later_;
};

// A boolean matrix, a word for a row and a panel.
class MatrixRule final : public RowRule<MatrixRule> {
  public:
    // sees(row, key) for all of them.
    template <class Sees>
    MatrixRule(Index rows, Index keys, const Sees& sees)
        : panels_(ceil_div(keys, panel_size)), reach_(std::size_t(rows)), words_(std::size_t(rows * panels_)) {
        for (Index row = 0; row < rows; ++row) {
            KeyRange& reach = reach_[std::size_t(row)];
            reach = {every_key, 0};
            for (Index key = 0; key < keys; ++key) {
                if (!sees(row, key)) continue;
                words_[std::size_t(row * panels_ + key / panel_size)] |= std::uint64_t(1) << (key % panel_size);
                reach = {(std::min)(reach.begin, key), key + 1};
            }
        }
    }

    std::uint64_t of_row(Index row, Index p, Index) const {
        return p < panels_ ? words_[std::size_t(row * panels_ + p)] : 0;
    }
    KeyRange reach(Index first, Index end) const override {
        KeyRange all{every_key, 0};
        for (Index row = first; row < end; ++row) {
            const KeyRange& own = reach_[std::size_t(row)];
            all = {(std::min)(all.begin, own.begin), (std::max)(all.end, own.end)};
        }
        return {(std::min)(all.begin, all.end), all.end};
    }
    Index rows() const override { return Index(reach_.size()); }

  private:
    Index panels_;
    std::vector<KeyRange> reach_;
    std::vector<std::uint64_t> words_;
};

// A function of the user's.
template <class Sees>
class PredicateRule final : public RowRule<PredicateRule<Sees>> {
  public:
    explicit PredicateRule(Sees sees) : sees_(std::move(sees)) {}

    std::uint64_t of_row(Index row, Index p, Index keys) const {
        const Index first = p * panel_size, count = (std::min)(keys - first, panel_size);
        std::uint64_t word = 0;
        for (Index j = 0; j < count; ++j) word |= std::uint64_t(sees_(row, first + j) ? 1 : 0) << j;
        return word;
    }
    KeyRange reach(Index, Index) const override { return {0, every_key}; }

  private:
    Sees sees_;
};

// Where both masks, or one of them, let a row see a key.
template <bool both>
class PairRule final : public MaskRule {
  public:
    PairRule(std::shared_ptr<const MaskRule> a, std::shared_ptr<const MaskRule> b)
        : a_(std::move(a)), b_(std::move(b)) {}

    void words(Index first, Index end, Index p, Index keys, std::uint64_t* to) const override {
        a_->words(first, end, p, keys, to);
        for (Index row = first; row < end; ++row) {
            const std::uint64_t other = b_->word(row, p, keys);
            to[row - first] = both ? to[row - first] & other : to[row - first] | other;
        }
    }
    KeyRange reach(Index first, Index end) const override {
        const KeyRange a = a_->reach(first, end), b = b_->reach(first, end);
        if (!both) return {(std::min)(a.begin, b.begin), (std::max)(a.end, b.end)};
        const Index last = (std::min)(a.end, b.end);
        return {(std::min)((std::max)(a.begin, b.begin), last), last};
    }
    Index needs(Index first, Index end) const override {
        return both ? MaskRule::needs(first, end) : (std::max)(a_->needs(first, end), b_->needs(first, end));
    }
    Index rows() const override { return (std::min)(a_->rows(), b_->rows()); }
    bool sees_itself() const override {
        return both ? a_->sees_itself() && b_->sees_itself() : a_->sees_itself() || b_->sees_itself();
    }

  private:
    std::shared_ptr<const MaskRule> a_;
    std::shared_ptr<const MaskRule> b_;
};

// Documents one after the other, and a mask within each of them, whose positions begin anew.
class DocumentsRule final : public RowRule<DocumentsRule> {
  public:
    // One rule for all documents or one for each; null where it is the causal one.
    DocumentsRule(std::vector<Index> lengths, std::vector<std::shared_ptr<const MaskRule>> within)
        : lengths_(std::move(lengths)), within_(std::move(within)) {
        ends_.reserve(lengths_.size());
        Index end = 0;
        for (const Index length : lengths_) ends_.push_back(end += length);
    }

    std::uint64_t of_row(Index row, Index p, Index keys) const {
        const Index i = document_of(row), start = start_of(i), end = ends_[std::size_t(i)];
        const std::uint64_t own = range_word(start, end, p);
        if (own == 0) return 0;
        // The keys [first, first + 64) of the document: those of two of its panels.
        const Index first = p * panel_size - start;
        const Index panel = first >= 0 ? first / panel_size : -1, shift = first - panel * panel_size;
        const MaskRule* rule = rule_of(i);
        if (rule == nullptr) return own & range_word(start, row + 1, p);
        const auto word = [&](Index q) {
            return q < 0 ? 0 : rule->word(row - start, q, (std::min)(keys, end) - start);
        };
        const std::uint64_t low = word(panel);
        return own & (shift == 0 ? low : low >> shift | word(panel + 1) << (panel_size - shift));
    }
    KeyRange reach(Index first, Index end) const override {
        const Index a = document_of(first), b = document_of(end - 1);
        const Index start = start_of(a), last_start = start_of(b);
        const KeyRange of_first = reach_of(rule_of(a), first - start, (std::min)(end, ends_[std::size_t(a)]) - start);
        const KeyRange of_last = reach_of(rule_of(b), (std::max)(first, last_start) - last_start, end - last_start);
        const Index length = lengths_[std::size_t(b)];
        return {start + (std::min)(of_first.begin, lengths_[std::size_t(a)]),
                last_start + (std::min)(of_last.end, length)};
    }
    Index rows() const override { return ends_.empty() ? 0 : ends_.back(); }
    bool sees_itself() const override {
        return std::all_of(within_.begin(), within_.end(),
                           [](const auto& rule) { return rule == nullptr || rule->sees_itself(); });
    }
    std::span<const Index> lengths() const override { return lengths_; }
    std::shared_ptr<const MaskRule> within(Index i) const override {
        return within_[within_.size() == 1 ? 0 : std::size_t(i)];
    }

  private:
    // The one that the row belongs to.
    Index document_of(Index row) const {
        return Index(std::upper_bound(ends_.begin(), ends_.end(), row) - ends_.begin());
    }
    const MaskRule* rule_of(Index i) const { return within_[within_.size() == 1 ? 0 : std::size_t(i)].get(); }
    Index start_of(Index i) const { return ends_[std::size_t(i)] - lengths_[std::size_t(i)]; }

    std::vector<Index> lengths_;
    std::vector<Index> ends_;
    std::vector<std::shared_ptr<const MaskRule>> within_;
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
