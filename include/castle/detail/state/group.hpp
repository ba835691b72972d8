// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include <castle/detail/base/layout.hpp>
#include <castle/detail/simd/scalar.hpp>
#include <castle/mask.hpp>

namespace castle {
inline namespace CASTLE_ABI {
namespace detail {

// Rows that short sequences begin a step with together: enough for all threads, few enough for little scratch.
inline constexpr Index batch_rows = 4 * group_size;

// What the rows of a sequence may see: the mask, null where it is the causal one, and how many keys there are by the
// end of the call.
struct Sight {
    const MaskRule* rule = nullptr;
    Index keys = 0;
    bool has_own_keys = true;         // whether rows bring keys of their own; otherwise the keys are another sequence's
    const Mask* mass_over = nullptr;  // of the keys on which the rows' mass is asked for, if it is

    // Outside of these keys no row of [first, end) sees any.
    KeyRange reach(Index first, Index end) const {
        if (rule == nullptr) return {0, end};
        const KeyRange all = rule->reach(first, end);
        const Index last = (std::min)(all.end, keys);
        return all.begin < last ? KeyRange{all.begin, last} : KeyRange{0, 0};
    }
};

// The tokens [first, end) of a sequence that go through the sweep together, at most group_blocks blocks, and in which
// row of the step's input and output they begin.
struct Group {
    Index first = 0;
    Index end = 0;
    Index row = 0;
    Sight sight = {};
    KeyRange keys = {0, 0};  // that its blocks are swept against

    // The group that begins at token `first` of a sequence that ends at `end`. Groups end where blocks do. All keys
    // from `absorbing` up to its own are swept, whatever the mask says, since earlier rows of a block that is finished
    // may have seen them.
    static Group next(Index first, Index end, Index row, const Sight& sight = {}, Index absorbing = every_key) {
        Group group{.first = first,
                    .end = (std::min)(end, round_down(first, block_size) + group_size),
                    .row = row,
                    .sight = sight};
        if (group.rows() <= 0) return group;
        group.keys = sight.reach(first, group.end);
        if (absorbing < group.end) {
            if (group.keys.begin == group.keys.end) group.keys = {absorbing, absorbing};
            group.keys = {(std::min)(group.keys.begin, absorbing), (std::max)(group.keys.end, group.end)};
        }
        return group;
    }

    Index origin() const { return round_down(first, block_size); }
    Index rows() const { return end - first; }
    Index blocks() const { return rows() > 0 ? ceil_div(end - origin(), block_size) : 0; }
    Index first_span() const { return keys.begin / span_size; }
    // Up to the last one; there is one even where nothing is seen.
    Index spans() const { return rows() > 0 ? (std::max)(ceil_div(keys.end, span_size), first_span() + 1) : 0; }
    // Whether there is but one block, and not all of it.
    bool is_part_of_block() const { return blocks() == 1 && rows() < block_size; }
};

}  // namespace detail
}  // namespace CASTLE_ABI
}  // namespace castle
