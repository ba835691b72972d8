// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include <castle/detail/check/attention_kind.hpp>
#include <castle/detail/check/checks.hpp>
#include <castle/detail/forward/append.hpp>
#include <castle/detail/forward/group_steps.hpp>
#include <castle/detail/state/sequence_state.hpp>
#include <castle/detail/state/sequences.hpp>
#include <castle/executor.hpp>
#include <castle/input.hpp>
#include <castle/mask.hpp>
#include <castle/output.hpp>
#include <castle/terms.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// A whole sequence of a call that has no cache, as the packed sequences that it comes to: one, or the documents of its
// mask, which run as if each were alone. Refers to the masks that it was made from.
class WholeSequence {
  public:
    WholeSequence(std::string_view where, Index rows, const Masks& mask, const Masks& mass_over, Index cross_keys = -1)
        : only_(rows), cross_keys_(cross_keys), seen_(mask), mass_over_(mass_over) {
        check_masks(where, "mask", mask, 1);
        check_masks(where, "mass_over", mass_over, 1);
        if (mass_over.size() > 0) check_mask_size(where, "mass_over", *mass_over[0], rows);
        const MaskRule* rule = mask[0] != nullptr ? mask[0]->rule() : nullptr;
        if (rule == nullptr || rule->lengths().empty()) return;
        lengths_ = rule->lengths();
        if (rule->rows() != rows) {
            fail(where, "mask has documents of ", rule->rows(), " tokens but the input has ", rows, " rows");
        }
        for (Index i = 0; i < Index(lengths_.size()); ++i) {
            // Its rows have been checked when the mask was made.
            of_documents_.push_back(Mask(rule->within(i)).allowing_empty_rows());
        }
        // A second mask counts positions from the first document on.
        Index first = 0;
        for (Index i = 0; mass_over.size() > 0 && i < Index(lengths_.size()); ++i) {
            mass_of_documents_.push_back(masks::predicate([mass = *mass_over[0], first, rows](Index row, Index key) {
                return mass.sees(first + row, first + key, rows);
            }));
            first += lengths_[std::size_t(i)];
        }
    }
    WholeSequence(const WholeSequence&) = delete;
    WholeSequence& operator=(const WholeSequence&) = delete;

    std::span<const Index> counts() const { return lengths_.empty() ? std::span<const Index>(&only_, 1) : lengths_; }
    CallMasks masks() const {
        if (lengths_.empty()) return {.seen = seen_, .mass_over = mass_over_, .cross_keys = cross_keys_};
        return {.seen = of_documents_, .mass_over = mass_of_documents_, .cross_keys = -1};
    }

    // The output with the second masks of the packed sequences.
    template <Scalar T>
    Output<T> output(Output<T> of_whole) const {
        of_whole.mass_over = masks().mass_over;
        return of_whole;
    }

    void check_sights(std::string_view where, const ScoreTerms* terms) const {
        const CallMasks all = masks();
        for (Index i = 0; i < Index(counts().size()); ++i) {
            check_sight(where, all.seen[i], terms, 0, counts()[std::size_t(i)], all.mass_over[i], cross_keys_);
        }
    }

  private:
    Index only_;
    Index cross_keys_;
    Masks seen_;
    Masks mass_over_;
    std::span<const Index> lengths_;
    std::vector<Mask> of_documents_;
    std::vector<Mask> mass_of_documents_;
};

// The attention of a whole sequence, from nothing.
template <Scalar T>
void append_whole(const AttentionKind& kind, const WholeSequence& whole, const Input<T>& input,
                  const OutputRows<T>& output, const Executor& executor) {
    CallMasks masks = whole.masks();
    if (!output.has_mass()) masks.mass_over = {};
    const std::span<const Index> counts = whole.counts();
    if (counts.size() == 1) {
        SequenceState<T> state(kind, {});
        append<T>(state, counts, masks, input, output, executor);
        return;
    }
    std::vector<SequenceState<T>> states;
    const auto terms = SequenceState<T>::terms_of(kind);
    const auto state = [&](Index i) -> auto& { return states[std::size_t(i)]; };
    const Index sequences = Index(counts.size());
    // Without threads they run one after the other, and all in the memory of the first.
    const Index together = executor ? sequences : 1;
    states.reserve(std::size_t(together));
    for (Index i = 0; i < together; ++i) states.emplace_back(kind, Keeping(), terms);
    if (executor) {
        append(Sequences<T>(state), counts, masks, input, output, executor);
        return;
    }
    Index first = 0;
    for (Index i = 0; i < sequences; ++i) {
        const Index count = counts[std::size_t(i)];
        states.front().clear();
        const auto own = [&](const Masks& all) { return all[i] != nullptr ? Masks(*all[i]) : Masks(); };
        append<T>(states.front(), counts.subspan(std::size_t(i), 1),
                  {.seen = own(masks.seen), .mass_over = own(masks.mass_over)}, input.tokens(first, count),
                  output.rows_from(first, count), executor);
        first += count;
    }
}

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
