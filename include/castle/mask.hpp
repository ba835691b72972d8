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
#include <castle/detail/mask/mask_rule.hpp>
#include <castle/detail/mask/mask_rules.hpp>
#include <castle/types.hpp>

// Masks: which keys a row sees. A mask belongs to a call, not to a cache; rows and keys are positions in the sequence.
//
// What a row does not see is left out of its sums, in both passes: whatever stands there reaches nothing. A lookahead
// key absorbs a token where the mask lets the token see the key; a key after a row has absorbed nothing.
namespace castle {
inline namespace CASTLE_ABI {

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
        return (detail::word_of(rule_.get(), row, key / detail::panel_size, keys) >> (key % detail::panel_size) & 1) !=
               0;
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
    const std::shared_ptr<const detail::MaskRule>& shared_rule() const { return rule_; }
    std::shared_ptr<const detail::MaskRule> rule_or_causal() const {
        if (rule_ != nullptr) return rule_;
        return std::make_shared<detail::WindowRule>(detail::every_key, 0);
    }

  private:
    template <bool both>
    static Mask pair(const Mask& a, const Mask& b) {
        Mask mask(std::make_shared<detail::PairRule<both>>(a.rule_or_causal(), b.rule_or_causal()));
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

}  // namespace detail

namespace masks {

/// Every row sees itself and all tokens before it.
inline Mask causal() { return {}; }

/// Every row sees every key that is there.
inline Mask full() { return Mask(std::make_shared<detail::FullRule>()); }

/// Row `t` sees keys `t - window + 1` to `t` and, of those up to `t`, the first `keep_first`. Throws
/// std::invalid_argument if `window` is below 1 or `keep_first` negative.
inline Mask sliding_window(Index window, Index keep_first = 0) {
    detail::check_size("masks::sliding_window", "window", window, 1);
    detail::check_size("masks::sliding_window", "keep_first", keep_first, 0);
    return Mask(std::make_shared<detail::WindowRule>(window, keep_first));
}

/// The first `tokens` tokens see each other, whatever their order; otherwise causal. Throws std::invalid_argument if
/// `tokens` is negative.
inline Mask prefix(Index tokens) {
    detail::check_size("masks::prefix", "tokens", tokens, 0);
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
    std::vector<std::shared_ptr<const detail::MaskRule>> rules;
    for (Index i = 0; i < (std::max)(within.size(), Index(1)); ++i) {
        rules.push_back(within.size() == 0 ? nullptr : within[i]->shared_rule());
    }
    const Mask mask(std::make_shared<detail::DocumentsRule>(std::move(lengths), std::move(rules)));
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
    detail::check_size("masks::packed", "rows", rows, 0);
    detail::check_size("masks::packed", "keys", keys, 0);
    return Mask(std::make_shared<detail::MatrixRule>(rows, keys, sees));
}

}  // namespace masks
}  // namespace CASTLE_ABI
}  // namespace castle
