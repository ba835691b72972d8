// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/check/message.hpp>
#include <castle/types.hpp>

// Masks: which keys a row sees. A mask belongs to a call, not to a cache; rows and keys are positions in the sequence.
//
// What a row does not see is left out of its sums, in both passes: whatever stands there reaches nothing. A lookahead
// key absorbs a token where the mask lets the token see the key; a key after a row has absorbed nothing.
namespace castle {
inline namespace CASTLE_ABI {

class Mask;

namespace detail {

// Keys [begin, end).
struct KeyRange {
    Index begin;
    Index end;
};

// The end of a range that goes as far as there are keys.
inline constexpr Index every_key = (std::numeric_limits<Index>::max)();

// Bit j is key 64 p + j: those of the range.
inline std::uint64_t range_word(Index begin, Index end, Index p) {
    const Index first = p * panel_size;
    begin = std::clamp<Index>(begin - first, 0, panel_size);
    end = end >= first + panel_size ? panel_size : (std::max)(end - first, Index(0));
    if (begin >= end) return 0;
    return (~std::uint64_t(0) >> (panel_size - (end - begin))) << begin;
}

// What is behind a mask: for a row and a panel of keys a word, in which bit j stands for key 64 p + j.
class MaskRule {
  public:
    MaskRule() = default;
    MaskRule(const MaskRule&) = delete;
    MaskRule& operator=(const MaskRule&) = delete;
    virtual ~MaskRule() = default;

    // to[i] is the word of row first + i, for the rows [first, end) and panel p. Bits of keys that are not there, from
    // `keys` on, mean what the mask says of them; a function of the user's is not asked about them.
    virtual void words(Index first, Index end, Index p, Index keys, std::uint64_t* to) const = 0;

    // No row of [first, end) sees a key outside of it.
    virtual KeyRange reach(Index first, Index end) const = 0;

    // One after the last key that has to be there for these rows; masks that show what is there ask for none.
    virtual Index needs(Index first, Index end) const {
        const Index last = reach(first, end).end;
        return last == every_key ? 0 : last;
    }

    // How many rows it knows.
    virtual Index rows() const { return every_key; }

    // Whether every row sees the key at its own position.
    virtual bool sees_itself() const { return false; }

    // Of documents that come one after the other from row 0 on: their lengths; otherwise none.
    virtual std::span<const Index> lengths() const { return {}; }
    // The mask within document i.
    virtual const Mask* within(Index) const { return nullptr; }

    std::uint64_t word(Index row, Index p, Index keys) const {
        std::uint64_t one;
        words(row, row + 1, p, keys, &one);
        return one;
    }
};

// One that has a function for a row's word.
template <class Own>
class RowRule : public MaskRule {
  public:
    void words(Index first, Index end, Index p, Index keys, std::uint64_t* to) const final {
        for (Index row = first; row < end; ++row) to[row - first] = static_cast<const Own*>(this)->of_row(row, p, keys);
    }
};

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

}  // namespace detail

/// Which keys each row sees; causal unless it says otherwise: all tokens up to the row's own. Made by the functions of
/// castle::masks, and of other masks by `&` and `|`. A small value: copies share what is behind it, which never
/// changes.
class Mask {
  public:
    /// The causal mask.
    Mask() = default;

    /// Not for users: see castle::masks.
    explicit Mask(std::shared_ptr<const detail::MaskRule> rule) : rule_(std::move(rule)) {}

    /// Whether row `row` sees key `key`, with `keys` keys there; a row that the mask does not know sees none. Slow; to
    /// look at, and for textbook forms.
    bool sees(Index row, Index key, Index keys) const {
        if (key >= keys || (rule_ != nullptr && row >= rule_->rows())) return false;
        if (rule_ == nullptr) return key <= row;
        return (rule_->word(row, key / detail::panel_size, keys) >> (key % detail::panel_size) & 1) != 0;
    }

    /// The same mask, under which a row may see no key at all. Its output is 0 then, its log-sum-exp minus infinity,
    /// and its gradient 0. Under other masks such a row is an error.
    Mask allowing_empty_rows() const {
        Mask mask = *this;
        mask.allows_empty_rows_ = true;
        return mask;
    }
    bool allows_empty_rows() const { return allows_empty_rows_; }

    friend Mask operator&(const Mask& a, const Mask& b) { return pair<true>(a, b); }
    friend Mask operator|(const Mask& a, const Mask& b) { return pair<false>(a, b); }

    /// Not for users. Null where the mask is the causal one.
    const detail::MaskRule* rule() const { return rule_.get(); }
    std::shared_ptr<const detail::MaskRule> shared_rule() const {
        if (rule_ != nullptr) return rule_;
        return std::make_shared<detail::WindowRule>(detail::every_key, 0);
    }

  private:
    template <bool both>
    static Mask pair(const Mask& a, const Mask& b) {
        Mask mask(std::make_shared<detail::PairRule<both>>(a.shared_rule(), b.shared_rule()));
        mask.allows_empty_rows_ = a.allows_empty_rows_ || b.allows_empty_rows_;
        return mask;
    }

    std::shared_ptr<const detail::MaskRule> rule_;
    bool allows_empty_rows_ = false;
};

/// The masks of a call's sequences: none, which is causal; one for all of them, which may be passed as it is; or one
/// for each, a view that does not outlive what it was made from.
class Masks {
  public:
    Masks() = default;
    Masks(const Mask& one) : one_(one), size_(1) {}
    Masks(std::span<const Mask> masks) : many_(masks), size_(Index(masks.size())) {}
    Masks(const std::vector<Mask>& masks) : Masks(std::span<const Mask>(masks)) {}
    Masks(std::vector<Mask>&&) = delete;  // would dangle

    Index size() const { return size_; }
    /// That of sequence `i`; null if there are none.
    const Mask* operator[](Index i) const {
        if (size_ == 0) return nullptr;
        if (many_.empty()) return &one_;
        return &many_[size_ == 1 ? 0 : std::size_t(i)];
    }

  private:
    Mask one_;
    std::span<const Mask> many_;
    Index size_ = 0;
};

/// Which of the keys after it the row of a visual token sees, of those in the prompt.
enum class Future { all, visual, text };

namespace detail {

// Documents one after the other, and a mask within each of them, whose positions begin anew.
class DocumentsRule final : public RowRule<DocumentsRule> {
  public:
    // One mask for all documents or one for each.
    DocumentsRule(std::vector<Index> lengths, std::vector<Mask> within)
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
        const MaskRule* rule = within(i)->rule();
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
        const auto reach_of = [&](Index i, Index from, Index to) {
            const MaskRule* rule = within(i)->rule();
            return rule != nullptr ? rule->reach(from, to) : KeyRange{0, to};
        };
        const KeyRange of_first = reach_of(a, first - start, (std::min)(end, ends_[std::size_t(a)]) - start);
        const KeyRange of_last = reach_of(b, (std::max)(first, last_start) - last_start, end - last_start);
        const Index length = lengths_[std::size_t(b)];
        return {start + (std::min)(of_first.begin, lengths_[std::size_t(a)]),
                last_start + (std::min)(of_last.end, length)};
    }
    Index rows() const override { return ends_.empty() ? 0 : ends_.back(); }
    bool sees_itself() const override {
        return std::all_of(within_.begin(), within_.end(),
                           [](const Mask& mask) { return mask.rule() == nullptr || mask.rule()->sees_itself(); });
    }
    std::span<const Index> lengths() const override { return lengths_; }
    const Mask* within(Index i) const override { return &within_[within_.size() == 1 ? 0 : std::size_t(i)]; }

  private:
    // The one that the row belongs to.
    Index document_of(Index row) const {
        return Index(std::upper_bound(ends_.begin(), ends_.end(), row) - ends_.begin());
    }
    Index start_of(Index i) const { return ends_[std::size_t(i)] - lengths_[std::size_t(i)]; }

    std::vector<Index> lengths_;
    std::vector<Index> ends_;
    std::vector<Mask> within_;
};

// That the mask knows the rows up to `end`.
inline void check_mask_size(std::string_view where, std::string_view name, const Mask& mask, Index end) {
    if (mask.rule() == nullptr || end <= mask.rule()->rows()) return;
    fail(where, name, " has ", mask.rule()->rows(), " rows but the call has row ", end - 1);
}

// That rows [first, end) see keys that are there, `keys` of them, and at least one.
inline void check_mask_rows(std::string_view where, const Mask& mask, Index first, Index end, Index keys) {
    const MaskRule* rule = mask.rule();
    if (rule == nullptr || first >= end) return;
    check_mask_size(where, "mask", mask, end);
    if (rule->needs(first, end) > keys) {
        for (Index row = first; row < end; ++row) {
            const Index own = rule->needs(row, row + 1);
            for (Index p = keys / panel_size; p * panel_size < own; ++p) {
                const std::uint64_t beyond = rule->word(row, p, keys) & ~range_word(0, keys, p);
                if (beyond == 0) continue;
                fail(where, "row ", row, " of mask sees key ", p * panel_size + std::countr_zero(beyond),
                     " but there are only ", keys, " keys");
            }
        }
    }
    if (mask.allows_empty_rows() || (rule->sees_itself() && end <= keys)) return;
    for (Index row = first; row < end; ++row) {
        const KeyRange own = rule->reach(row, row + 1);
        const Index own_end = (std::min)(own.end, keys);
        bool sees_any = false;
        for (Index p = own.begin / panel_size; !sees_any && p * panel_size < own_end; ++p) {
            sees_any = (rule->word(row, p, keys) & range_word(0, keys, p)) != 0;
        }
        if (!sees_any) {
            fail(where, "row ", row, " of mask sees none of the ", keys,
                 " keys; if that may be, pass mask.allowing_empty_rows()");
        }
    }
}

inline void check_mask_tokens(std::string_view where, std::string_view name, Index value, Index least) {
    if (value < least) fail(where, name, " is ", value, " but must be at least ", least);
}

}  // namespace detail

namespace masks {

/// Every row sees itself and all tokens before it.
inline Mask causal() { return {}; }

/// Every row sees every key that is there.
inline Mask full() { return Mask(std::make_shared<detail::FullRule>()); }

/// Row `t` sees keys `t - window + 1` to `t` and, of those up to `t`, the first `keep_first`. Throws
/// std::invalid_argument if `window` is below 1 or `keep_first` negative.
inline Mask sliding_window(Index window, Index keep_first = 0) {
    detail::check_mask_tokens("masks::sliding_window", "window", window, 1);
    detail::check_mask_tokens("masks::sliding_window", "keep_first", keep_first, 0);
    return Mask(std::make_shared<detail::WindowRule>(window, keep_first));
}

/// The first `tokens` tokens see each other, whatever their order; otherwise causal. Throws std::invalid_argument if
/// `tokens` is negative.
inline Mask prefix(Index tokens) {
    detail::check_mask_tokens("masks::prefix", "tokens", tokens, 0);
    return Mask(std::make_shared<detail::PrefixRule>(tokens));
}

/// Documents of `lengths` tokens one after the other, none of which sees another. Within each the mask is `within`,
/// whose positions begin anew with every document: one for all of them, causal unless given, or one for each. Throws
/// std::invalid_argument if a length is negative, there are neither as many masks as documents nor one, or a row of one
/// sees a key beyond its document or none.
inline Mask documents(std::vector<Index> lengths, const Masks& within = {}) {
    constexpr std::string_view where = "masks::documents";
    const Index count = Index(lengths.size());
    if (within.size() > 1 && within.size() != count) {
        detail::fail(where, "within has ", within.size(), " masks but lengths has ", count, " elements");
    }
    bool allows_empty_rows = false;
    for (Index i = 0; i < count; ++i) {
        const Index length = lengths[std::size_t(i)];
        if (length < 0) detail::fail(where, "lengths[", i, "] is ", length, " but must be at least 0");
        if (within.size() == 0) continue;
        detail::check_mask_rows(where, *within[i], 0, length, length);
        allows_empty_rows = allows_empty_rows || within[i]->allows_empty_rows();
    }
    std::vector<Mask> own;
    for (Index i = 0; i < (std::max)(within.size(), Index(1)); ++i) {
        own.push_back(within.size() == 0 ? Mask() : *within[i]);
    }
    const Mask mask(std::make_shared<detail::DocumentsRule>(std::move(lengths), std::move(own)));
    return allows_empty_rows ? mask.allowing_empty_rows() : mask;
}

/// Future-aware masks (arXiv:2505.18605): `visual[t]` says whether token `t` of the prompt is visual. Such a token
/// sees, beside itself and all before it, the prompt's later tokens that are as `future` says: all of them (`M^f`), the
/// visual ones (`M^v2v`) or the text (`M^v2t`). Tokens after the prompt, and text, are causal.
inline Mask modality(std::vector<bool> visual, Future future) {
    return Mask(
        std::make_shared<detail::ModalityRule>(std::move(visual), future != Future::text, future != Future::visual));
}

/// Any boolean matrix, `[rows, keys]`, or an expression of one: row `t` sees the keys in row `t` of it that are true,
/// and no others. Kept as a bit an element.
template <class M>
Mask matrix(const Eigen::DenseBase<M>& sees) {
    const auto plain = sees.derived().eval();
    return Mask(std::make_shared<detail::MatrixRule>(plain.rows(), plain.cols(),
                                                     [&](Index row, Index key) { return bool(plain(row, key)); }));
}

/// A function of the caller's: row `t` sees key `s` where `sees(t, s)`. It is asked about every row and every key that
/// is there by the end of the call, later ones included, more than once, and on all threads; where that takes long,
/// `packed` asks it once. It must not throw, and always answers the same.
template <class Sees>
requires std::predicate<const Sees&, Index, Index> Mask predicate(Sees sees) {
    return Mask(std::make_shared<detail::PredicateRule<Sees>>(std::move(sees)));
}

/// The same for rows `[0, rows)` and keys `[0, keys)`, asked once, here, and kept as a bit a pair. Throws
/// std::invalid_argument if a size is negative.
template <class Sees>
requires std::predicate<const Sees&, Index, Index> Mask packed(Index rows, Index keys, const Sees& sees) {
    detail::check_mask_tokens("masks::packed", "rows", rows, 0);
    detail::check_mask_tokens("masks::packed", "keys", keys, 0);
    return Mask(std::make_shared<detail::MatrixRule>(rows, keys, sees));
}

}  // namespace masks
}  // namespace CASTLE_ABI
}  // namespace castle
